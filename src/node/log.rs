//! Where log lines go: standard error, one line an event, with a stable `event` field.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::config::LogFormat;
use crate::domain::fact::Fact;
use crate::domain::job::StepEvent;

/// Starts logging. `directives` is a level or a list as of `tracing_subscriber::EnvFilter`; `METERD_LOG` stands above it.
///
/// # Errors
/// When the directives are none, in words.
pub fn start(format: LogFormat, directives: &str) -> Result<(), String> {
    let directives = std::env::var("METERD_LOG").unwrap_or_else(|_| directives.to_owned());
    let filter = EnvFilter::try_new(&directives).map_err(|error| error.to_string())?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let started = match format {
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
        LogFormat::Auto if in_journal => lines.without_time().with_ansi(false).try_init(),
        LogFormat::Auto | LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    started.map_err(|error| error.to_string())
}

/// A fact's line in the log: one line an event, with a stable name.
pub fn fact(fact: &Fact) {
    match fact {
        Fact::JobOpened(opened) => {
            tracing::info!(event = "job_opened", job = %opened.name, attempt = %opened.attempt, account = %opened.account);
        }
        Fact::JobEnded { attempt, ending, .. } => tracing::info!(event = "job_ended", %attempt, outcome = %ending.outcome),
        Fact::JobClosed { attempt } => tracing::info!(event = "job_closed", %attempt),
        Fact::EmptySet { account, since: Some(_), .. } => tracing::warn!(event = "account_empty", %account),
        Fact::EmptySet { account, since: None, .. } => tracing::info!(event = "account_funded", %account),
        Fact::WarnedSet { account, warned: Some(_) } => tracing::warn!(event = "account_warned", %account),
        Fact::Armed { account, .. } => tracing::info!(event = "account_armed", %account),
        Fact::CardAdopted { card, .. } => tracing::info!(event = "card_adopted", card = %card.name, version = card.version),
        Fact::EnforcementSet { mode, by } => tracing::warn!(event = "enforcement_set", %mode, by = by.0),
        Fact::EpochOpened { epoch, .. } => tracing::info!(event = "epoch_opened", %epoch),
        Fact::HandsActed { acted, .. } => {
            let length = acted.done_at.since(acted.asked_at);
            tracing::info!(event = "acted", act = %acted.act, attempt = %acted.attempt, outcome = ?acted.outcome, took_us = length.0 / 1_000);
        }
        Fact::Corrected { correction, .. } => tracing::warn!(event = "correction", %correction),
        Fact::Stepped { attempt, event: StepEvent::Corrected(correction), .. } => {
            tracing::warn!(event = "correction", %attempt, %correction);
        }
        Fact::Stepped { attempt, event: StepEvent::FrozenByOther, .. } => {
            tracing::warn!(event = "correction", %attempt, correction = "drift: somebody else froze it");
        }
        Fact::Stepped { attempt, event: StepEvent::FoundThawed, .. } => {
            tracing::warn!(event = "correction", %attempt, correction = "drift: somebody else thawed it while it was to stand still");
        }
        Fact::GapSeen { attempt, gap } => tracing::warn!(event = "gap", %attempt, meter = %gap.meter, why = %gap.why),
        _ => {}
    }
}
