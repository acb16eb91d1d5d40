//! To change what is not one's own: credit, accounts, others' jobs, the spool; and to keep others from the agent.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::scene::{ATTACKER, Cgroup, SECRET, Scene, VICTIM, give, open_to_all};
use crate::{Attempt, Half, Play, Without, check, check_behind};

pub(crate) const ATTEMPTS: [Attempt; 30] = [
    Attempt {
        what: "put credit into one's own account",
        without: check("Administer"),
        play: |play| {
            let body = r#"{"amount":"5000","bucket":"paid","payment":"mine"}"#;
            Scene::start(&play.lacks).tries(&format!("call POST /v1/accounts/own/topup '{body}' | has '^20'"))
        },
    },
    Attempt {
        what: "open an account",
        without: check("Administer"),
        play: |play| Scene::start(&play.lacks).tries("call POST /v1/accounts '{\"account\":\"free-lunch\"}' | has '^20'"),
    },
    Attempt {
        what: "let one's own account run below zero",
        without: check("Administer"),
        play: |play| {
            let body = r#"{"on_exhaustion":"allow_negative"}"#;
            Scene::start(&play.lacks).tries(&format!("call POST /v1/accounts/own/policy '{body}' | has '^20'"))
        },
    },
    Attempt {
        what: "switch the enforcement off",
        without: check("Administer"),
        play: |play| Scene::start(&play.lacks).tries("call POST /v1/enforcement '{\"mode\":\"observe\"}' | has '^20'"),
    },
    Attempt {
        what: "thaw everything with meterctl",
        without: check("Administer"),
        play: |play| Scene::start(&play.lacks).tries("\"$D/meterctl\" thaw --all"),
    },
    Attempt {
        what: "report another's job as ended",
        without: check("JobOwner"),
        play: |play| {
            Scene::with_victim(&play.lacks).tries("call POST /v1/jobs/u64002-secret/stop '{\"outcome\":\"cancelled\"}' | has '^200'")
        },
    },
    Attempt {
        what: "start a job on another's account",
        without: check("MappedAccount"),
        play: |play| starts(play, r#"{"job":"u64001-a","account":"secret-lab","own":true}"#),
    },
    Attempt {
        what: "start a job in another's name",
        without: check("ForItself"),
        play: |play| starts(play, r#"{"job":"u64001-a","account":"own","uid":64002,"own":true}"#),
    },
    Attempt {
        what: "take a name that another user wants",
        without: check("OwnName"),
        play: |play| starts(play, r#"{"job":"u64002-thesis","account":"own","own":true}"#),
    },
    Attempt {
        what: "hold a GPU that the scheduler gave to others",
        without: check("NoGpus"),
        play: |play| {
            let stub =
                crate::stub_nvml::Stub::new("gpu 0 GPU-00000000-0000-0000-0000-000000000001 85899345920 1048576 NVIDIA H100\ncycle 0 50");
            let scene = Scene::prepared(&play.lacks, &format!("[gpu]\nlibrary = \"{}\"", stub.library().display()), |_| ());
            scene.agent.wait_for("the GPU is seen", |agent| agent.done("GET", "/v1/status", None)["gpus"].to_string().contains('1'));
            scene.tries(r#"call POST /v1/jobs '{"job":"u64001-a","account":"own","own":true,"gpus":[0]}' | has '^201'"#)
        },
    },
    Attempt {
        what: "name another's process as one's own job, to have it frozen",
        without: check("OwnPlace"),
        play: |play| {
            let scene = Scene::with_victim(&play.lacks);
            let pid = Scene::pids(&scene.made_for(SECRET))[0];
            scene.tries(&format!(r#"call POST /v1/jobs '{{"job":"u64001-a","account":"own","process":{{"pid":{pid}}}}}' | has '^201'"#))
        },
    },
    Attempt {
        what: "name another's Slurm job as one's own",
        without: check("OwnPlace"),
        play: |play| starts(play, r#"{"job":"u64001-a","account":"own","slurm":{"job_id":7}}"#),
    },
    Attempt {
        what: "name another's cgroup as a second job, on an account that has nothing, to have it frozen",
        without: check_behind("OwnPlace", "OneHolder"),
        play: |play| {
            let scene = Scene::with_victim(&play.lacks);
            let dir = scene.made_for(SECRET);
            let body = json!({ "job": "u64001-a", "account": "own", "cgroups": [dir] });
            scene.tries(&format!("call POST /v1/jobs '{body}' | has '^201'"))
        },
    },
    Attempt {
        what: "make a cgroup outside the agent's own folder, by dots in a job's name",
        without: check("CgroupName"),
        play: |play| {
            let mut scene = Scene::start(&play.lacks);
            scene.run_as(ATTACKER, "own", "u64001-a", "exec sleep 1000");
            let made = scene.made_for("u64001-a");
            let name = format!("{}/../../meterd-attempt-outside-{}", made.file_name().unwrap().to_string_lossy(), std::process::id());
            scene.tries(&format!("call POST /v1/jobs '{}'; exit 0", json!({ "job": name, "account": "own", "own": true })));
            let top = made.parent().unwrap().parent().unwrap();
            let outside = std::fs::read_dir(top)
                .unwrap()
                .flatten()
                .find(|entry| entry.file_name().to_string_lossy().starts_with(&format!("meterd-attempt-outside-{}", std::process::id())));
            outside.is_some_and(|found| std::fs::remove_dir(found.path()).is_ok())
        },
    },
    Attempt {
        what: "write a call into a spool that is open to all",
        without: check_behind("SpoolFolder", "SpoolOwner"),
        play: |play| {
            spooled(play, |spool, dir| {
                record(spool, ATTACKER, dir);
            })
        },
    },
    Attempt {
        what: "write a call into a spool that is open to all, where its author is not asked for",
        without: check_behind("SpoolOwner", "SpoolFolder"),
        play: |play| {
            spooled(play, |spool, dir| {
                record(spool, ATTACKER, dir);
            })
        },
    },
    Attempt {
        what: "have an old call of root's made once more, by a symbolic link in the spool",
        without: check_behind("SpoolFolder", "SpoolLinks"),
        play: |play| {
            spooled(play, |spool, dir| {
                let old = record(spool.parent().unwrap(), 0, dir);
                as_user(&["ln", "-s", old.to_str().unwrap(), spool.join("0000000000000001-1-start.json").to_str().unwrap()]);
            })
        },
    },
    Attempt {
        what: "write into a file of root's that is open to all, and move it into the spool",
        without: check_behind("SpoolFolder", "SpoolOwnersAlone"),
        play: |play| {
            spooled(play, |spool, dir| {
                let open = record(&spool.join("../../home"), 0, dir);
                open_to_all(&open, 0o666);
                as_user(&["mv", open.to_str().unwrap(), spool.to_str().unwrap()]);
            })
        },
    },
    Attempt {
        what: "give a file of root's that is open to all a second name in the spool",
        without: check_behind("SpoolFolder,SpoolOwnersAlone", "SpoolOneName"),
        play: |play| {
            spooled(play, |spool, dir| {
                let open = record(&spool.join("../../home"), 0, dir);
                open_to_all(&open, 0o666);
                as_user(&["ln", open.to_str().unwrap(), spool.to_str().unwrap()]);
            })
        },
    },
    Attempt {
        what: "keep hooks' calls from being made, by a pipe in the spool",
        without: check_behind("SpoolFolder", "SpoolRegular"),
        // It succeeds if root's own call, behind the pipe, is not made.
        play: |play| {
            let (_cgroup, scene) = restarted(play, |spool, dir| {
                as_user(&["mkfifo", spool.join("0000000000000000-1-start.json").to_str().unwrap()]);
                record(spool, 0, dir);
            });
            let tries = if play.half == Half::Lacking { 60 } else { 1_200 };
            let made = (0..tries).any(|_| {
                std::thread::sleep(Duration::from_millis(50));
                is_made(&scene)
            });
            !made
        },
    },
    Attempt {
        what: "have the agent read a file that fills its memory, from the spool",
        without: check_behind("SpoolFolder", "SpoolSize"),
        play: |play| {
            let (_cgroup, scene) = restarted(play, |spool, dir| {
                let long = spool.join("0000000000000000-1-start.json");
                as_user(&["truncate", "-s", "200M", long.to_str().unwrap()]);
                open_to_all(&long, 0o600);
                record(spool, 0, dir);
            });
            scene.agent.wait_for("the spool is read", |_| is_made(&scene));
            peak_mib(&scene) > 150
        },
    },
    Attempt {
        what: "hold connections for ever, a byte a second",
        without: check("Patience"),
        play: |play| {
            let scene = Scene::start(&play.lacks);
            let mut crowd = scene.beside("exec perl \"$D/crowd.pl\" \"$S\" 20 20 trickle");
            assert_eq!(crowd.line(), "held 20");
            crowd.line() == "open 20"
        },
    },
    Attempt {
        what: "keep other users out by holding every connection",
        without: check("ConnectionsEach"),
        play: |play| keeps_out(play, "", VICTIM, 250),
    },
    Attempt {
        what: "keep operators out by using up the agent's descriptors",
        without: check_behind("ConnectionsEach,Patience", "ConnectionsInAll"),
        play: |play| keeps_out(play, "--nofile=512", 0, 700),
    },
    Attempt {
        what: "keep the agent busy with calls",
        without: check("CallRate"),
        play: |play| {
            let many = "perl -e 'print \"GET /v1/status HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n\" x 2000' >\"$HOME/many\"";
            let script = format!(
                "{many}; perl -MIO::Socket::UNIX -e 'my $s = IO::Socket::UNIX->new(Peer => $ENV{{S}}) or exit 1; my $pid = fork; \
                 if (!$pid) {{ open my $in, \"<\", \"$ENV{{HOME}}/many\"; local $/; print $s scalar <$in>; exit 0 }} \
                 my ($good, $bad) = (0, 0); while (<$s>) {{ $good++ if m(^HTTP/1.1 200); $bad++ if m(^HTTP/1.1 429); last if $good + $bad == 2000 }} \
                 exit($good == 2000 ? 0 : 1)'"
            );
            Scene::start(&play.lacks).tries(&script)
        },
    },
    Attempt {
        what: "slow every look down by hundreds of jobs",
        without: check("JobsEach"),
        play: |play| Scene::start(&play.lacks).tries("exec perl \"$D/jobs.pl\" \"$S\" 270"),
    },
    Attempt {
        what: "fill the agent's memory with one long body",
        without: check("BodySize"),
        play: |play| {
            let scene = Scene::start(&play.lacks);
            let before = peak_mib(&scene);
            scene.tries(
                "perl -MIO::Socket::UNIX -e '$SIG{PIPE} = \"IGNORE\"; my $s = IO::Socket::UNIX->new(Peer => $ENV{S}) or exit 1; \
                 print $s \"POST /v1/jobs HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\ncontent-length: 67108864\\r\\n\\r\\n\"; \
                 my $mib = \" \" x 1048576; for (1..64) { syswrite $s, $mib or last } sysread $s, my $answer, 9; exit 0'",
            );
            before + 32 < peak_mib(&scene)
        },
    },
    Attempt {
        what: "end the agent by a body that is nested too deeply for its stack",
        without: Without::Deployment("a reader that goes down as far as the text does"),
        play: |play| {
            if play.half == Half::Lacking {
                let mut reader = Command::new(std::env::current_exe().unwrap());
                reader.args(["--exact", DEEP_READER]).env("METERD_ATTEMPT_DEEP", "unbounded");
                return reader.output().unwrap().status.signal().is_some();
            }
            let scene = Scene::start("");
            let refused = ["[", "{\"job\":", "{\"gpus\":[", "[{\"a\":"].iter().all(|opening| {
                let body = opening.repeat(DEEP_BYTES / opening.len());
                std::fs::write(scene.agent.path("home/deep"), body).unwrap();
                scene.tries("call POST /v1/jobs \"$(cat \"$HOME/deep\")\" | has '^400'")
            });
            !refused || !scene.tries("call GET /v1/status | has '^200'")
        },
    },
    Attempt {
        what: "have one job on two accounts, by its name",
        without: Without::Deployment("the first one has ended"),
        play: |play| {
            let lacks = "MappedAccount";
            let mut scene = Scene::start(lacks);
            if play.half == Half::Defended {
                scene.run_as(ATTACKER, "own", "u64001-a", "exec sleep 1000");
            }
            scene.tries(r#"call POST /v1/jobs '{"job":"u64001-a","account":"secret-lab","own":true}' | has '^201'"#)
        },
    },
    Attempt {
        what: "have the agent read its configuration again, or end it",
        without: Without::Deployment("signals, for a process of one's own"),
        play: |play| {
            let scene = Scene::start("");
            let own = scene.beside("exec sleep 1000");
            let pid = if play.half == Half::Lacking { own.0.id() } else { scene.agent.pid() };
            scene.tries(&format!("kill -HUP {pid} || kill -TERM {pid} || kill -KILL {pid}"))
        },
    },
];

/// As much as a body may have.
const DEEP_BYTES: usize = 60 << 10;
const DEEP_READER: &str = "change::a_reader_goes_as_deep_as_it_is_let";

/// A part of an attempt, in a process of its own: what a reader without a bound comes to. By itself: what the product's comes to.
#[test]
fn a_reader_goes_as_deep_as_it_is_let() {
    fn depth(text: &mut std::slice::Iter<'_, u8>) -> usize {
        let frame = std::hint::black_box([0_u8; 256]);
        text.next().map_or(0, |byte| 1 + depth(text) + usize::from(frame[usize::from(*byte)]))
    }
    let text = "[".repeat(DEEP_BYTES);
    if std::env::var_os("METERD_ATTEMPT_DEEP").is_some() {
        assert_eq!(depth(&mut text.as_bytes().iter()), DEEP_BYTES);
    }
    assert!(meterd::domain::request::StartRequest::parse(&text).is_err());
}

fn starts(play: &Play, body: &str) -> bool {
    Scene::start(&play.lacks).tries(&format!("call POST /v1/jobs '{body}' | has '^201'"))
}

/// The folder of the spool below this one, where everybody may write.
fn open_spool(folder: &Path) -> std::path::PathBuf {
    let state = folder.join("state");
    let spool = state.join("spool");
    std::fs::create_dir_all(&spool).unwrap();
    open_to_all(&state, 0o711);
    open_to_all(&spool, 0o777);
    spool
}

/// A call of a hook's, to start the job `root-s` in this cgroup, written down by a user.
fn record(into: &Path, owner: u32, cgroup: &Path) -> std::path::PathBuf {
    let call = json!({ "spool": 1, "call": "start", "job": "root-s", "at_ms": 2,
        "body": { "job": "root-s", "account": "own", "cgroups": [cgroup] } });
    let file = into.join("0000000000000002-1-start.json");
    std::fs::write(&file, call.to_string()).unwrap();
    give(&file, owner);
    open_to_all(&file, 0o600);
    file
}

/// An agent that was away while something was planted in its spool, for this cgroup.
fn restarted(play: &Play, plant: impl FnOnce(&Path, &Path)) -> (Cgroup, Scene) {
    let cgroup = Cgroup::make();
    let mut scene = Scene::start(&play.lacks);
    scene.agent.kill();
    plant(&open_spool(scene.agent.folder.path()), &cgroup.dirs[0]);
    scene.agent.launch();
    (cgroup, scene)
}

fn is_made(scene: &Scene) -> bool {
    scene.agent.ask("GET", "/v1/jobs/root-s", None).0 == 200
}

/// Is the call made that was planted in the spool while the agent was away?
fn spooled(play: &Play, plant: impl FnOnce(&Path, &Path)) -> bool {
    let (_cgroup, scene) = restarted(play, plant);
    // Each look into the spool ends with a call that is made, or with a line in the log.
    scene.agent.wait_for("the spool is looked at", |agent| is_made(&scene) || agent.log().contains("spool_"));
    is_made(&scene)
}

fn as_user(command: &[&str]) {
    use std::os::unix::process::CommandExt as _;
    let status = std::process::Command::new(command[0]).args(&command[1..]).uid(ATTACKER).gid(ATTACKER).status().unwrap();
    assert!(status.success(), "{command:?}");
}

/// The most memory that the agent has had, in MiB.
fn peak_mib(scene: &Scene) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", scene.agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1_024
}

/// Does a crowd of connections keep this user from an answer?
fn keeps_out(play: &Play, limits: &str, user: u32, count: u32) -> bool {
    let scene = Scene::start(&play.lacks);
    if !limits.is_empty() {
        let status = std::process::Command::new("prlimit").arg("--pid").arg(scene.agent.pid().to_string()).arg(limits).status();
        assert!(status.unwrap().success());
    }
    let mut crowd = scene.beside(&format!("exec perl \"$D/crowd.pl\" \"$S\" {count} 1000"));
    assert!(crowd.line().starts_with("held "));
    std::thread::sleep(Duration::from_millis(500));
    let ask = "exec timeout 4 perl \"$D/call.pl\" \"$S\" GET /v1/status";
    let answer = scene.program(user, Path::new("/bin/sh")).args(["-c", ask]).output().unwrap();
    !String::from_utf8_lossy(&answer.stdout).starts_with("200")
}
