//! The authority's anchors: places in the journals' hash chains, shown, and read from a file.

use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;

use super::client::Failure;
use super::table::{Align, table};
use super::verify::read;
use crate::authority::store::read_anchors;
use crate::domain::anchor::{Anchor, Compared};
use crate::domain::receipt::rfc3339;

/// How every file of the authority's store begins.
const STORE_MAGIC: &[u8] = b"SQLite format 3\0";

/// `GET /v1/anchors`.
#[derive(Debug, Deserialize)]
pub(super) struct Anchors {
    anchors: Vec<Anchor>,
}

/// The anchors in columns.
pub(super) fn text(document: &Anchors) -> String {
    if document.anchors.is_empty() {
        return "no node has settled yet\n".to_owned();
    }
    let headings = [("HEARD", Align::Left), ("NODE", Align::Left), ("EPOCH", Align::Left), ("ROW", Align::Right), ("LINK", Align::Left)];
    let row = |anchor: &Anchor| {
        let Anchor { node, epoch, head, at } = anchor;
        vec![rfc3339(*at), node.to_string(), epoch.to_string(), head.seq.to_string(), head.link.to_string()]
    };
    table(&headings, &document.anchors.iter().map(row).collect::<Vec<_>>())
}

/// The anchors in a file: what `meterctl account anchors --output json` printed, or the authority's store itself.
pub(super) fn from_file(path: &Path) -> Result<Vec<Anchor>, Failure> {
    if is_store(path) {
        return read_anchors(path).map_err(|error| Failure::Other(format!("{}: {error}", path.display())));
    }
    let document: Anchors = serde_json::from_str(&read(path)?).map_err(|error| {
        Failure::Other(format!(
            "{}: neither the authority's store nor what `meterctl account anchors --output json` prints: {error}",
            path.display()
        ))
    })?;
    Ok(document.anchors)
}

fn is_store(path: &Path) -> bool {
    use std::io::Read as _;
    let mut begin = [0_u8; STORE_MAGIC.len()];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut begin)).is_ok() && begin == STORE_MAGIC
}

/// What came of comparing them.
pub(super) fn compared_text(compared: &Compared) -> String {
    let last = compared.last.map_or(String::new(), |last| format!(", the last at row {}", last.seq));
    let mut text = format!("anchors: {} are of this chain{last}", compared.same);
    if compared.before_first != 0 {
        let _ = write!(text, "; {} lie before the first row that is kept", compared.before_first);
    }
    text.push('\n');
    for (epoch, seq) in &compared.elsewhere {
        let _ =
            writeln!(text, "note: epoch {epoch} is of another journal, which went to row {seq}: it was set aside, or is another node's");
    }
    text
}
