//! Where log lines go: standard error, one line an event, with a stable `event` field.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::config::LogFormat;

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
