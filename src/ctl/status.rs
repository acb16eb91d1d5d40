//! `meterctl status`: how the agent does, for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::quantity::{show_bytes, show_length};
use super::table::pairs;
use crate::domain::time::Nanos;
use crate::node::link::Stream;
use crate::node::status::{AgentStatus, Disk, GpuStatus, Status};

/// The status for people.
pub(super) fn text(status: &Status) -> String {
    let mut text = match status.not_ready.as_slice() {
        [] => "meterd is ready\n".to_owned(),
        reasons => {
            let lines = reasons.iter().map(|reason| format!("  {} ({})\n", reason.message, reason.code));
            format!("meterd is not ready:\n{}", lines.collect::<String>())
        }
    };
    for alarm in &status.alarms {
        let message = if alarm.message.is_empty() { String::new() } else { format!(": {}", alarm.message) };
        let _ = writeln!(text, "  {}, {}{message}\n    {}", alarm.code, alarm.at, alarm.hint);
    }
    let agent = &status.agent;
    text.push_str(&pairs(&[
        ("node", status.node.as_ref().map_or_else(unknown, ToString::to_string)),
        ("picture", picture(status)),
        ("enforcement", status.enforcement.map_or_else(unknown, |mode| mode.to_string())),
        ("rate card", card(status)),
        ("jobs", counts(&status.jobs)),
        ("accounts", counts(&status.accounts)),
        ("gpus", gpus(&status.gpus)),
        ("host", status.host.map_or_else(unknown, |host| format!("{} CPUs, {}", host.cpu_count, show_bytes(host.memory_bytes)))),
        ("cgroups", cgroups(agent)),
        ("journal", journal(status)),
        ("authority", authority(status)),
        ("corrections", corrections(status)),
        ("ticks", format!("{}, {} left out, the last took {}", agent.tick_count, agent.tick_missed_count, millis(agent.tick_ns))),
        ("agent", format!("{} of CPU time, {} resident", show_length(Nanos(agent.cpu_ns)), show_bytes(agent.resident_bytes))),
        ("interval", interval(agent)),
        ("scheduling", format!("loop {}, hands {}", known(&agent.loop_scheduling), known(&agent.hands_scheduling))),
        ("version", status.version.clone()),
    ]));
    text
}

/// Between two looks; wider than configured while the agent keeps to its budget.
fn interval(agent: &AgentStatus) -> String {
    let interval = match agent.interval_ns {
        0 => unknown(),
        ns => millis(ns),
    };
    match &agent.over_budget {
        Some(over) => format!("{interval}, widened: the agent costs more {over} than [budget] allows"),
        None => interval,
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn known(text: &str) -> String {
    if text.is_empty() { unknown() } else { text.to_owned() }
}

fn picture(status: &Status) -> String {
    match (&status.at, status.age_ms) {
        (Some(at), Some(age_ms)) => format!("{at}, {} old", Nanos::from_millis(age_ms)),
        _ => "none yet".to_owned(),
    }
}

fn card(status: &Status) -> String {
    let card = status
        .card
        .as_ref()
        .map_or("none".to_owned(), |card| format!("{} version {}, from {}", card.name, card.version, card.effective_from));
    status.card_refused.as_ref().map_or(card.clone(), |why| format!("{card}; a newer one is refused: {why}"))
}

fn counts(counts: &BTreeMap<String, u64>) -> String {
    if counts.is_empty() {
        return unknown();
    }
    counts.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

fn gpus(gpus: &GpuStatus) -> String {
    match gpus {
        GpuStatus::Count(count) => count.to_string(),
        GpuStatus::Missing(why) => format!("unknown: {why}"),
    }
}

fn journal(status: &Status) -> String {
    let journal = status.journal;
    let disk = match journal.disk {
        Disk::Writable => "",
        Disk::Full => "; the disk takes nothing",
    };
    let facts = journal
        .seq
        .zip(journal.durable_seq)
        .map_or_else(unknown, |(seq, durable)| format!("{seq} facts, {} not on disk yet", seq.saturating_sub(durable)));
    format!("{facts}{disk}")
}

fn authority(status: &Status) -> String {
    let Some(asked) = status.authority.asked else { return unknown() };
    let questions = status
        .authority
        .unanswered
        .map_or(format!("{asked} questions, all answered"), |number| format!("{asked} questions, number {number} is open"));
    status.authority.link.as_ref().map_or(questions.clone(), |link| {
        let stream = if link.stream == Stream::Open { "changes are told at once" } else { "changes are found by asking" };
        let parts = [("answers", &link.fault), ("stream", &link.stream_fault), ("files", &link.files_fault), ("card", &link.card_fault)];
        let faults = parts.into_iter().filter_map(|(part, fault)| Some((part, fault.as_ref()?)));
        let faults = faults.map(|(part, fault)| format!("{part}: {} since {}: {}", fault.code, fault.since, fault.message));
        let parts: Vec<String> = [questions.clone(), format!("{}: {stream}", link.url)].into_iter().chain(faults).collect();
        parts.join("; ")
    })
}

/// `hybrid: cpu_time and freezing by cgroup2, memory by v1 memory`.
fn cgroups(agent: &AgentStatus) -> String {
    let mut by: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (need, served) in &agent.cgroup_needs {
        by.entry(served.as_str()).or_default().push(need.as_str());
    }
    let parts: Vec<String> = by.into_iter().map(|(served, needs)| format!("{} by {served}", needs.join(" and "))).collect();
    let layout = known(&agent.cgroup_layout);
    let reads = if agent.cgroup_reads.is_empty() { String::new() } else { format!("; read by {}", agent.cgroup_reads) };
    if parts.is_empty() { layout } else { format!("{layout}: {}{reads}", parts.join(", ")) }
}

fn corrections(status: &Status) -> String {
    status.corrections.map_or_else(unknown, |counts| {
        let places = if status.unmetered.is_empty() { String::new() } else { format!("; unmetered now: {}", status.unmetered.join(", ")) };
        format!("{} missed starts, {} missed stops, {} drifts{places}", counts.missed_start, counts.missed_stop, counts.drift)
    })
}

fn millis(ns: u64) -> String {
    format!("{}.{:03} ms", ns / 1_000_000, ns / 1_000 % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Mono;
    use crate::node::handle::Picture;
    use crate::node::sample;
    use crate::node::status::not_ready;

    #[test]
    fn a_ready_agent_says_so() {
        let picture = sample::picture();
        let now = Mono(picture.taken_at_ns + 120_000_000);
        insta::assert_snapshot!(text(&Status::of(&picture, now, Vec::new())));
    }

    #[test]
    fn an_agent_that_has_not_ticked_says_what_is_unknown() {
        let picture = Picture::default();
        let reasons = not_ready(&picture, Mono(0), Nanos::from_secs(1), Nanos(0));
        insta::assert_snapshot!(text(&Status::of(&picture, Mono(0), reasons)));
    }
}
