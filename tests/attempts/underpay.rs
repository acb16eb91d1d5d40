//! To pay less than was used: what the agent does not see, or not in time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::scene::{ATTACKER, Cgroup, Running, Scene, give};
use crate::{Attempt, Half, Play, Without, check, support};

pub(crate) const ATTEMPTS: [Attempt; 11] = [
    Attempt {
        what: "work in a storm of processes that each live for some milliseconds",
        without: Without::Deployment("metered as a process tree, not by its cgroup"),
        play: |play| {
            tree_or_cgroup(
                play,
                "$SIG{CHLD} = \"IGNORE\"; for (1 .. 200) { unless (fork) { 1 while (times)[0] < 0.01; exit } pause(0.01) } pause(0.5)",
            )
        },
    },
    Attempt {
        what: "fork twice, leave the session, and work on as a daemon",
        without: Without::Deployment("metered as a process tree, not by its cgroup"),
        play: |play| {
            let daemon = "unless (fork) { setsid(); unless (fork) { 1 while (times)[0] < 1.5; exit } POSIX::_exit(0) } wait; pause(0.3)";
            tree_or_cgroup(play, daemon)
        },
    },
    Attempt {
        what: "work in a fork bomb whose parents end before their children",
        without: Without::Deployment("metered as a process tree, not by its cgroup"),
        play: |play| {
            let bomb = "sub bomb { my $depth = shift; return unless $depth; for (1, 2) { unless (fork) { setsid(); bomb($depth - 1); 1 while (times)[0] < 0.01; POSIX::_exit(0) } } } bomb(6)";
            tree_or_cgroup(play, bomb)
        },
    },
    Attempt {
        what: "fork and end as fast as the machine can, with as many processes as one may have",
        without: Without::Deployment("metered as a process tree, not by its cgroup"),
        play: fork_bomb,
    },
    Attempt {
        what: "keep memory in files of a tmpfs",
        without: Without::Deployment("metered as a process tree, not by its cgroup"),
        play: tmpfs,
    },
    Attempt { what: "have memory only between the looks", without: check("UnforeseenLooks"), play: between_looks },
    Attempt {
        what: "move to another cgroup and work there",
        without: Without::Deployment("the folder above the job's cgroup, given to the user"),
        play: |play| {
            let cgroup = Cgroup::make();
            let (job, other) = (cgroup.child("job"), cgroup.child("other"));
            if play.half == Half::Lacking {
                for dir in cgroup.dirs.iter().chain(&other) {
                    give(&dir.join("cgroup.procs"), ATTACKER);
                }
            }
            let moves: Vec<String> = other.iter().map(|dir| format!("echo $$ >{}/cgroup.procs", dir.display())).collect();
            let moves = moves.join("; ");
            let work = "perl -e '1 while (times)[0] < 1'";
            underbilled(&cgroup, &format!("read go; {moves}; {work}"), &job, |_| json!({ "cgroups": job }))
        },
    },
    Attempt {
        what: "move to another cgroup of the memory controller alone (v1)",
        without: Without::Deployment("a cgroup of the memory controller, given to the user"),
        play: other_memory,
    },
    Attempt {
        what: "freeze one's own job by its cgroup, and hold its memory for nothing",
        without: Without::Deployment("frozen by the agent, for want of credit"),
        play: |play| stands_still(play, &["cgroup.freeze"]),
    },
    Attempt {
        what: "stop every process of one's own job, and hold its memory for nothing",
        without: Without::Deployment("frozen by the agent, for want of credit"),
        play: |play| stands_still(play, &[]),
    },
    Attempt {
        what: "report the job as ended and work on",
        without: check("UntilEmpty"),
        play: |play| {
            let mut scene = Scene::start(&play.lacks);
            scene.run_as(ATTACKER, "own", "u64001-a", "while :; do :; done");
            assert!(scene.tries("call POST /v1/jobs/u64001-a/stop '{\"outcome\":\"completed\"}' | has '^200'"));
            let cpu = |scene: &Scene| scene.job("u64001-a")["cpu_ns"].as_str().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
            let before = cpu(&scene);
            // It burns a core: as long as it is metered its counter goes on.
            let unmetered = |scene: &Scene| scene.job("u64001-a")["phase"] == "ended";
            scene.agent.wait_for("it is metered on, or not", |_| before + 100_000_000 < cpu(&scene) || unmetered(&scene));
            unmetered(&scene)
        },
    },
];

