//! A terminal without a person: a pseudo-terminal of a given size, with a program on it.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

pub(crate) struct Pty {
    master: std::fs::File,
    slave: OwnedFd,
    /// What was written to it so far.
    written: Arc<Mutex<Vec<u8>>>,
}

impl Pty {
    pub(crate) fn open(columns: u16, rows: u16) -> Pty {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let pty = Pty { master: master.into(), slave, written: Arc::default() };
        pty.resize(columns, rows);
        let (mut reading, written) = (pty.master.try_clone().unwrap(), Arc::clone(&pty.written));
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            while let Ok(count) = reading.read(&mut bytes) {
                if count == 0 {
                    return;
                }
                written.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        pty
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        tcsetwinsize(&self.slave, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    }

    /// Starts a program on it.
    pub(crate) fn spawn(&self, command: &mut Command) -> Child {
        let side = || self.slave.try_clone().unwrap();
        command.stdin(side()).stdout(side()).stderr(side()).spawn().unwrap()
    }

    /// As a keyboard would.
    pub(crate) fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// How lines are treated: cooked or raw.
    pub(crate) fn modes(&self) -> String {
        let modes = tcgetattr(&self.slave).unwrap();
        format!("{:?} {:?} {:?}", modes.input_modes, modes.output_modes, modes.local_modes)
    }

    /// All that was written so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    /// Waits for the program's end; gives all that was written.
    pub(crate) fn read_to_end(&self, child: &mut Child) -> String {
        const MARK: &str = "[[the end]]";
        child.wait().unwrap();
        // What was written before the end is in the terminal's buffer by now, and a mark comes behind it.
        rustix::io::write(&self.slave, MARK.as_bytes()).unwrap();
        loop {
            if let Some(text) = self.text().strip_suffix(MARK) {
                return text.to_owned();
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
