//! The Slurm hooks, run as slurmd runs them: no PATH, only Slurm's variables. A stub stands in for `meterctl` and prints its arguments.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use tempfile::TempDir;

const METERCTL: &str = "/usr/bin/meterctl";

/// What stands in for `meterctl`.
const PRINTS: &str = "#!/bin/sh\nfor word in \"$@\"; do printf '%s|' \"$word\"; done\n";
const FAILS: &str = "#!/bin/sh\nexit 3\n";
const HANGS: &str = "#!/bin/sh\nexec /bin/sleep 600\n";

/// A hook that calls the stub in the place of `/usr/bin/meterctl`.
fn hook(dir: &Path, name: &str, stub: &str) -> PathBuf {
    let stub_path = dir.join("meterctl");
    write_program(&stub_path, stub);
    let hook = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/slurm").join(name)).unwrap();
    assert!(hook.contains(METERCTL), "{name} calls meterctl by its absolute path");
    let path = dir.join(name);
    write_program(&path, &hook.replace(METERCTL, stub_path.to_str().unwrap()));
    path
}

fn write_program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn run(name: &str, stub: &str, variables: &[(&str, &str)]) -> Output {
    let dir = TempDir::new().unwrap();
    // Through the shell: a program just written may still be held open for writing by a neighbour's fork.
    let hook = hook(dir.path(), name, stub);
    Command::new("/bin/sh").arg(hook).env_clear().envs(variables.iter().copied()).output().unwrap()
}

fn words(name: &str, variables: &[(&str, &str)]) -> String {
    let output = run(name, PRINTS, variables);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_prolog_names_job_account_user_and_gpus() {
    let variables = [
        ("SLURM_JOB_ID", "4711"),
        ("SLURM_JOB_UID", "1001"),
        ("SLURM_JOB_USER", "alice"),
        ("SLURM_JOB_ACCOUNT", "physics"),
        ("SLURM_JOB_GPUS", "0,3"),
        ("SLURM_JOB_SLUID", "s5K1KKYAYG5D00"),
        ("SLURM_JOB_RESTART_COUNT", "0"),
    ];
    let expected =
        "job|start|--hook|--job|slurm:4711|--account|physics|--uid|1001|--slurm-job|4711|--slurm-sluid|s5K1KKYAYG5D00|--gpus|0,3|";
    assert_eq!(words("prolog.sh", &variables), expected);
}

#[test]
fn without_accounting_the_users_own_account_pays() {
    let variables = [("SLURM_JOB_ID", "7"), ("SLURM_JOB_UID", "1001"), ("SLURM_JOB_USER", "alice")];
    assert_eq!(words("prolog.sh", &variables), "job|start|--hook|--job|slurm:7|--account|alice|--uid|1001|--slurm-job|7|");
}

#[test]
fn a_requeued_job_has_another_name_at_both_ends() {
    let variables = [("SLURM_JOB_ID", "7"), ("SLURM_JOB_USER", "alice"), ("SLURM_JOB_UID", "1"), ("SLURM_JOB_RESTART_COUNT", "2")];
    assert!(words("prolog.sh", &variables).contains("|slurm:7.r2|"));
    assert_eq!(words("epilog.sh", &variables), "job|stop|--hook|slurm:7.r2|");
}

#[test]
fn a_job_on_several_nodes_is_a_gang_by_itself() {
    let said = |further: &[(&str, &str)]| {
        let job = [("SLURM_JOB_ID", "7"), ("SLURM_JOB_UID", "1"), ("SLURM_JOB_ACCOUNT", "lab")];
        words("prolog.sh", &job.iter().chain(further).copied().collect::<Vec<_>>())
    };
    let alone = "job|start|--hook|--job|slurm:7|--account|lab|--uid|1|--slurm-job|7|";
    let gang = |rest: &str| format!("{alone}--gang|{rest}");
    assert_eq!(said(&[("SLURM_JOB_NUM_NODES", "4")]), gang("slurm:7|--gang-attempt|0|--gang-size|4|"));
    assert_eq!(said(&[("SLURM_JOB_NUM_NODES", "12")]), gang("slurm:7|--gang-attempt|0|--gang-size|12|"));
    assert_eq!(said(&[("SLURM_NNODES", "2")]), gang("slurm:7|--gang-attempt|0|--gang-size|2|"));
    assert_eq!(said(&[("SLURM_JOB_NUM_NODES", "2"), ("SLURM_CLUSTER_NAME", "ada")]), gang("slurm:ada/7|--gang-attempt|0|--gang-size|2|"));
    for nodes in ["n[1-4]", "a,b", "rack1-n[01,07]"] {
        assert_eq!(said(&[("SLURM_JOB_NODELIST", nodes)]), gang("slurm:7|--gang-attempt|0|"), "{nodes}");
        assert_eq!(said(&[("SLURM_JOB_NODELIST", nodes), ("SLURM_JOB_NUM_NODES", "1")]), alone, "its own word goes first");
    }
    for one in [("SLURM_JOB_NUM_NODES", "1"), ("SLURM_NNODES", "1"), ("SLURM_JOB_NODELIST", "n1"), ("SLURM_JOB_NUM_NODES", "x4")] {
        assert_eq!(said(&[one]), alone, "{one:?}");
    }
    let again = said(&[("SLURM_JOB_NUM_NODES", "4"), ("SLURM_JOB_RESTART_COUNT", "2")]);
    assert!(again.contains("|slurm:7.r2|") && again.ends_with("--gang|slurm:7|--gang-attempt|2|--gang-size|4|"), "{again}");
}

#[test]
fn the_epilog_tells_the_exit_code_or_the_signal() {
    let ended = |code| words("epilog.sh", &[("SLURM_JOB_ID", "7"), ("SLURM_JOB_EXIT_CODE2", code)]);
    assert_eq!(ended("0:0"), "job|stop|--hook|slurm:7|--exit-code|0|");
    assert_eq!(ended("3:0"), "job|stop|--hook|slurm:7|--exit-code|3|");
    assert_eq!(ended("0:9"), "job|stop|--hook|slurm:7|--exit-code|137|");
}

#[test]
fn where_a_step_was_ended_by_a_signal_the_epilog_does_not_call_the_job_completed() {
    let ended = |steps| {
        let variables = [("SLURM_JOB_ID", "7"), ("SLURM_JOB_EXIT_CODE2", "0:0"), ("SLURM_JOB_DERIVED_EC", steps)];
        words("epilog.sh", &variables)
    };
    for cancelled in ["0:15", "0:9", "15", "9"] {
        assert_eq!(ended(cancelled), "job|stop|--hook|slurm:7|--outcome|unknown|", "{cancelled}");
    }
    // 256 is exit code 1, 4294967294 is what Slurm writes for none.
    for completed in ["0:0", "0", "1:0", "256", "4294967294", "", "?"] {
        assert_eq!(ended(completed), "job|stop|--hook|slurm:7|--exit-code|0|", "{completed}");
    }
}

#[test]
fn a_hook_ends_with_0_whatever_happens_and_drains_no_node() {
    for hook in ["prolog.sh", "epilog.sh"] {
        for (what, stub) in [("meterctl fails", FAILS), ("meterctl hangs", HANGS)] {
            let began = Instant::now();
            assert!(run(hook, stub, &[("SLURM_JOB_ID", "7")]).status.success(), "{hook}: {what}");
            println!("{hook}, {what}: ended after {:?}", began.elapsed());
        }
        assert!(run(hook, PRINTS, &[]).status.success(), "{hook}: no variable is set");
    }
}
