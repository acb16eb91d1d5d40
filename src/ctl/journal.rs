//! `meterctl journal`: the agent's journal, read from its files. The agent may run meanwhile.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::STATE_DIR;
use super::anchor::from_file;
use super::client::Failure;
use super::exit::Exit;
use super::print;
use super::verify::found_text;
use crate::domain::id::Digest;
use crate::domain::log::{self, LogWriter};
use crate::node::clock;
use crate::node::journal::{self, JournalError, StoredFact};

/// What to do with the journal.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Walk the hash chain, the checkpoint and the receipts, and compute every price again; prints the head.
    Verify(Verify),
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

/// What to compare it with.
#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    place: Place,
    /// What the authority keeps of its chain (`meterctl account anchors --output json`, or its store): a journal that was written anew is found out.
    #[arg(long, value_name = "FILE")]
    anchor: Option<PathBuf>,
}

/// Which facts.
#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    place: Place,
    /// From this number on.
    #[arg(long, value_name = "SEQ", default_value_t = 1)]
    from: u64,
    /// With its beginning, its end and the bytes that are chained, for `meterctl verify --log`; from the first fact that is kept.
    #[arg(long, conflicts_with = "from")]
    sealed: bool,
}

pub(super) fn main(command: &Command) -> Result<Exit, Failure> {
    match command {
        Command::Verify(verify) => {
            let anchors = verify.anchor.as_deref().map(from_file).transpose()?;
            let found = journal::audit(&verify.place.state_dir, anchors).map_err(Failure::other)?;
            print(&format!("OK: {}", found_text(&found)));
        }
        Command::Export(export) if export.sealed => return sealed(export),
        Command::SetAside(place) => {
            let folder = journal::set_aside(&place.state_dir, clock::now().wall).map_err(Failure::other)?;
            print(&format!("set aside in {}; the next start begins a new journal, in a new epoch\n", folder.display()));
        }
        Command::Export(export) => {
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            let written = journal::for_each_linked(&export.place.state_dir, export.from, |fact, link| {
                out.write_all(line(&fact, link).as_bytes()).map_err(Stop::Out)
            });
            return written_out(written.and_then(|()| out.flush().map_err(Stop::Out)));
        }
    }
    Ok(Exit::Done)
}

/// A log that can be checked without the journal. The agent may write meanwhile: what comes after the beginning of this is not in it.
fn sealed(export: &Export) -> Result<Exit, Failure> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let written = journal::for_each_behind(&export.place.state_dir, LogWriter::begin, |(writer, first), fact, link| {
        out.write_all(std::mem::take(first).as_bytes()).map_err(Stop::Out)?;
        out.write_all(writer.row(fact.seq, link, &fact.bytes).as_bytes()).map_err(Stop::Out)
    });
    let ended = written.and_then(|(writer, first)| {
        out.write_all(first.as_bytes()).map_err(Stop::Out)?;
        out.write_all(writer.end().as_bytes()).and_then(|()| out.flush()).map_err(Stop::Out)
    });
    written_out(ended)
}

/// A reader that went away has seen enough.
fn written_out(written: Result<(), Stop>) -> Result<Exit, Failure> {
    match written {
        Ok(()) => Ok(Exit::Done),
        Err(Stop::Out(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(Stop::Out(error)) => Err(Failure::other(error)),
        Err(Stop::Journal(error)) => Err(Failure::other(error)),
    }
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
    log::line(fact.seq, fact.wall, link, &fact.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::enforcement::Enforcement;
    use crate::domain::fact::Fact;
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
