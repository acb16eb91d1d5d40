//! What the demo prints: at most [`WIDTH`] columns; colours, and tables drawn over the last one, only on a terminal.

use std::io::{IsTerminal as _, Write as _};

use super::stage::Shown;
use crate::domain::job::Phase;
use crate::domain::money::{Credits, NANO};
use crate::domain::view::{AccountView, JobView};

/// Columns.
pub(super) const WIDTH: usize = 100;

/// A colour or weight of a terminal (ECMA-48 SGR).
#[derive(Clone, Copy, Debug)]
pub(super) enum Ink {
    Bold,
    Green,
    Cyan,
}

impl Ink {
    const fn code(self) -> &'static str {
        match self {
            Ink::Bold => "1",
            Ink::Green => "32",
            Ink::Cyan => "36",
        }
    }
}

/// Where the lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paper {
    Terminal,
    Plain,
}

/// Standard output.
pub(super) struct Screen {
    paper: Paper,
    /// Lines of the table that stands last on the terminal.
    table_lines: usize,
    steps: u32,
    /// Why nothing can be printed any more.
    closed: Option<String>,
}

impl Screen {
    pub(super) fn new() -> Screen {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let paper = if std::io::stdout().is_terminal() && !plain { Paper::Terminal } else { Paper::Plain };
        Screen { paper, table_lines: 0, steps: 0, closed: None }
    }

    /// Why nothing can be printed any more, if so.
    pub(super) fn closed(&self) -> Option<&str> {
        self.closed.as_deref()
    }

    fn write(&mut self, text: &str) {
        let mut output = std::io::stdout().lock();
        if let Err(error) = output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
            self.closed.get_or_insert(error.to_string());
        }
    }

    /// A line; what is too long is wrapped between words and goes on below its third column.
    pub(super) fn line(&mut self, text: &str) {
        self.table_lines = 0;
        self.write(&wrapped(text));
    }

    /// The heading of the next step.
    pub(super) fn step(&mut self, title: &str) {
        self.steps += 1;
        let heading = self.ink(Ink::Bold, &format!("{:2}  {title}", self.steps));
        self.line("");
        self.line(&heading);
    }

    /// Something that was checked and holds.
    pub(super) fn ok(&mut self, text: &str) {
        let mark = self.ink(Ink::Green, "ok");
        let text = wrapped(&format!("    ok  {text}")).replacen("ok", &mark, 1);
        self.table_lines = 0;
        self.write(&text);
    }

    /// The jobs and accounts as they stand.
    pub(super) fn table(&mut self, shown: &Shown, elapsed_s: u64) {
        let mut lines = vec![format!(
            "    {:>3} s  {:<10} {:<8} {:<8} {:>8} {:>10} {:>13}",
            elapsed_s, "job", "account", "state", "CPU s", "memory", "charged"
        )];
        lines.extend(shown.jobs.iter().map(|job| self.job_row(job)));
        lines.extend(shown.accounts.iter().map(account_row));
        let count = lines.len();
        let up = match (self.paper, self.table_lines) {
            (Paper::Terminal, above) if 0 < above && holds_whole_lines() => format!("\x1b[{above}A\x1b[J"),
            _ => String::new(),
        };
        self.write(&format!("{up}{}\n", lines.join("\n")));
        self.table_lines = count;
    }

    fn job_row(&self, job: &JobView) -> String {
        let state = match job.phase {
            Phase::Frozen => self.ink(Ink::Cyan, "frozen  "),
            Phase::Running => self.ink(Ink::Green, "running "),
            other => format!("{:<8}", other.name()),
        };
        let memory = job.memory_bytes.map_or_else(|| "unknown".to_owned(), mebibytes);
        let cpu = seconds(job.cpu_ns);
        format!("           {:<10} {:<8} {state} {cpu:>8} {memory:>10} {:>13}", job.job, job.account, rounded(job.charge))
    }

    /// The text in a colour, where there are colours.
    pub(super) fn ink(&self, ink: Ink, text: &str) -> String {
        match self.paper {
            Paper::Terminal => format!("\x1b[{}m{text}\x1b[0m", ink.code()),
            Paper::Plain => text.to_owned(),
        }
    }
}

