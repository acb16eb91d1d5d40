//! The authority's metrics, in the classic text format. No label holds an account or a node.

use std::fmt::Write as _;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::engine::status::EngineView;
use super::server::Shared;

/// The whole text.
pub(super) fn text(shared: &Shared) -> String {
    let counts = &shared.counts;
    let hub = shared.hub.count();
    let loads = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let mut text = String::new();
    let calls = counts.calls.lock().unwrap_or_else(PoisonError::into_inner);
    family(&mut text, "calls_total", "counter", "Calls answered, by path and status.");
    for ((path, status), count) in calls.iter() {
        let _ = writeln!(text, "meter_authority_calls_total{{path=\"{path}\",status=\"{status}\"}} {count}");
    }
    drop(calls);
    let rows = [
        ("connections", "gauge", "Open connections.", loads(&counts.connections)),
        ("handshakes_failed_total", "counter", "Connections without a handshake that succeeded.", loads(&counts.handshakes_failed)),
        ("streams", "gauge", "Open event streams.", hub.streams),
        ("events_total", "counter", "Events told, one for each listener.", hub.told),
        ("listeners_let_go_total", "counter", "Listeners that did not take their events.", hub.let_go),
        ("reloads_refused_total", "counter", "Looks at the files that found mistakes.", loads(&counts.reloads_refused)),
        ("generation", "gauge", "The store's generation: raised when it is put back from a copy.", loads(&shared.tally.generation)),
        ("recovering", "gauge", "1 while nothing is granted, since the store was put back from a copy.", loads(&shared.tally.recovering)),
        ("forgotten_total", "counter", "Times that a node proved the store to have forgotten a grant.", loads(&shared.tally.forgotten)),
        ("claims_refused_total", "counter", "Claims above what was granted, without proof.", loads(&shared.tally.unproven)),
        ("claims_proved_total", "counter", "Claims above what the store knew, with proof.", loads(&shared.tally.proven)),
        ("forked_epochs_total", "counter", "Epochs under which several were found to write.", loads(&shared.tally.forked)),
        ("doubled_nodes_total", "counter", "Questions of a node under an epoch before its last one.", loads(&shared.tally.doubled)),
        (
            "reload_refused",
            "gauge",
            "1 while what is served is older than the files, for a mistake in them.",
            loads(&counts.reload_refused),
        ),
    ];
    for (name, kind, help, value) in rows {
        family(&mut text, name, kind, help);
        let _ = writeln!(text, "meter_authority_{name} {value}");
    }
    engine(&mut text, shared);
    text
}

/// How it gets on with a billing engine, where there is one.
fn engine(text: &mut String, shared: &Shared) {
    let Some(view) = shared.authority.engine() else { return };
    engine_text(text, "meter_authority", &view);
}

/// The same for whoever has one; `prefix` stands before each name.
pub(crate) fn engine_text(text: &mut String, prefix: &str, view: &EngineView) {
    let EngineView { mirror, .. } = view;
    let rows = [
        ("accounts", "gauge", "Accounts whose balance the engine keeps.", mirror.accounts),
        ("stale_accounts", "gauge", "How many of their balances are too old to grant anything of.", mirror.stale),
        (
            "not_kept_accounts",
            "gauge",
            "Accounts that it should keep, and whose terms give credit of their own.",
            view.not_kept.len() as u64,
        ),
        ("events_waiting", "gauge", "Events of use that are to be sent.", mirror.waiting),
        ("events_refused", "gauge", "Events of use that the engine refused, and that are tried again.", mirror.refused),
        ("events_too_old", "gauge", "Events of use of which nobody knows whether the engine has them.", mirror.too_old),
        ("events_bytes", "gauge", "All of these.", mirror.bytes),
        ("events_oldest_seconds", "gauge", "The age of the oldest event that is waiting or refused.", mirror.oldest_s.unwrap_or(0)),
        ("events_taken_total", "counter", "Events that the engine took.", view.events_taken),
        ("events_refusals_total", "counter", "Times that it refused one.", view.events_refused),
        ("balances_total", "counter", "Balances that it said.", view.balances),
        ("movements_total", "counter", "Times that an account's credit followed one.", view.movements),
        ("not_told", "gauge", "1 while the engine cannot be told of use.", u64::from(view.telling.is_some())),
        ("not_asked", "gauge", "1 while it says no balances.", u64::from(view.asking.is_some())),
    ];
    for (name, kind, help, value) in rows {
        let _ =
            writeln!(text, "# HELP {prefix}_engine_{name} {help}\n# TYPE {prefix}_engine_{name} {kind}\n{prefix}_engine_{name} {value}");
    }
    let _ =
        writeln!(text, "# HELP {prefix}_engine_faults_total What was no answer, by its code.\n# TYPE {prefix}_engine_faults_total counter");
    for (code, count) in &view.faults {
        let _ = writeln!(text, "{prefix}_engine_faults_total{{code=\"{code}\"}} {count}");
    }
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP meter_authority_{name} {help}\n# TYPE meter_authority_{name} {kind}");
}
