//! To get away: out of the job's cgroup, out of a freeze, from the agent's sight; or to have another stopped in one's place.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::scene::{ATTACKER, Cgroup, Scene, VICTIM, give};
use crate::{Attempt, Half, Play, Without, check, check_behind};

pub(crate) const ATTEMPTS: [Attempt; 9] = [
    Attempt {
        what: "leave the job's cgroup for another one",
        without: Without::Deployment("the folder above the job's cgroup, given to the user"),
        play: leave,
    },
    Attempt {
        what: "thaw one's own frozen job by hand",
        without: Without::Deployment("cgroup.freeze of the job's cgroup, given to the user"),
        play: |play| {
            let (scene, dir) = frozen(play);
            if play.half == Half::Lacking {
                give(&dir.join("cgroup.freeze"), ATTACKER);
            }
            let file = dir.display();
            let thawed = format!(
                "i=0; while [ $i -lt 200 ]; do echo 0 >{file}/cgroup.freeze && grep -q 'frozen 0' {file}/cgroup.events && exit 0; i=$((i+1)); done; exit 1"
            );
            scene.tries(&thawed)
        },
    },
    Attempt {
        what: "kill the process that meterctl run keeps above a process tree, and work on",
        without: Without::Deployment("a tree that is named by its pid, with nothing above it"),
        play: without_keeper,
    },
    Attempt {
        what: "make cgroups of one's own below the job's",
        without: Without::Deployment("the job's cgroup, given to the user"),
        play: |play| {
            let mut scene = Scene::start("");
            scene.run_as(ATTACKER, "own", "u64001-a", "exec sleep 1000");
            let dir = scene.made_for("u64001-a");
            if play.half == Half::Lacking {
                give(&dir, ATTACKER);
            }
            scene.tries(&format!("mkdir {}/mine", dir.display()))
        },
    },
    Attempt {
        what: "stop the agent's process, so that nothing is looked at",
        without: Without::Deployment("signals, for a process of one's own"),
        play: |play| {
            let scene = Scene::start("");
            let own = scene.beside("exec sleep 1000");
            let pid = if play.half == Half::Lacking { own.0.id() } else { scene.agent.pid() };
            scene.tries(&format!("kill -STOP {pid}"))
        },
    },
    Attempt {
        what: "run at real-time priority, so that the agent gets no CPU",
        without: Without::Deployment("a real-time priority, given by whoever started it"),
        play: |play| {
            // Who has it may keep it; nobody else gets it.
            let before = if play.half == Half::Lacking { "--fifo" } else { "--other" };
            let script = "exec chrt --fifo 50 true";
            let mut limited = std::process::Command::new("chrt");
            limited.args([
                before,
                if play.half == Half::Lacking { "50" } else { "0" },
                "setpriv",
                &format!("--reuid={ATTACKER}"),
                &format!("--regid={ATTACKER}"),
                "--clear-groups",
            ]);
            limited.args(["--inh-caps=-all", "/bin/sh", "-c", script]);
            limited.output().unwrap().status.success()
        },
    },
    Attempt {
        what: "name the agent's own cgroup as a job, to have the agent frozen",
        without: check_behind("OwnPlace", "HoldsAgent"),
        play: |play| {
            let cgroup = Cgroup::make();
            let scene = Scene::start(&play.lacks);
            for dir in &cgroup.dirs {
                std::fs::write(dir.join("cgroup.procs"), scene.agent.pid().to_string()).unwrap();
            }
            let body = json!({ "job": "u64001-a", "account": "own", "cgroups": cgroup.dirs });
            let started = scene.tries(&format!("call POST /v1/jobs '{body}' | has '^201'"));
            drop(scene); // before its cgroup
            started
        },
    },
    Attempt {
        what: "name the cgroup of the whole machine's services as one's own job",
        without: check("OwnPlace"),
        play: |play| {
            let cgroup = Cgroup::make();
            let body = json!({ "job": "u64001-a", "account": "own", "cgroups": cgroup.dirs });
            Scene::start(&play.lacks).tries(&format!("call POST /v1/jobs '{body}' | has '^201'"))
        },
    },
    Attempt {
        what: "put another cgroup of the same name in the place of one's frozen job, so that another is frozen",
        without: check("SameCgroup"),
        play: replaced,
    },
];

/// A job of the attacker's that ran out of credit, and its cgroup.
fn frozen(play: &Play) -> (Scene, std::path::PathBuf) {
    let mut scene = Scene::poor(&play.lacks);
    scene.run_as(ATTACKER, "own", "u64001-a", "while :; do :; done");
    let dir = scene.made_for("u64001-a");
    scene.agent.wait_for("it is frozen", |_| is_frozen(&dir));
    (scene, dir)
}

fn is_frozen(dir: &Path) -> bool {
    std::fs::read_to_string(dir.join("cgroup.events")).unwrap().contains("frozen 1")
}