/// Is the terminal so wide that it breaks no line? Else nobody knows how many lines stand above.
fn holds_whole_lines() -> bool {
    rustix::termios::tcgetwinsize(std::io::stdout()).is_ok_and(|size| WIDTH <= usize::from(size.ws_col))
}

fn account_row(account: &AccountView) -> String {
    let lasts = account.lasts_s.map_or_else(|| "nothing burns".to_owned(), |s| format!("lasts {s} s"));
    format!(
        "           {:<10} in hand {:>8}   free {:>8}   burn {:>9} an hour   {lasts}",
        account.account,
        rounded(account.in_hand),
        rounded(account.free),
        rounded(account.burn_per_hour)
    )
}

/// An amount to four digits behind the point, cut off. For tables; what is checked is printed whole.
fn rounded(amount: Credits) -> String {
    let nano = amount.nano();
    let sign = if nano < 0 { "-" } else { "" };
    let (whole, rest) = (nano.abs() / NANO, nano.abs() % NANO);
    format!("{sign}{whole}.{:04}", rest / 100_000)
}

/// Nanoseconds as seconds, to the millisecond.
pub(super) fn seconds(ns: u128) -> String {
    format!("{}.{:03}", ns / 1_000_000_000, ns / 1_000_000 % 1_000)
}

/// Nanoseconds as milliseconds, to the microsecond.
pub(super) fn millis(ns: u64) -> String {
    format!("{}.{:03} ms", ns / 1_000_000, ns / 1_000 % 1_000)
}

fn mebibytes(bytes: u64) -> String {
    let tenths = bytes / 1_024 * 10 / 1_024;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// Each line ends in a newline and has at most [`WIDTH`] columns, if its words allow. Escapes are not counted out: colour short lines only.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    for line in text.split('\n').map(str::trim_end) {
        let indent = line.len() - line.trim_start().len();
        let mut column = 0;
        for (number, word) in line.trim_start().split(' ').enumerate() {
            let length = word.chars().count();
            if number == 0 {
                lines.push_str(&" ".repeat(indent));
                column = indent;
            } else if WIDTH < column + 1 + length && indent + 4 < column {
                lines.push('\n');
                lines.push_str(&" ".repeat(indent + 4));
                column = indent + 4;
            } else {
                lines.push(' ');
                column += 1;
            }
            lines.push_str(word);
            column += length;
        }
        lines.push('\n');
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_wrapped_between_words_and_keeps_every_one() {
        let text = format!("    ok  {}", vec!["counter"; 40].join(" "));
        let printed = wrapped(&text);
        assert!(printed.lines().all(|line| line.len() <= WIDTH), "{printed}");
        assert_eq!(printed.split_whitespace().collect::<Vec<_>>(), text.split_whitespace().collect::<Vec<_>>());
        assert!(printed.lines().skip(1).all(|line| line.starts_with("        counter")), "{printed}");
    }

    #[test]
    fn a_short_line_is_printed_as_it_is() {
        assert_eq!(wrapped("  a  b\n\n    c"), "  a  b\n\n    c\n");
    }

    #[test]
    fn amounts_and_lengths_are_cut_off_not_rounded_up() {
        assert_eq!(rounded(Credits::from_nano(1_999_999_999)), "1.9999");
        assert_eq!(rounded(Credits::from_nano(-50_000_000)), "-0.0500");
        assert_eq!(seconds(1_999_999_999), "1.999");
        assert_eq!(millis(2_300_400), "2.300 ms");
        assert_eq!(mebibytes((3 << 20) + (1 << 19)), "3.5 MiB");
    }
}
