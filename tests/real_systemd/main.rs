//! The units under the real systemd: a machine of its own is booted for each test (`machine.rs`), meterd is installed in it as the README
//! says, and what happens is asked of `systemctl`, `journalctl`, `meterctl` and the kernel.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod authority;
#[path = "../fleet/certs.rs"]
#[expect(dead_code, reason = "one test takes what it needs")]
mod certs;
mod job;
mod machine;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::time::Duration;

use job::{CARD, Job, nano};
use machine::{Machine, text};
use serde_json::Value;

/// Asks at the status page's port.
const PAGE: &str = "bash -c 'exec 3<>/dev/tcp/127.0.0.1/9464; printf \"GET /healthz HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3'";

/// The README's steps on a node, as they stand there.
fn steps() -> Vec<String> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let section = readme.split("\n## On a node\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let steps: Vec<String> = section.lines().filter_map(|line| line.strip_prefix("    ")).map(str::to_owned).collect();
    assert!(10 <= steps.len(), "{steps:?}");
    steps
}

/// A machine with meterd installed, enabled and not started, which enforces and prices CPU time alone; `change` are lines of `sed` for its
/// configuration.
fn installed(change: &str) -> Option<Machine> {
    let machine = Machine::boot()?;
    for step in steps().iter().take_while(|step| !step.contains("meterctl generate")) {
        machine.done(step);
    }
    machine.write("/etc/meterd/ratecard.toml", CARD);
    machine.done(&format!("sed -i -e 's/^enforcement = \"observe\"/enforcement = \"enforce\"/' {change} /etc/meterd/meterd.toml"));
    machine.done("systemctl daemon-reload && systemctl enable meterd.service");
    Some(machine)
}

/// The same, started, and with credit on the account `rich`.
fn started(change: &str) -> Option<Machine> {
    let machine = installed(change)?;
    machine.done("systemctl start meterd.service");
    machine.done("meterctl account create rich && meterctl account topup rich 1000000");
    Some(machine)
}

fn active(machine: &Machine) -> String {
    machine.property("meterd.service", "ActiveState")
}

fn main_pid(machine: &Machine) -> u32 {
    machine.property("meterd.service", "MainPID").parse().unwrap()
}

/// The message of a state, if it is raised.
fn alarm(machine: &Machine, name: &str) -> Option<String> {
    let status = machine.document("meterctl status --output json");
    let found = status["alarms"].as_array().unwrap().iter().find(|alarm| alarm["code"] == name)?;
    Some(found["message"].as_str().unwrap().to_owned())
}

/// Waits until another process than `before` is the agent, and ready.
fn wait_for_another(machine: &Machine, before: u32) {
    machine.wait_for("another agent is ready", |machine| ![0, before].contains(&main_pid(machine)) && active(machine) == "active");
}

/// Ends the job, and checks that what it cost was taken from its account once.
fn end_paid_once(machine: &Machine, job: Job<'_>) -> Value {
    let receipt = job.end();
    let settled = |machine: &Machine| nano(&machine.document("meterctl account show rich --output json")["authority"]["settled"]);
    machine.wait_for("the charge is settled", |machine| settled(machine) == nano(&receipt["charge"]));
    receipt
}

#[test]
fn the_steps_of_the_readme_install_the_agent_and_start_it_and_its_sockets() {
    let Some(machine) = Machine::boot() else { return };
    for step in steps() {
        let output = machine.tries(&step);
        println!("# {step}\n{}\n{}", text(&output.stdout), text(&output.stderr));
        // The doctor ends with 4 where it has something to say of this machine.
        let advises = step.contains("meterctl doctor") && output.status.code() == Some(4);
        assert!(output.status.success() || advises, "{step}: {}: {}", output.status, text(&output.stderr));
    }
    for unit in ["meterd.service", "meterd.socket", "meterd-status.socket"] {
        machine.done(&format!("systemctl is-active {unit} && systemctl is-enabled {unit}"));
    }
    machine.wait_for("the agent is ready", |machine| machine.done("meterctl status").starts_with("meterd is ready\n"));
    let status = machine.done("meterctl status");
    assert!(status.contains("unified: "), "{status}");
    let found = machine.tries_text("meterctl doctor");
    for wrong in ["unit_", "socket_", "program_absent", "no_systemd", "agent_"] {
        assert!(!found.contains(wrong), "{wrong}: {found}");
    }
    machine.wait_for("the status page answers", |machine| machine.done(PAGE).contains(" 200 OK"));
}