const PERL: &str = "use strict; use warnings; use POSIX qw(setsid); sub pause { select undef, undef, undef, $_[0] }";

/// Runs a program in a cgroup whose counter tells the truth, metered by that cgroup or only as a process tree.
fn tree_or_cgroup(play: &Play, perl: &str) -> bool {
    let cgroup = Cgroup::make();
    let dirs = cgroup.dirs.clone();
    underbilled(&cgroup, &format!("read go; perl -e '{PERL} {perl}'"), &dirs, |pid| {
        if play.half == Half::Lacking { json!({ "process": { "pid": pid } }) } else { json!({ "cgroups": dirs }) }
    })
}

/// Two hundred processes at most, for ten seconds at most. By its cgroup it is billed to the last nanosecond, and the ticks go on meanwhile.
fn fork_bomb(play: &Play) -> bool {
    let cgroup = Cgroup::make();
    let dirs = cgroup.dirs.clone();
    let script = "read go; exec prlimit --nproc=200 perl \"$D/bomb.pl\" 150 10 \"$HOME/enough\"";
    let place = |pid| if play.half == Half::Lacking { json!({ "process": { "pid": pid } }) } else { json!({ "cgroups": dirs }) };
    let billed = billed(&cgroup, script, &dirs, place, |scene| {
        let ticks = || {
            let agent = &scene.agent.done("GET", "/v1/status", None)["agent"];
            ["tick_count", "tick_missed_count"].map(|count| agent[count].as_u64().unwrap())
        };
        let before = ticks();
        scene.agent.wait_for("the ticks go on", |_| before[0] + 4 <= ticks()[0]);
        let (after, running) = (ticks(), Scene::pids(&cgroup.dirs[0]).len());
        println!("  {} ticks, {} left out; {running} processes at once", after[0] - before[0], after[1] - before[1]);
        std::fs::write(scene.agent.path("home/enough"), "").unwrap();
    });
    if play.half == Half::Defended {
        assert_eq!(billed.billed_ns, billed.used_ns, "by its cgroup it is billed to the last nanosecond");
    }
    billed.is_less()
}

/// What a job used by the kernel's counter, and what it was billed.
struct Billed {
    used_ns: u128,
    billed_ns: u128,
}

impl Billed {
    /// Was less billed than four fifths?
    fn is_less(&self) -> bool {
        self.billed_ns * 5 < self.used_ns * 4
    }
}

/// Runs a script in these cgroups as a job of that place. Was less billed than four fifths of what `truth` counted? By its own cgroup a
/// job is billed to the nanosecond.
fn underbilled(truth: &Cgroup, script: &str, dirs: &[PathBuf], place: impl FnOnce(u32) -> Value) -> bool {
    billed(truth, script, dirs, place, |_| ()).is_less()
}

