//! Reads a table (TOML file or JSON body) and collects every mistake in one go: whoever wrote it corrects it once, not once per mistake.
//!
//! [`read_toml`] and [`read_json`] give a [`Table`]; its [`Field`]s are read by kind, each with a place, bounds and hints.
//! A reader that finds a mistake notes it and gives `None`; the others go on. No input makes any of this panic.

mod field;
mod node;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

pub use field::{Answer, Field};
use node::{Entry, Node, Value};

/// Most mistakes that are listed; the rest is left for the next reading.
pub const MISTAKES_MAX: usize = 100;
/// Most of a wrong value that a message quotes, in characters.
const QUOTED_CHARS_MAX: usize = 48;

/// Where a mistake stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file; line and column count characters from 1.
    File {
        /// Its name, as the reader was told.
        file: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// In a JSON body: a pointer as in RFC 6901. The whole body is `""`.
    Pointer(String),
}

/// One mistake of whoever wrote a file or a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// A stable word for programs, such as `unknown_key`.
    pub code: &'static str,
    /// Where. Text in JSON.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

/// What is wrong with a value, before it is known where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    code: &'static str,
    message: String,
    hint: Option<String>,
}

impl Fault {
    /// A fault with a stable code, without a hint.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Fault {
        Fault { code, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Fault {
        Fault { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Place::Pointer(pointer) if pointer.is_empty() => f.write_str("body"),
            Place::Pointer(pointer) => f.write_str(pointer),
        }
    }
}

impl Serialize for Place {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Place::File { .. } => serializer.collect_str(self),
            Place::Pointer(pointer) => serializer.serialize_str(pointer),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

/// Reads a TOML text. What its grammar does not allow is a mistake too, and the rest of the file is read all the same.
///
/// # Errors
/// Every mistake, in the order of the file.
pub fn read_toml<T>(text: &str, file: &str, bytes_max: usize, read: impl FnOnce(&Table<'_>) -> Option<T>) -> Result<T, Vec<Mistake>> {
    let form = Form::new(Source::File { name: file, text });
    if let Err(fault) = bounded(text, bytes_max) {
        form.note(&At::START, "", fault);
        return Err(form.into_mistakes());
    }
    let (root, broken) = node::from_toml(text);
    for (offset, fault) in broken {
        form.note(&At { offset, pointer: String::new() }, "", fault);
    }
    form.read(&root, read)
}

/// Reads a JSON text, which must hold one object.
///
/// # Errors
/// Every mistake, in the order of reading. A text that is no JSON has one: its first.
pub fn read_json<T>(text: &str, bytes_max: usize, read: impl FnOnce(&Table<'_>) -> Option<T>) -> Result<T, Vec<Mistake>> {
    let form = Form::new(Source::Body);
    let root = bounded(text, bytes_max).and_then(|()| node::from_json(text));
    match root {
        Ok(root) => form.read(&root, read),
        Err(fault) => {
            form.note(&At::START, "", fault);
            Err(form.into_mistakes())
        }
    }
}

fn bounded(text: &str, bytes_max: usize) -> Result<(), Fault> {
    if text.len() <= bytes_max {
        return Ok(());
    }
    let fault = Fault::new("too_large", format!("{} bytes are too many: at most {bytes_max} are read", text.len()));
    Err(fault.hint("leave out what is not needed"))
}

/// Where a value stands: the byte offset in a file, or the pointer in a body.
#[derive(Clone, Debug)]
struct At {
    offset: usize,
    pointer: String,
}

impl At {
    const START: At = At { offset: 0, pointer: String::new() };

    fn below(&self, offset: usize, step: &str) -> At {
        let step = step.replace('~', "~0").replace('/', "~1");
        At { offset, pointer: format!("{}/{step}", self.pointer) }
    }
}

enum Source<'f> {
    File { name: &'f str, text: &'f str },
    Body,
}

/// One reading: the text, and the mistakes found so far.
struct Form<'f> {
    source: Source<'f>,
    mistakes: RefCell<Vec<Mistake>>,
}

impl<'f> Form<'f> {
    fn new(source: Source<'f>) -> Form<'f> {
        Form { source, mistakes: RefCell::new(Vec::new()) }
    }

    fn place(&self, at: &At) -> Place {
        match self.source {
            Source::File { name, text } => {
                let before = text.get(..at.offset).unwrap_or(text);
                let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
                let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count();
                Place::File { file: name.to_owned(), line, column: 1 + before[line_start..].chars().count() }
            }
            Source::Body => Place::Pointer(at.pointer.clone()),
        }
    }

    /// Notes a fault of the value called `key`. In a file the key goes in front of the message; in a body the pointer ends with it.
    fn note(&self, at: &At, key: &str, fault: Fault) {
        let Fault { code, message, hint } = fault;
        let message = match self.source {
            Source::File { .. } if !key.is_empty() => format!("{key}: {message}"),
            _ => message,
        };
        let mut mistakes = self.mistakes.borrow_mut();
        if mistakes.len() <= MISTAKES_MAX {
            mistakes.push(Mistake { code, place: self.place(at), message, hint });
        }
    }

    fn read<T>(self, root: &Node, read: impl FnOnce(&Table<'_>) -> Option<T>) -> Result<T, Vec<Mistake>> {
        let value = match &root.value {
            Value::Table(entries) => Table::read(&self, entries, At::START, read),
            other => {
                self.note(&At::START, "", Fault::new("wrong_type", format!("expected an object, found {}", other.kind())));
                None
            }
        };
        let clean = self.mistakes.borrow().is_empty();
        match value {
            Some(value) if clean => Ok(value),
            None if clean => {
                self.note(&At::START, "", Fault::new("incomplete", "not everything that is needed is there"));
                Err(self.into_mistakes())
            }
            _ => Err(self.into_mistakes()),
        }
    }

    /// The mistakes in the order of the file; on a line that breaks the grammar only that one, the others would follow from it.
    fn into_mistakes(self) -> Vec<Mistake> {
        let mut mistakes = self.mistakes.into_inner();
        if let Source::File { .. } = self.source {
            let line = |mistake: &Mistake| match mistake.place {
                Place::File { line, .. } => line,
                Place::Pointer(_) => 0,
            };
            let broken: Vec<usize> = mistakes.iter().filter(|mistake| mistake.code == "syntax").map(line).collect();
            mistakes.retain(|mistake| mistake.code == "syntax" || !broken.contains(&line(mistake)));
            mistakes.sort_by(|a, b| a.place.cmp(&b.place));
        }
        if MISTAKES_MAX < mistakes.len() {
            mistakes.truncate(MISTAKES_MAX);
            if let Some(last) = mistakes.last().map(|last| last.place.clone()) {
                let message = format!("more than {MISTAKES_MAX} mistakes: the rest is not listed");
                mistakes.push(Mistake { code: "too_many_mistakes", place: last, message, hint: None });
            }
        }
        mistakes
    }
}

/// A table being read. A key that nobody asks for is a mistake, noted when the reading of the table ends.
pub struct Table<'f> {
    form: &'f Form<'f>,
    entries: &'f [Entry],
    at: At,
    asked: RefCell<Vec<&'static str>>,
}

impl<'f> Table<'f> {
    /// The field of that name, there or not.
    #[must_use]
    pub fn field(&self, key: &'static str) -> Field<'f> {
        self.asked.borrow_mut().push(key);
        let entry = self.entries.iter().find(|entry| entry.key == key);
        let at = match entry {
            Some(entry) => self.at.below(entry.node.offset, key),
            None => self.at.clone(),
        };
        Field::new(self.form, key.to_owned(), entry.map(|entry| &entry.node), at)
    }

    /// Whether there is something under that key. Does not count as asking for it.
    #[must_use]
    pub fn holds(&self, key: &str) -> Presence {
        let given = self.entries.iter().any(|entry| entry.key == key && entry.node.value != Value::Null);
        if given { Presence::Given } else { Presence::Absent }
    }

    /// Notes a fault of the table as a whole.
    pub fn note(&self, fault: Fault) {
        self.form.note(&self.at, "", fault);
    }

    /// Every field of a table whose keys the writer chooses, in the order of writing, each with its key.
    fn every_field(&self) -> impl Iterator<Item = (&'f str, Field<'f>)> {
        self.entries.iter().map(|entry| {
            let at = self.at.below(entry.node.offset, &entry.key);
            (entry.key.as_str(), Field::new(self.form, entry.key.clone(), Some(&entry.node), at))
        })
    }

    fn new(form: &'f Form<'f>, entries: &'f [Entry], at: At) -> Table<'f> {
        let table = Table { form, entries, at, asked: RefCell::new(Vec::new()) };
        let mut seen = BTreeSet::new();
        for entry in entries {
            if !seen.insert(entry.key.as_str()) {
                let at = table.at.below(entry.key_offset, &entry.key);
                form.note(&at, "", Fault::new("duplicate_key", format!("{} stands here twice", quoted(&entry.key))).hint("leave one out"));
            }
        }
        table
    }

    fn read<T>(form: &'f Form<'f>, entries: &'f [Entry], at: At, read: impl FnOnce(&Table<'f>) -> Option<T>) -> Option<T> {
        let table = Table::new(form, entries, at);
        let value = read(&table);
        table.note_unknown_keys();
        value
    }

    fn note_unknown_keys(&self) {
        let asked = self.asked.borrow();
        let unknown = self.entries.iter().filter(|entry| !asked.contains(&entry.key.as_str()));
        // One past the most that are listed: enough to say that there are more.
        for entry in unknown.take(MISTAKES_MAX + 1) {
            let at = self.at.below(entry.key_offset, &entry.key);
            let fault = Fault::new("unknown_key", format!("unknown key {}", quoted(&entry.key)));
            self.form.note(&at, "", fault.hint(nearest(&entry.key, asked.iter().copied())));
        }
    }
}

/// Is there something?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Yes.
    Given,
    /// No.
    Absent,
}

/// `did you mean X?` where a known word is near, else all of them.
fn nearest<'w>(wrong: &str, known: impl Iterator<Item = &'w str> + Clone) -> String {
    const CHARS_COMPARED: usize = 64;
    let wrong: String = wrong.chars().take(CHARS_COMPARED).collect::<String>().to_lowercase();
    let distance = |word: &str| strsim::damerau_levenshtein(&wrong, &word.to_lowercase());
    let best = known.clone().map(|word| (distance(word), word)).min_by_key(|(distance, _)| *distance);
    match best {
        Some((distance, word)) if distance <= 1 + word.len() / 4 => format!("did you mean {word}?"),
        Some(_) => format!("known: {}", known.collect::<Vec<_>>().join(", ")),
        None => "nothing is known here".to_owned(),
    }
}

/// A text for a message: quoted, escaped and cut.
pub(crate) fn quoted(text: &str) -> String {
    let mut cut: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}