#[test]
fn a_start_returns_when_the_agent_is_ready_and_the_first_call_at_either_socket_starts_it() {
    let Some(machine) = installed("") else { return };
    machine.done("systemctl start meterd.socket meterd-status.socket");
    assert_eq!(active(&machine), "inactive", "nobody has called yet");
    // It is answered while the agent starts, before the first tick.
    machine.document("meterctl status --output json");
    machine.wait_for("the call has started it", |machine| active(machine) == "active");
    machine.done("systemctl stop meterd.service");
    assert_eq!(active(&machine), "inactive");
    assert!(machine.done(PAGE).starts_with("HTTP/1."));
    machine.wait_for("the status page's socket has started it too", |machine| active(machine) == "active");
    machine.done("systemctl stop meterd.service");
    // Not a moment between the two: what `start` waits for is all that there is.
    let ready = "systemctl start meterd.service && systemctl show --value --property=StatusText meterd.service && meterctl status";
    let said = machine.done(ready);
    assert!(said.starts_with("metering\n") && !said.contains("no_picture"), "{said}");
}

#[test]
fn under_the_units_sandbox_jobs_are_counted_frozen_and_thawed_and_the_sites_command_runs_as_another() {
    let notice = "-e 's|^command = \\[\\]|command = [\"/bin/sh\", \"-c\", \"echo $METERD_EVENT by $(id -un) >>/tmp/notices\"]|'";
    let Some(machine) = started(notice) else { return };
    machine.done("meterctl account create short && meterctl account topup short 0.1");
    let mut run = machine.command("exec meterctl run --account short --job burner -- sh -c 'while :; do :; done'").spawn().unwrap();
    let phase = |machine: &Machine| machine.tries_text("meterctl receipt burner --output json | grep -o '\"phase\": *\"[a-z]*\"'");
    let frozen = |machine: &Machine| {
        let made = std::fs::read_dir(machine.cgroup.join("meterd")).into_iter().flatten().flatten();
        let burner = made.map(|entry| entry.path()).find(|path| path.file_name().unwrap().to_string_lossy().starts_with("burner"));
        burner.is_some_and(|dir| std::fs::read_to_string(dir.join("cgroup.events")).unwrap().contains("frozen 1"))
    };
    machine.wait_for("the job is frozen", |machine| frozen(machine) && phase(machine).contains("frozen"));
    machine.done("meterctl account topup short 1000");
    machine.wait_for("the job goes on", |machine| !frozen(machine) && phase(machine).contains("running"));
    let notices = "cat /tmp/systemd-private-*-meterd.service-*/tmp/notices";
    machine.wait_for("notices were given", |machine| {
        let said = machine.tries_text(notices);
        said.contains("frozen by nobody") && said.contains("thawed by nobody")
    });
    std::fs::write(machine.cgroup.join("meterd/cgroup.kill"), "1").unwrap();
    run.wait().unwrap();
    machine.wait_for("its receipt is final", |machine| machine.document("meterctl receipt burner --output json")["state"] == "final");
    let jobs: Vec<Job<'_>> = (0..2).map(|nth| Job::start(&machine, &format!("job-{nth}"), "rich")).collect();
    jobs.iter().for_each(Job::is_counted_on);
    for job in jobs {
        job.end();
    }
    let denied =
        "journalctl --no-pager --output=cat | grep -i -e 'operation not permitted' -e 'permission denied' -e 'read-only file system'";
    assert_eq!(text(&machine.tries(denied).stdout), "", "what the unit forbids the agent does not need");
}