fn leave(play: &Play) -> bool {
    let mut scene = Scene::start("");
    let script = "while ! [ -e \"$HOME/go\" ]; do sleep 0.05; done; echo $$ >\"$(cat \"$HOME/go\")/cgroup.procs\"; echo >\"$HOME/done\"; exec sleep 1000";
    scene.run_as(ATTACKER, "own", "u64001-a", script);
    let dir = scene.made_for("u64001-a");
    let above = dir.parent().unwrap();
    let other = above.join("other");
    std::fs::create_dir(&other).unwrap();
    if play.half == Half::Lacking {
        for file in [above.join("cgroup.procs"), other.join("cgroup.procs")] {
            give(&file, ATTACKER);
        }
    }
    let home = scene.agent.path("home");
    std::fs::write(home.join("where"), other.to_str().unwrap()).unwrap();
    std::fs::rename(home.join("where"), home.join("go")).unwrap();
    scene.agent.wait_for("it has tried", |_| home.join("done").exists());
    std::thread::sleep(Duration::from_millis(100));
    !Scene::pids(&other).is_empty()
}

/// A process tree on an agent that can make no cgroup. Its daemon leaves the session, kills what stands above it, and works on.
fn without_keeper(play: &Play) -> bool {
    let scene = Scene::start("");
    let own = scene.as_own_agent();
    let socket = scene.agent.path("home/run/meterd.sock");
    let ask = |path: &str, body| crate::agent::ask(&socket, "POST", path, Some(&body)).unwrap();
    ask("/v1/accounts", json!({ "account": "tree" }));
    ask("/v1/accounts/tree/topup", json!({ "amount": "100", "bucket": "paid", "payment": "tree" }));
    let perl = "use POSIX qw(setsid); my $above = $ARGV[0] || getppid; unless (fork) { setsid; unless (fork) { kill 9, $above; \
                1 while (times)[0] < 0.5; open my $out, q(>), qq($ENV{HOME}/worked); exit } POSIX::_exit(0) } sleep 1000";
    let mut task = if play.half == Half::Lacking {
        let mut task = scene.beside(&format!("read go; exec perl -e '{perl}' $$"));
        let pid = task.0.id();
        assert_eq!(ask("/v1/jobs", json!({ "job": "tree", "account": "tree", "process": { "pid": pid } })).0, 201);
        task.go();
        task
    } else {
        scene.beside(&format!("METERD_SOCKET=$HOME/run/meterd.sock exec \"$D/meterctl\" run --account tree --job tree -- perl -e '{perl}'"))
    };
    task.0.wait().unwrap();
    // Either it ends with its job, or it has half a second to work.
    let worked = scene.agent.path("home/worked");
    for _ in 0..(if play.half == Half::Lacking { 400 } else { 120 }) {
        std::thread::sleep(Duration::from_millis(if worked.exists() { 0 } else { 50 }));
    }
    let receipt = crate::agent::ask(&socket, "GET", "/v1/jobs/tree/receipt", None).unwrap().1;
    let billed_ns: u128 = receipt["segments"][0]["cpu_ns"].as_str().unwrap().parse().unwrap();
    drop(own);
    worked.exists() && billed_ns < 400_000_000
}

/// The job's cgroup lies in a folder of the user's. While the agent restarts, the user ends its frozen job, removes the cgroup, and makes
/// one of the same name, in which another's process then is.
fn replaced(play: &Play) -> bool {
    let cgroup = Cgroup::make();
    let mut scene = Scene::poor(&play.lacks);
    let dirs = cgroup.child("job");
    let mut burner = scene.beside("read go; while :; do :; done");
    for dir in &dirs {
        std::fs::write(dir.join("cgroup.procs"), burner.0.id().to_string()).unwrap();
    }
    scene.agent.done("POST", "/v1/jobs", Some(&json!({ "job": "measured", "account": "own", "uid": ATTACKER, "cgroups": dirs })));
    burner.go();
    scene.agent.wait_for("it is frozen", |_| is_frozen(&dirs[0]));
    scene.agent.kill();
    drop(burner);
    for dir in &dirs {
        while std::fs::remove_dir(dir).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::fs::create_dir(dir).unwrap();
    }
    let innocent = std::process::Command::new("sleep").arg("1000").uid(VICTIM).gid(VICTIM).spawn().unwrap();
    let innocent = crate::scene::Running(innocent);
    for dir in &dirs {
        std::fs::write(dir.join("cgroup.procs"), innocent.0.id().to_string()).unwrap();
    }
    scene.agent.launch();
    // Within a few ticks the agent knows what has become of the job: it has ended, or stands frozen.
    scene.agent.wait_for("the job is known again", |_| is_frozen(&dirs[0]) || scene.job("measured")["phase"] != "frozen");
    std::thread::sleep(Duration::from_millis(300));
    is_frozen(&dirs[0])
}
