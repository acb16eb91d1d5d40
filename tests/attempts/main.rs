//! Attempts by another user of the node to see, change, escape or pay less: each a script or program under another uid against the
//! running agent on real cgroups. Each is played twice: without the one defence that it is to fail by, where it must succeed, and
//! with it, where it must fail. So no attempt fails for a mistake of its own.
//!
//! What is taken away is either a check of the product ([`Without::Check`], see `src/node/defence.rs`) or the kernel's own, by a
//! weaker deployment ([`Without::Deployment`]: folders and cgroups given to the user, an agent that runs as the user).

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "../support/agent.rs"]
#[expect(dead_code, reason = "an attempt starts its agent in its own way")]
mod agent;
mod change;
mod escape;
mod scene;
mod see;
#[path = "../stub_nvml/mod.rs"]
#[expect(dead_code, reason = "one attempt takes what it needs of the stub")]
mod stub_nvml;
#[path = "../support/mod.rs"]
mod support;
mod underpay;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// One attempt.
struct Attempt {
    /// What is tried.
    what: &'static str,
    /// What it succeeds without.
    without: Without,
    /// Did it succeed?
    play: fn(&Play) -> bool,
}

/// What is missing in the first half of an attempt.
enum Without {
    /// A check of the agent's, by its name; `staged` are others that are missing in both halves, since they would hide it.
    Check { name: &'static str, staged: &'static str },
    /// A right that the user is given in the first half.
    Deployment(&'static str),
}

const fn check(name: &'static str) -> Without {
    Without::Check { name, staged: "" }
}

const fn check_behind(staged: &'static str, name: &'static str) -> Without {
    Without::Check { name, staged }
}

/// Which half is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Lacking,
    Defended,
}

/// One half of an attempt.
struct Play {
    half: Half,
    /// For the agent: the checks that it lacks, by name.
    lacks: String,
}

impl Attempt {
    fn half(&self, half: Half) -> Result<bool, String> {
        let lacks = match (&self.without, half) {
            (Without::Check { name, staged }, Half::Lacking) => format!("{staged},{name}"),
            (Without::Check { staged, .. }, Half::Defended) => (*staged).to_owned(),
            (Without::Deployment(_), _) => String::new(),
        };
        let play = Play { half, lacks };
        catch_unwind(AssertUnwindSafe(|| (self.play)(&play))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
        })
    }

    /// Nothing, or why the attempt shows nothing.
    fn shows(&self) -> Result<(), String> {
        // A machine under load can spoil an attempt; that it never succeeds it cannot.
        let mut first = Ok(false);
        for _ in 0..3 {
            first = self.half(Half::Lacking);
            if first == Ok(true) {
                break;
            }
        }
        if first != Ok(true) {
            return Err(format!("it does not succeed without its defence: {first:?}"));
        }
        match self.half(Half::Defended) {
            Ok(false) => Ok(()),
            second => Err(format!("IT SUCCEEDS: {second:?}")),
        }
    }
}

/// Plays a table, and names every row that does not show what it is to show. `METERD_ATTEMPT` chooses rows by a part of their text.
fn play(kind: &str, rows: &[Attempt]) {
    if support::need("kernel", scene::possible()).is_none() {
        return;
    }
    let wanted = std::env::var("METERD_ATTEMPT").unwrap_or_default();
    let mut wrong = Vec::new();
    for row in rows.iter().filter(|row| row.what.contains(&wanted)) {
        let without = match &row.without {
            Without::Check { name, .. } => format!("the check {name}"),
            Without::Deployment(what) => format!("the kernel's: {what}"),
        };
        let shown = row.shows();
        let verdict = if shown.is_ok() { "fails" } else { "SHOWS NOTHING" };
        println!("{kind}: {}: {verdict}; succeeds without {without}", row.what);
        if let Err(why) = shown {
            wrong.push(format!("{kind}: {}: {why}", row.what));
        }
    }
    assert!(wrong.is_empty(), "{} of {} attempts:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

#[test]
fn no_user_sees_what_is_anothers() {
    play("see", &see::ATTEMPTS);
}

#[test]
fn no_user_changes_what_is_not_its_own() {
    play("change", &change::ATTEMPTS);
}

#[test]
fn no_job_escapes() {
    play("escape", &escape::ATTEMPTS);
}

#[test]
fn no_job_pays_less_than_it_used() {
    play("pay less", &underpay::ATTEMPTS);
}

#[test]
fn there_are_many_attempts_of_each_kind_and_each_check_has_one() {
    let all = [&see::ATTEMPTS[..], &change::ATTEMPTS, &escape::ATTEMPTS, &underpay::ATTEMPTS];
    assert!(70 <= all.iter().map(|rows| rows.len()).sum::<usize>());
    assert!(all.iter().all(|rows| 5 <= rows.len()));
    let source = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/node/defence.rs")).unwrap();
    let checks = source.split("pub enum Defence {").nth(1).unwrap().split('}').next().unwrap();
    let checks = checks.lines().map(str::trim).filter(|line| line.ends_with(',') && !line.starts_with("//"));
    let tried = |check: &str| {
        all.iter().flat_map(|rows| rows.iter()).any(|row| matches!(&row.without, Without::Check { name, .. } if *name == check))
    };
    let untried: Vec<&str> = checks.map(|line| line.trim_end_matches(',')).filter(|check| !tried(check)).collect();
    assert!(untried.is_empty(), "no attempt upon {untried:?}");
}
