//! `meterctl top`: accounts and jobs as they stand, again and again. On a terminal a screen of its own, elsewhere one table after the other.

mod look;
mod rows;
mod screen;

#[cfg(test)]
#[path = "../../tests/support/pty.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod pty;

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;

use super::client::{Client, Failure};
use super::complain;
use super::exit::Exit;
use super::quantity::length;
use super::table::table;
use crate::domain::time::Nanos;
use look::{Look, Speeds};
use rows::{Order, Shape, Sort, What};

/// How.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Between two looks at the agent.
    #[arg(long, value_name = "LENGTH", default_value = "1s", value_parser = length)]
    interval: Nanos,
    /// One table as plain text, after one interval, and end.
    #[arg(long)]
    once: bool,
    /// Plain text, one table after the other; the default where standard output is no terminal, or a dumb one.
    #[arg(long)]
    plain: bool,
    /// By what the rows are sorted.
    #[arg(long, value_enum, default_value = "name")]
    sort: Sort,
    /// What the rows are.
    #[arg(long, value_enum, default_value = "accounts")]
    view: View,
    /// Jobs that have ended lately, too.
    #[arg(long)]
    all: bool,
}

/// What the rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum View {
    /// Accounts, each with its jobs below it.
    Accounts,
    /// Jobs alone.
    Jobs,
}

impl Arguments {
    fn shape(&self) -> Shape {
        Shape {
            what: match self.view {
                View::Accounts => What::Accounts,
                View::Jobs => What::Jobs,
            },
            sort: self.sort,
            order: Order::Usual,
            ended: if self.all { rows::Ended::Shown } else { rows::Ended::Hidden },
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_nanos(self.interval.0)
    }
}

pub(super) fn main(socket: &Path, arguments: &Arguments) -> Result<Exit, Failure> {
    let client = Client::new(socket)?;
    let first = Look::take(&client)?; // who has no agent is told so before the screen is touched
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    let terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal() && !dumb;
    if terminal && !arguments.plain && !arguments.once {
        return screen::run(client, first, arguments.interval(), arguments.shape());
    }
    plain(&client, &first, arguments)
}

/// One table an interval. A reader that goes away has seen enough.
fn plain(client: &Client, first: &Look, arguments: &Arguments) -> Result<Exit, Failure> {
    let mut speeds = Speeds::default();
    speeds.note(first);
    let mut last = first.clone();
    loop {
        std::thread::sleep(arguments.interval());
        match Look::take(client) {
            Ok(look) => {
                speeds.note(&look);
                last = look;
                let text = text(&last, &speeds, arguments.shape());
                let end = if arguments.once { "" } else { "\n" };
                let mut out = std::io::stdout().lock();
                if write!(out, "{text}{end}").and_then(|()| out.flush()).is_err() || arguments.once {
                    return Ok(Exit::Done);
                }
            }
            Err(failure) if arguments.once => return Err(failure),
            Err(failure) => complain(&format!("{failure}\nthe last look was at {}", last.status.at.as_deref().unwrap_or("no time"))),
        }
    }
}

/// The head, the alarms and the table.
fn text(look: &Look, speeds: &Speeds, shape: Shape) -> String {
    let mut text = format!("{}\n", look.head());
    for alarm in look.alarms() {
        text.push_str("! ");
        text.push_str(&alarm);
        text.push('\n');
    }
    let all = rows::rows(look, speeds, shape);
    let cells: Vec<Vec<String>> = all.iter().map(|row| row.cells.clone()).collect();
    text.push_str(&table(&rows::headings(shape.what), &cells));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_table_has_its_alarms_on_top() {
        let look = look::sample();
        let mut speeds = Speeds::default();
        speeds.note(&look);
        let shape = Shape { what: What::Accounts, sort: Sort::Name, order: Order::Usual, ended: rows::Ended::Hidden };
        insta::assert_snapshot!(text(&look, &speeds, shape));
    }
}
