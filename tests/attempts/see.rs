//! To see what is another's: jobs, receipts, balances, files, what callers say.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::scene::{ATTACKER, SECRET, Scene, give, open_to_all};
use crate::{Attempt, Half, Play, Without, check};

pub(crate) const ATTEMPTS: [Attempt; 20] = [
    Attempt {
        what: "list everybody's jobs",
        without: check("JobOwner"),
        play: |play| Scene::with_victim(&play.lacks).tries("call GET /v1/jobs | has u64002-secret"),
    },
    Attempt {
        what: "look at another's job by its name",
        without: check("JobOwner"),
        play: |play| Scene::with_victim(&play.lacks).tries("call GET /v1/jobs/u64002-secret | has '^200'"),
    },
    Attempt {
        what: "read another's receipt",
        without: check("JobOwner"),
        play: |play| Scene::with_victim(&play.lacks).tries("call GET /v1/jobs/u64002-secret/receipt | has '\"charge\"'"),
    },
    Attempt {
        what: "learn how far the journal went, and when each settlement was",
        without: check("Administer"),
        play: |play| Scene::start(&play.lacks).tries("call GET /v1/anchors | has anchors"),
    },
    Attempt {
        what: "have another's job explained, its name disguised by percent signs",
        without: check("JobOwner"),
        play: |play| Scene::with_victim(&play.lacks).tries("call GET /v1/jobs/%7564002%2Dsecret/why | has '\"charge\"'"),
    },
    Attempt {
        what: "watch the usage of another's job with meterctl",
        without: check("JobOwner"),
        play: |play| Scene::with_victim(&play.lacks).tries("\"$D/meterctl\" jobs | has secret"),
    },
    Attempt {
        what: "list everybody's balances",
        without: check("AccountOwner"),
        play: |play| Scene::start(&play.lacks).tries("call GET /v1/accounts | has 777"),
    },
    Attempt {
        what: "look at another's balance by the account's name",
        without: check("AccountOwner"),
        play: |play| Scene::start(&play.lacks).tries("call GET /v1/accounts/secret-lab | has '\"available\"'"),
    },
    Attempt {
        what: "read another's payments in the ledger",
        without: check("AccountOwner"),
        play: |play| Scene::start(&play.lacks).tries("call GET '/v1/accounts/secret-lab/ledger?limit=10000' | has deposit"),
    },
    Attempt {
        what: "read another's balance from the metrics",
        without: check("AccountMetrics"),
        play: |play| Scene::with_victim(&play.lacks).tries("call GET /metrics | has 'account=\"secret-lab\"'"),
    },
    Attempt {
        what: "list everybody's jobs over TCP, where nobody asks who calls",
        without: check("SocketOnly"),
        play: |play| Scene::with_victim(&play.lacks).tries("perl \"$D/call.pl\" \"$TCP\" GET /v1/jobs | has secret"),
    },
    Attempt {
        what: "follow everybody's jobs in the stream of events",
        without: check("JobOwner"),
        play: |play| Scene::with_victim(&play.lacks).tries("call GET '/v1/events?since=0' | has u64002-secret"),
    },
    Attempt {
        what: "follow another's job in the stream of events by its name, with meterctl",
        without: check("JobOwner"),
        play: |play| Scene::with_victim(&play.lacks).tries("\"$D/meterctl\" events --since 0 --job u64002-secret | has u64002-secret"),
    },
    Attempt {
        what: "follow another's payments in the stream of events",
        without: check("AccountOwner"),
        play: |play| {
            Scene::with_victim(&play.lacks).tries("call GET '/v1/events?since=0&account=secret-lab' | has '\"account\":\"secret-lab\"'")
        },
    },
    Attempt { what: "have the agent leave a core, with what it knows of everybody, when it crashes", without: check("NoCore"), play: core },
    Attempt {
        what: "read the journal's file",
        without: check("StateFolder"),
        play: |play| {
            let scene = Scene::prepared(&play.lacks, "", readable_state).and_victim();
            scene.tries("grep -q -e secret-lab \"$STATE\"/journal.db*")
        },
    },
    Attempt {
        what: "read the balances' file",
        without: check("StateFolder"),
        play: |play| Scene::prepared(&play.lacks, "", readable_state).tries("grep -q -e secret-lab \"$STATE\"/authority.db*"),
    },
    Attempt {
        what: "have the state written into one's own folder, by a link that was there before",
        without: check("StateFolder"),
        play: |play| {
            starts_in(play, |at| {
                let script = "mkdir \"$HOME/mine\" && ln -s \"$HOME/mine\" \"$D/state\"";
                as_attacker(at, script);
            }) && {
                let folder = FOLDER.with_borrow_mut(Option::take).unwrap();
                as_attacker(folder.path(), "cat \"$HOME/mine/journal.db\" | grep -q SQLite")
            }
        },
    },
    Attempt {
        what: "take the socket's place and hear what operators say",
        without: check("RuntimeFolder"),
        play: |play| {
            let started = starts_in(play, |at| {
                as_attacker(at, "mkdir \"$D/run\"");
            });
            let Some(folder) = FOLDER.with_borrow_mut(Option::take).filter(|_| started) else { return false };
            let at = folder.path();
            let mut impostor = attacker(at, "exec perl \"$D/impostor.pl\" \"$D/run/meterd.sock\" \"$HOME/heard\"");
            let mut impostor = impostor.stdout(Stdio::piped()).spawn().unwrap();
            let listening = std::io::Read::read(impostor.stdout.as_mut().unwrap(), &mut [0_u8; 16]).unwrap();
            if listening != 0 {
                crate::agent::ask(&at.join("run/meterd.sock"), "GET", "/v1/accounts/the-operators-word", None);
            }
            impostor.wait().unwrap();
            std::fs::read_to_string(at.join("home/heard")).is_ok_and(|heard| heard.contains("the-operators-word"))
        },
    },
    Attempt {
        what: "read the agent's memory, environment and descriptors in /proc",
        without: Without::Deployment("an agent that runs as the user"),
        play: |play| {
            let scene = Scene::start("");
            let own = scene.as_own_agent();
            let pid = if play.half == Half::Lacking { own.0.id() } else { scene.agent.pid() };
            scene.tries(&format!("cat /proc/{pid}/environ >/dev/null && ls /proc/{pid}/fd >/dev/null && : </proc/{pid}/mem"))
        },
    },
];