/// A drop-in shortens the watchdog's time, so that the test takes seconds; all else is the unit as it is shipped.
#[test]
fn a_stopped_agent_is_ended_by_the_watchdog_and_the_next_one_says_so_and_charges_the_time_between_once() {
    let Some(machine) = installed("") else { return };
    machine.write("/etc/systemd/system/meterd.service.d/test.conf", "[Service]\nWatchdogSec=10s\n");
    machine.done("systemctl daemon-reload && systemctl start meterd.service");
    machine.done("meterctl account create rich && meterctl account topup rich 1000000");
    let job = Job::start(&machine, "job", "rich");
    job.is_counted_on();
    let before = main_pid(&machine);
    machine.done(&format!("kill -s STOP {before}"));
    let counted = job.used_ns();
    wait_for_another(&machine, before);
    let unseen = job.used_ns() - counted;
    assert!(!job.is_frozen() && 0 < unseen, "the job ran on without an agent");
    job.runs_on();
    let message = alarm(&machine, "watchdog").expect("the agent says what happened");
    println!("{}\n{message}", machine.done("meterctl status"));
    assert_eq!(alarm(&machine, "crashed"), None, "it is told by one name");
    let journal = machine.journal("meterd.service");
    assert!(journal.contains("Watchdog timeout") && journal.contains("alarm=\"watchdog\""), "{journal}");
    job.is_counted_on();
    let receipt = end_paid_once(&machine, job);
    println!("{unseen} ns of {} were used while nobody looked", receipt["segments"][0]["cpu_ns"]);
}

#[test]
fn five_kills_are_a_crash_loop_that_names_the_signal_and_systemd_starts_it_each_time() {
    let Some(machine) = started("") else { return };
    let job = Job::start(&machine, "job", "rich");
    for nth in 1..=5 {
        let before = main_pid(&machine);
        machine.done("systemctl kill --kill-whom=main --signal=KILL meterd.service");
        wait_for_another(&machine, before);
        let message = alarm(&machine, "crashed").unwrap();
        assert!(message.contains("SIGKILL"), "{nth}: {message}");
        job.is_counted_on();
    }
    println!("{}", machine.done("meterctl status"));
    assert!(alarm(&machine, "crash_loop").is_some());
    end_paid_once(&machine, job);
}