/// The same, with something to do `meanwhile`.
fn billed(truth: &Cgroup, script: &str, dirs: &[PathBuf], place: impl FnOnce(u32) -> Value, meanwhile: impl FnOnce(&Scene)) -> Billed {
    let scene = Scene::start("");
    let mut task = scene.beside(script);
    let pid = task.0.id();
    enter(&task, dirs);
    scene.agent.wait_for("it waits for its word", |_| {
        let at = truth.cpu_ns();
        std::thread::sleep(Duration::from_millis(200));
        at == truth.cpu_ns()
    });
    let before = truth.cpu_ns();
    let mut body = place(pid);
    body["job"] = json!("measured");
    body["account"] = json!("own");
    scene.agent.done("POST", "/v1/jobs", Some(&body));
    task.go();
    meanwhile(&scene);
    scene.agent.wait_for("it has ended", |_| {
        let events = std::fs::read_to_string(truth.dirs[0].join("cgroup.events")).unwrap();
        events.contains("populated 0")
    });
    scene.agent.ask("POST", "/v1/jobs/measured/stop", Some(&json!({ "outcome": "completed" })));
    scene.agent.wait_for("the receipt is final", |agent| agent.done("GET", "/v1/jobs/measured/receipt", None)["state"] == "final");
    let receipt = scene.agent.done("GET", "/v1/jobs/measured/receipt", None);
    let segments = receipt["segments"].as_array().unwrap();
    let billed_ns: u128 = segments.iter().map(|segment| segment["cpu_ns"].as_str().unwrap().parse::<u128>().unwrap()).sum();
    let used_ns = truth.cpu_ns() - before;
    assert!(used_ns > 200_000_000, "it worked: {used_ns} ns");
    println!("  used {used_ns} ns, billed {billed_ns} ns");
    Billed { used_ns, billed_ns }
}

/// Stands still with 64 MiB, by the agent's hand or by its own. Is it charged for no memory meanwhile? Given are files of its cgroup; without
/// any it is a process tree, and stops by SIGSTOP.
fn stands_still(play: &Play, given: &[&str]) -> bool {
    let scene = if play.half == Half::Lacking { Scene::poor("") } else { Scene::start("") };
    let hold = "my $x = qq(x) x 67108864; ";
    let burn = if play.half == Half::Lacking { "1 while 1" } else { "sleep 1000" };
    let cgroup = Cgroup::make();
    let mut task = scene.beside(&format!("read go; exec perl -e '{hold}{burn}'"));
    let place = if given.is_empty() { json!({ "pid": task.0.id() }) } else { json!(cgroup.dirs) };
    if !given.is_empty() {
        enter(&task, &cgroup.dirs);
    }
    for file in given {
        give(&cgroup.dirs[0].join(file), ATTACKER);
    }
    let key = if given.is_empty() { "process" } else { "cgroups" };
    scene.agent.done("POST", "/v1/jobs", Some(&json!({ "job": "measured", "account": "own", key: place })));
    task.go();
    scene.agent.wait_for("it has its memory", |_| 60 <= memory_mib(&scene, "measured"));
    if play.half == Half::Defended {
        let stop = given
            .first()
            .map_or_else(|| format!("kill -STOP {}", task.0.id()), |file| format!("echo 1 >{}/{file}", cgroup.dirs[0].display()));
        assert!(scene.tries(&stop));
    }
    scene.agent.wait_for("it stands still", |_| scene.job("measured")["phase"] == "frozen");
    let billed = || {
        let receipt = scene.agent.done("GET", "/v1/jobs/measured/receipt", None);
        receipt["segments"][0]["memory_charged_byte_ns"].as_str().unwrap().parse::<u128>().unwrap()
    };
    // What was before is counted by the look that finds it still.
    std::thread::sleep(Duration::from_millis(1_500));
    let before = billed();
    std::thread::sleep(Duration::from_secs(4));
    billed() - before < (60 << 20) * 1_000_000_000
}

fn enter(task: &Running, dirs: &[PathBuf]) {
    for dir in dirs {
        std::fs::write(dir.join("cgroup.procs"), task.0.id().to_string()).unwrap();
    }
}

fn memory_mib(scene: &Scene, job: &str) -> u64 {
    scene.job(job)["memory_bytes"].as_u64().unwrap_or(0) >> 20
}

