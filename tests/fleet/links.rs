//! Links between one authority and its nodes, one for each, that can be cut: network namespaces where the machine lets us make them, with a
//! pair of virtual cables for each node; else relays on loopback ports. A link that is cut tells nobody: bytes stay away, and that is all.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::process::Place;

/// The authority's port in its own namespace.
const PORT: u16 = 8_443;

/// All links of one fleet. With it, the namespaces go.
pub(crate) enum Links {
    Spaces { hub: Space, nodes: Vec<Space> },
    Relays { port: u16, nodes: Vec<Relay> },
}

impl Links {
    /// So many. `METERD_LINKS=relays` has relays made where there could be namespaces.
    pub(crate) fn make(count: usize) -> Links {
        let wanted = std::env::var("METERD_LINKS").unwrap_or_default();
        let spaces = if wanted == "relays" { Err("METERD_LINKS=relays".to_owned()) } else { spaces(count) };
        if let Some((hub, nodes)) = crate::support::need("netns", spaces) {
            return Links::Spaces { hub, nodes };
        }
        let port = crate::process::free_port();
        Links::Relays { port, nodes: (0..count).map(|_| Relay::to(port)).collect() }
    }

    /// Where the authority is to be.
    pub(crate) fn place(&self) -> Place {
        match self {
            Links::Spaces { hub, nodes } => {
                let cables = (0..nodes.len()).map(|nth| IpAddr::V4(here(nth)));
                Place {
                    listen: format!("0.0.0.0:{PORT}"),
                    port: PORT,
                    addresses: cables.chain([IpAddr::V4(Ipv4Addr::LOCALHOST)]).collect(),
                    before: hub.enter(),
                    space: Some(hub.file()),
                }
            }
            Links::Relays { port, .. } => Place::loopback(*port),
        }
    }

    /// Where a node finds the authority.
    pub(crate) fn url(&self, nth: usize) -> String {
        match self {
            Links::Spaces { .. } => format!("https://{}:{PORT}", here(nth)),
            Links::Relays { nodes, .. } => format!("https://127.0.0.1:{}", nodes[nth].port),
        }
    }

    /// Words before a program that is to run on that node.
    pub(crate) fn enter(&self, nth: usize) -> Vec<String> {
        match self {
            Links::Spaces { nodes, .. } => nodes[nth].enter(),
            Links::Relays { .. } => Vec::new(),
        }
    }

    pub(crate) fn cut(&self, nth: usize) {
        self.set(nth, true);
    }

    pub(crate) fn mend(&self, nth: usize) {
        self.set(nth, false);
    }

    fn set(&self, nth: usize, cut: bool) {
        match self {
            Links::Spaces { hub, .. } => {
                let state = if cut { "down" } else { "up" };
                hub.run(&["ip", "link", "set", &format!("to{nth}"), state]).unwrap();
            }
            Links::Relays { nodes, .. } => nodes[nth].cut.store(cut, Ordering::SeqCst),
        }
    }
}

/// The authority's end of a cable, and the node's.
fn here(nth: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, u8::try_from(nth).unwrap(), 1)
}

fn there(nth: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, u8::try_from(nth).unwrap(), 2)
}

fn spaces(count: usize) -> Result<(Space, Vec<Space>), String> {
    let hub = Space::make()?;
    hub.run(&["ip", "link", "set", "lo", "up"])?;
    let node = |nth: usize| {
        let node = Space::make()?;
        let (cable, inside) = (format!("to{nth}"), node.holder.id().to_string());
        hub.run(&["ip", "link", "add", &cable, "type", "veth", "peer", "name", "up0", "netns", &inside])?;
        hub.run(&["ip", "address", "add", &format!("{}/30", here(nth)), "dev", &cable])?;
        hub.run(&["ip", "link", "set", &cable, "up"])?;
        node.run(&["ip", "link", "set", "lo", "up"])?;
        node.run(&["ip", "address", "add", &format!("{}/30", there(nth)), "dev", "up0"])?;
        node.run(&["ip", "link", "set", "up0", "up"])?;
        Ok(node)
    };
    let nodes: Result<Vec<Space>, String> = (0..count).map(node).collect();
    Ok((hub, nodes?))
}

/// A network namespace, which lasts as long as the process that sleeps in it.
pub(crate) struct Space {
    holder: Child,
}

impl Space {
    fn make() -> Result<Space, String> {
        let mut command = Command::new("unshare");
        let holder = command.args(["--net", "sleep", "1000"]).stdin(Stdio::null()).stderr(Stdio::null()).spawn();
        let space = Space { holder: holder.map_err(|error| format!("unshare: {error}"))? };
        let own = std::fs::read_link("/proc/self/ns/net").map_err(|error| error.to_string())?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::fs::read_link(space.file()).is_ok_and(|link| link == own) {
            if deadline < Instant::now() {
                return Err("no namespace was made within ten seconds".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        space.run(&["true"])?;
        Ok(space)
    }

    pub(crate) fn file(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    fn enter(&self) -> Vec<String> {
        ["nsenter", "--target", &self.holder.id().to_string(), "--net", "--"].map(str::to_owned).to_vec()
    }

    fn run(&self, words: &[&str]) -> Result<(), String> {
        let enter = self.enter();
        let output = Command::new(&enter[0]).args(&enter[1..]).args(words).output().map_err(|error| error.to_string())?;
        let said = || format!("{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        if output.status.success() { Ok(()) } else { Err(said()) }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// Passes bytes on between a port of its own and the authority's, while it is not cut.
pub(crate) struct Relay {
    pub(crate) port: u16,
    pub(crate) cut: Arc<AtomicBool>,
}

impl Relay {
    pub(crate) fn to(authority: u16) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&cut);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let cut = Arc::clone(&shared);
                std::thread::spawn(move || {
                    wait_while(&cut);
                    let Ok(far) = TcpStream::connect(("127.0.0.1", authority)) else { return };
                    let (Ok(near_too), Ok(far_too), cut_too) = (near.try_clone(), far.try_clone(), Arc::clone(&cut)) else { return };
                    std::thread::spawn(move || pass_on(far_too, near_too, &cut_too));
                    pass_on(near, far, &cut);
                });
            }
        });
        Relay { port, cut }
    }
}

fn wait_while(cut: &AtomicBool) {
    while cut.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) {
    let mut bytes = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        wait_while(cut);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    wait_while(cut); // an end is not heard either
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}
