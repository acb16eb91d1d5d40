//! A journal, or the newest part of one, as a text that can be handed out and checked anywhere: `meterctl journal export --sealed`.
//!
//! ```text
//!   {"log":1,"behind":{"seq":0,"link":"00…"}}                what its rows follow
//!   {"seq":1,"chain":"…","bytes":"01…","fact":{…}}           one for each fact
//!   {"end":{"rows":1,"link":"…"}}                            how many there are, and the last link
//! ```
//!
//! What is chained are the `bytes`; `fact` says the same for people. A line is right only if it is, to the last character, the one that
//! would be written for its row, so no bit of the text can be changed unseen. What the chain does not cover is not in it.

use serde::{Deserialize, Serialize};

use super::anchor::Anchor;
use super::audit::{Audit, Fault, Found};
use super::chain::Head;
use super::fact::{DecodeError, Fact};
use super::id::Digest;
use super::receipt::rfc3339;
use super::time::Wall;

/// The version of the text.
const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    log: u16,
    behind: Head,
}

/// A row's line, cut where it has to be cut. Its own writing, and no other, is taken.
struct RowParts<'a> {
    seq: u64,
    chain: Digest,
    bytes: Vec<u8>,
    fact: &'a str,
}

impl<'a> RowParts<'a> {
    fn of(line: &'a str) -> Option<RowParts<'a>> {
        let (seq, rest) = line.strip_prefix("{\"seq\":")?.split_once(",\"chain\":\"")?;
        let (chain, rest) = rest.split_once("\",\"bytes\":\"")?;
        let (bytes, rest) = rest.split_once("\",\"fact\":")?;
        let chain = Digest(unhex(chain)?.try_into().ok()?);
        let parts = RowParts { seq: seq.parse().ok()?, chain, bytes: unhex(bytes)?, fact: rest.strip_suffix("}\n")? };
        // Of the ways to write a number only one is taken.
        (parts.seq.to_string() == seq).then_some(parts)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
    end: End,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    rows: u64,
    link: Digest,
}

/// What is wrong with such a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFault {
    /// The line is not one that this program writes.
    #[error("line {line}: {why}")]
    Line {
        /// Counted from 1.
        line: u64,
        /// What it is not.
        why: &'static str,
    },
    /// The text is not all there.
    #[error("the log has no end: line {0} is not its last")]
    CutOff(u64),
    /// A row's content is wrong.
    #[error(transparent)]
    Row(#[from] Fault),
}

/// A fact as JSON. Numbers in it may be wider than 53 bits.
fn content(fact: &Result<Fact, DecodeError>) -> String {
    let unread = |why: String| serde_json::json!({ "unreadable": why }).to_string();
    match fact {
        Ok(fact) => serde_json::to_string(fact).unwrap_or_else(|error| unread(error.to_string())),
        Err(error) => unread(error.to_string()),
    }
}

/// A fact in one line, to be read: `{"seq", "wall", "chain", "fact"}`.
#[must_use]
pub fn line(seq: u64, wall: Wall, link: Digest, bytes: &[u8]) -> String {
    format!("{{\"seq\":{seq},\"wall\":\"{}\",\"chain\":\"{link}\",\"fact\":{}}}\n", rfc3339(wall), content(&Fact::decode(bytes)))
}

fn sealed_line(seq: u64, link: Digest, bytes: &[u8]) -> String {
    format!("{{\"seq\":{seq},\"chain\":\"{link}\",\"bytes\":\"{}\",\"fact\":{}}}\n", hex(bytes), content(&Fact::decode(bytes)))
}

/// Writes a log, line by line.
pub struct LogWriter {
    rows: u64,
    link: Digest,
}

impl LogWriter {
    /// The first line of a log whose rows follow this place in a chain.
    #[must_use]
    pub fn begin(behind: Head) -> (LogWriter, String) {
        (LogWriter { rows: 0, link: behind.link }, to_line(&First { log: VERSION, behind }))
    }

    /// One more row.
    pub fn row(&mut self, seq: u64, link: Digest, bytes: &[u8]) -> String {
        self.rows += 1;
        self.link = link;
        sealed_line(seq, link, bytes)
    }

    /// The last line.
    #[must_use]
    pub fn end(self) -> String {
        to_line(&Last { end: End { rows: self.rows, link: self.link } })
    }
}

/// Reads a log, line by line, and checks it.
#[derive(Clone, Debug)]
pub struct LogReader {
    anchors: Option<Vec<Anchor>>,
    lines: u64,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Before,
    Within(Box<Audit>),
    Behind(Box<Audit>),
}

impl LogReader {
    /// At its beginning; with anchors, these are compared.
    #[must_use]
    pub fn new(anchors: Option<Vec<Anchor>>) -> LogReader {
        LogReader { anchors, lines: 0, place: Place::Before }
    }

    /// One more line, with what ends it.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn line(&mut self, line: &str) -> Result<(), LogFault> {
        self.lines += 1;
        let number = self.lines;
        let wrong = |why| LogFault::Line { line: number, why };
        let place = std::mem::replace(&mut self.place, Place::Before);
        self.place = match place {
            Place::Before if number == 1 => {
                let first: First = serde_json::from_str(line).map_err(|_| wrong("not the beginning of a sealed log"))?;
                if first.log != VERSION || to_line(&first) != line {
                    return Err(wrong("not the beginning of a sealed log"));
                }
                Place::Within(Box::new(Audit::behind(first.behind, self.anchors.take())))
            }
            Place::Within(audit) if line.starts_with("{\"end\":") => {
                self.last(line, &audit)?;
                Place::Behind(audit)
            }
            Place::Within(mut audit) => {
                let RowParts { seq, chain, bytes, fact: said } = RowParts::of(line).ok_or_else(|| wrong("not a row of a sealed log"))?;
                let fact = Ok(audit.link(seq, &bytes, chain).map_err(LogFault::Row)?);
                if content(&fact) != said {
                    return Err(wrong("it does not say what its bytes say"));
                }
                fact.iter().try_for_each(|fact| audit.fact(fact)).map_err(LogFault::Row)?;
                Place::Within(audit)
            }
            Place::Before | Place::Behind(_) => return Err(wrong("it stands behind the end")),
        };
        Ok(())
    }

    fn last(&self, line: &str, audit: &Audit) -> Result<(), LogFault> {
        let wrong = |why| LogFault::Line { line: self.lines, why };
        let Last { end } = serde_json::from_str(line).map_err(|_| wrong("not the end of a sealed log"))?;
        if (end.rows, end.link) != (audit.rows(), audit.head().link) || to_line(&Last { end }) != line {
            return Err(wrong("not the end of these rows"));
        }
        Ok(())
    }

    /// Everything has been read.
    ///
    /// # Errors
    /// When the end is missing, or the chain is not the one that the authority heard of.
    pub fn finish(self) -> Result<Found, LogFault> {
        match self.place {
            Place::Behind(audit) => audit.finish().map_err(LogFault::Row),
            Place::Before | Place::Within(_) => Err(LogFault::CutOff(self.lines)),
        }
    }
}

fn to_line<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Small letters only: of the ways to write a byte one is taken.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let mut bytes = Vec::with_capacity(digits.len() / 2);
    let mut at = 0;
    while at < digits.len() {
        bytes.push((nibble(digits[at])? << 4) | nibble(*digits.get(at + 1)?)?);
        at += 2;
    }
    Some(bytes)
}

const fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}