fn tmpfs(play: &Play) -> bool {
    let cgroup = Cgroup::make();
    let scene = Scene::start("");
    let file = Path::new("/dev/shm").join(format!("meterd-attempt-{}-{:?}", std::process::id(), play.half));
    let mut task = scene.beside(&format!("read go; head -c 67108864 /dev/zero >{0}; chmod 644 {0}; exec sleep 1000", file.display()));
    enter(&task, &cgroup.dirs);
    let place = if play.half == Half::Lacking { json!({ "pid": task.0.id() }) } else { json!(cgroup.dirs) };
    let key = if play.half == Half::Lacking { "process" } else { "cgroups" };
    scene.agent.done("POST", "/v1/jobs", Some(&json!({ "job": "measured", "account": "own", key: place })));
    task.go();
    scene.agent.wait_for("the file is there", |_| std::fs::metadata(&file).is_ok_and(|file| file.len() == 67_108_864));
    let unseen = if play.half == Half::Lacking {
        std::thread::sleep(Duration::from_millis(2_500));
        memory_mib(&scene, "measured") < 32
    } else {
        scene.agent.wait_for("the file is billed", |_| 60 <= memory_mib(&scene, "measured"));
        false
    };
    std::fs::remove_file(&file).unwrap();
    unseen
}

/// The user learns from the public counters when the agent looks, and frees its memory for four tenths of a second around that.
fn between_looks(play: &Play) -> bool {
    const HELD_MIB: u128 = 160;
    let cgroup = Cgroup::make();
    let scene = Scene::start(&play.lacks);
    let script = format!("read go; exec perl \"$D/memory.pl\" \"$S\" {HELD_MIB} 16");
    let mut task = scene.beside(&script);
    enter(&task, &cgroup.dirs);
    task.go();
    // The job begins when it knows enough.
    std::thread::sleep(Duration::from_millis(7_500));
    scene.agent.done("POST", "/v1/jobs", Some(&json!({ "job": "measured", "account": "own", "cgroups": cgroup.dirs })));
    let had_permille: u128 = task.line().parse().unwrap();
    scene.agent.ask("POST", "/v1/jobs/measured/stop", Some(&json!({ "outcome": "completed" })));
    scene.agent.wait_for("the receipt is final", |agent| agent.done("GET", "/v1/jobs/measured/receipt", None)["state"] == "final");
    let receipt = scene.agent.done("GET", "/v1/jobs/measured/receipt", None);
    let number = |key: &str| receipt["segments"][0][key].as_str().unwrap().parse::<u128>().unwrap();
    let billed_mib = (number("memory_charged_byte_ns") / number("running_ns").max(1)) >> 20;
    let had_mib = HELD_MIB * had_permille / 1_000;
    println!("  had {had_mib} MiB on average, billed {billed_mib} MiB");
    assert!(HELD_MIB / 4 < had_mib, "it had its memory for {had_permille} thousandths of the time");
    // The program itself has some MiB, and one unlucky look of sixteen is not much.
    billed_mib < 12 + HELD_MIB / 16
}

fn other_memory(play: &Play) -> bool {
    let hybrid = Path::new("/sys/fs/cgroup/memory/cgroup.procs").exists();
    if support::need("hybrid cgroups", if hybrid { Ok(()) } else { Err("the memory controller is in cgroup2".to_owned()) }).is_none() {
        return play.half == Half::Lacking;
    }
    let cgroup = Cgroup::make();
    let (job, other) = (cgroup.child("job"), cgroup.child("other"));
    if play.half == Half::Lacking {
        give(&other[1].join("cgroup.procs"), ATTACKER);
    }
    let scene = Scene::start("");
    let mut task = scene.beside(&format!(
        "read go; echo $$ >{}/cgroup.procs; exec perl -e '$| = 1; my $x = \"x\" x 67108864; print \"has\\n\"; sleep 1000'",
        other[1].display()
    ));
    enter(&task, &job);
    scene.agent.done("POST", "/v1/jobs", Some(&json!({ "job": "measured", "account": "own", "cgroups": job })));
    task.go();
    assert_eq!(task.line(), "has");
    if play.half == Half::Lacking {
        std::thread::sleep(Duration::from_millis(2_500));
        return memory_mib(&scene, "measured") < 32;
    }
    scene.agent.wait_for("its memory is billed", |_| 60 <= memory_mib(&scene, "measured"));
    false
}