/// Somebody starts the agent with no limit on cores, in a folder of everybody's; how it comes to crash does not matter.
fn core(play: &Play) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let unlimited: Vec<String> = ["env", "-C", folder.path().to_str().unwrap(), "prlimit", "--core=unlimited"].map(str::to_owned).into();
    let probe = Command::new(&unlimited[0]).args(&unlimited[1..]).args(["sh", "-c", "kill -ABRT $$"]).status().unwrap();
    let dumps = if probe.core_dumped() { Ok(()) } else { Err("this machine's pattern for cores leaves none".to_owned()) };
    if crate::support::need("core dumps", dumps).is_none() {
        return play.half == Half::Lacking;
    }
    let mut scene = Scene::with_victim(&play.lacks);
    scene.agent.kill();
    scene.agent.before = unlimited;
    scene.agent.launch();
    scene.agent.signal("ABRT"); // as systemd's watchdog does
    scene.agent.end().core_dumped()
}

fn readable_state(folder: &Path) {
    std::fs::create_dir(folder.join("state")).unwrap();
    open_to_all(&folder.join("state"), 0o755);
}

thread_local! {
    /// Of the agent that [`starts_in`] started last.
    static FOLDER: std::cell::RefCell<Option<Folder>> = const { std::cell::RefCell::new(None) };
}

/// A folder with an agent in it, which ends with it.
struct Folder {
    folder: tempfile::TempDir,
    agent: std::process::Child,
}

impl Folder {
    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.agent.kill());
        drop(self.agent.wait());
    }
}

fn attacker(at: &Path, script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).uid(ATTACKER).gid(ATTACKER).env("D", at).env("HOME", at.join("home")).current_dir("/");
    command
}

fn as_attacker(at: &Path, script: &str) -> bool {
    attacker(at, script).status().unwrap().success()
}

/// Does an agent answer whose folders lie where everybody may write, as in /tmp, after somebody was there before?
fn starts_in(play: &Play, before: impl FnOnce(&Path)) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    open_to_all(at, 0o1777);
    std::fs::create_dir(at.join("home")).unwrap();
    give(&at.join("home"), ATTACKER);
    for (name, text) in [("impostor.pl", include_str!("impostor.pl")), ("card.toml", crate::scene::CARD)] {
        std::fs::write(at.join(name), text).unwrap();
        open_to_all(&at.join(name), 0o644);
    }
    before(at);
    let shown = at.display();
    let config = format!(
        "state_dir = \"{shown}/state\"\nruntime_dir = \"{shown}/run\"\nrate_card = \"{shown}/card.toml\"\n\
         [status]\nlisten = \"off\"\n[gpu]\nnvml = \"off\"\n"
    );
    std::fs::write(at.join("meterd.toml"), config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterd"));
    command.arg("--config").arg(at.join("meterd.toml")).env("METERD_LACKS", &play.lacks);
    let mut agent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let socket = at.join("run/meterd.sock");
    let answers = loop {
        if crate::agent::ask(&socket, "GET", "/healthz", None).is_some() {
            break true;
        }
        if let Some(status) = agent.try_wait().unwrap() {
            assert_eq!(status.code(), Some(77), "it ends as not permitted");
            break false;
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    };
    FOLDER.set(Some(Folder { folder, agent }));
    answers
}

/// The name is used by scripts as text.
const _: () = assert!(SECRET.len() == 13);