#[test]
fn a_reload_a_restart_an_upgrade_and_a_stop_leave_jobs_running_and_charge_nothing_twice() {
    let Some(machine) = started("") else { return };
    let job = Job::start(&machine, "job", "rich");
    let first = main_pid(&machine);
    let mode = |machine: &Machine| machine.document("meterctl status --output json")["enforcement"].as_str().unwrap_or_default().to_owned();

    machine.done("sed -i 's/^enforcement = .*/enforcement = \"notify\"/' /etc/meterd/meterd.toml && systemctl reload meterd.service");
    machine.wait_for("the new mode is in force", |machine| mode(machine) == "notify");
    machine.done("cp /etc/meterd/meterd.toml /etc/meterd/good && sed -i '1i enforcment = \"observe\"' /etc/meterd/meterd.toml");
    let refused = machine.tries("systemctl reload meterd.service");
    assert!(!refused.status.success(), "a file with a mistake fails the reload");
    let journal = machine.journal("meterd.service");
    assert!(journal.contains("meterd.toml:1:") && journal.contains("did you mean enforcement?"), "{journal}");
    assert_eq!(
        (active(&machine).as_str(), main_pid(&machine), mode(&machine).as_str()),
        ("active", first, "notify"),
        "it goes on as it was"
    );
    machine.done("mv /etc/meterd/good /etc/meterd/meterd.toml && systemctl reload meterd.service");

    machine.done("systemctl restart meterd.service");
    let second = main_pid(&machine);
    assert_ne!(first, second);
    job.is_counted_on();

    // A build that differs from the one that runs.
    machine.done("cp /usr/bin/meterd /tmp/newer && echo >>/tmp/newer && install -m 755 /tmp/newer /usr/bin/meterd");
    assert!(!machine.tries(&format!("cmp -s /proc/{second}/exe /usr/bin/meterd")).status.success());
    machine.done("systemctl restart meterd.service");
    machine.done(&format!("cmp /proc/{}/exe /usr/bin/meterd", main_pid(&machine)));
    job.is_counted_on();

    machine.done("systemctl stop meterd.service");
    job.runs_on();
    assert_eq!((active(&machine).as_str(), job.is_frozen()), ("inactive", false));
    job.is_counted_on();
    machine.wait_for("who called has started it: systemd holds the socket", |machine| active(machine) == "active");

    machine.done("systemctl stop meterd.socket meterd-status.socket meterd.service");
    job.runs_on();
    let nobody = machine.tries("meterctl status");
    assert_eq!(nobody.status.code(), Some(3), "with the sockets it stays stopped: {}", text(&nobody.stderr));
    assert_eq!((active(&machine).as_str(), job.is_frozen()), ("inactive", false));
    machine.done("systemctl start meterd.service");
    machine.done("systemctl is-active meterd.socket meterd-status.socket");
    job.is_counted_on();
    for name in ["crashed", "watchdog", "crash_loop", "journal_set_aside"] {
        assert_eq!(alarm(&machine, name), None);
    }
    end_paid_once(&machine, job);
}

#[test]
fn with_a_mistake_in_its_configuration_it_ends_once_says_what_is_wrong_and_starts_when_that_is_mended() {
    let Some(machine) = started("") else { return };
    let job = Job::start(&machine, "job", "rich");
    machine.done("cp /etc/meterd/meterd.toml /etc/meterd/good && sed -i '1i enforcment = \"observe\"' /etc/meterd/meterd.toml");
    assert!(!machine.tries("systemctl restart meterd.service").status.success());
    let restarts = machine.property("meterd.service", "NRestarts");
    // Longer than RestartSec=.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(active(&machine), "failed");
    assert_eq!(machine.property("meterd.service", "NRestarts"), restarts, "it is not started again");
    let told = machine.tries_text("systemctl status --no-pager --full meterd.service");
    println!("{told}");
    assert!(told.contains("status=78/CONFIG") && told.contains("meterd.toml:1:") && told.contains("did you mean enforcement?"), "{told}");
    job.runs_on();

    // Who calls has it started once more, is told at once, and leaves nothing at the sockets that would start it again.
    let starts = |machine: &Machine| machine.journal("meterd.service").matches("Starting meterd.service").count();
    let before = starts(&machine);
    for _ in 0..2 {
        let asked = machine.tries("meterctl status");
        assert_eq!(asked.status.code(), Some(3), "{}", text(&asked.stderr));
        println!("{}", text(&asked.stderr));
        machine.tries(PAGE);
    }
    machine.wait_for("it rests", |machine| {
        let seen = (active(machine), starts(machine));
        std::thread::sleep(Duration::from_secs(3));
        seen.0 == "failed" && seen == (active(machine), starts(machine))
    });
    let after = starts(&machine);
    println!("{} starts for 4 calls", after - before);
    // A call that comes while the one before is being turned away can cost one more.
    assert!(after <= before + 8, "{after} starts");
    machine.done("systemctl is-active meterd.socket meterd-status.socket");
    assert!(!job.is_frozen());

    machine.done("mv /etc/meterd/good /etc/meterd/meterd.toml && systemctl start meterd.service");
    machine.done("systemctl is-active meterd.service meterd.socket meterd-status.socket");
    job.is_counted_on();
    end_paid_once(&machine, job);
}
