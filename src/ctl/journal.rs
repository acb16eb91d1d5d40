//! `meterctl journal`: the agent's journal, read from its files. The agent may run meanwhile.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::STATE_DIR;
use super::client::Failure;
use super::exit::Exit;
use super::print;
use crate::domain::fact::Fact;
use crate::domain::id::Digest;
use crate::domain::receipt::rfc3339;
use crate::node::clock;
use crate::node::journal::{self, JournalError, StoredFact};

/// What to do with the journal.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Walk the hash chain, the checkpoint and the receipts; prints the head, to be compared with what the authority keeps.
    Verify(Place),
    /// Print facts as JSON lines: seq, wall, chain, fact.
    Export(Export),
    /// With no agent running: keep the journal in a folder of its own, so that the next start begins a new one with what verifies of it. A damaged
    /// one is set aside by the agent itself.
    SetAside(Place),
}

/// Where the journal is.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The agent's `state_dir`.
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub(super) state_dir: PathBuf,
}

/// Which facts.
#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    place: Place,
    /// From this number on.
    #[arg(long, value_name = "SEQ", default_value_t = 1)]
    from: u64,
}

pub(super) fn main(command: &Command) -> Result<Exit, Failure> {
    match command {
        Command::Verify(place) => {
            let verified = journal::verify(&place.state_dir).map_err(Failure::other)?;
            print(&format!("OK: {} facts, head {} {}\n", verified.rows, verified.head.seq, verified.head.link));
        }
        Command::SetAside(place) => {
            let folder = journal::set_aside(&place.state_dir, clock::now().wall).map_err(Failure::other)?;
            print(&format!("set aside in {}; the next start begins a new journal, in a new epoch\n", folder.display()));
        }
        Command::Export(export) => {
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            let written = journal::for_each_linked(&export.place.state_dir, export.from, |fact, link| {
                out.write_all(line(&fact, link).as_bytes()).map_err(Stop::Out)
            });
            match written.and_then(|()| out.flush().map_err(Stop::Out)) {
                Ok(()) => {}
                Err(Stop::Out(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                Err(Stop::Out(error)) => return Err(Failure::other(error)),
                Err(Stop::Journal(error)) => return Err(Failure::other(error)),
            }
        }
    }
    Ok(Exit::Done)
}

enum Stop {
    Out(std::io::Error),
    Journal(JournalError),
}

impl From<JournalError> for Stop {
    fn from(error: JournalError) -> Stop {
        Stop::Journal(error)
    }
}

/// One fact in one line. Numbers in it may be wider than 53 bits.
fn line(fact: &StoredFact, link: Digest) -> String {
    let content = match Fact::decode(&fact.bytes) {
        Ok(content) => serde_json::to_string(&content).unwrap_or_else(|error| unread(&error.to_string())),
        Err(error) => unread(&error.to_string()),
    };
    format!("{{\"seq\":{},\"wall\":\"{}\",\"chain\":\"{link}\",\"fact\":{content}}}\n", fact.seq, rfc3339(fact.wall))
}

fn unread(why: &str) -> String {
    serde_json::json!({ "unreadable": why }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::enforcement::Enforcement;
    use crate::domain::id::Uid;
    use crate::domain::time::Wall;

    #[test]
    fn a_fact_is_one_line_of_json() {
        let fact = Fact::EnforcementSet { mode: Enforcement::Enforce, by: Uid(0) };
        let stored = StoredFact { seq: 3, wall: Wall(0), bytes: fact.encode() };
        let text = line(&stored, Digest([1; 32]));
        assert_eq!(text.lines().count(), 1);
        insta::assert_snapshot!(text);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["fact"]["EnforcementSet"]["mode"], "enforce");
    }

    #[test]
    fn a_fact_of_a_later_version_is_named_and_not_left_out() {
        let text = line(&StoredFact { seq: 4, wall: Wall(0), bytes: vec![200] }, Digest([1; 32]));
        assert!(text.contains("version 200"), "{text}");
    }
}
