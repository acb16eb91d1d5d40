//! Reads a table and collects every mistake in one go.

use std::fmt;

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
    /// In a JSON body: a pointer as in RFC 6901.
    Pointer(String),
}

/// One mistake of whoever wrote a file or a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// A stable word for programs, such as `unknown_key`.
    pub code: &'static str,
    /// Where.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
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

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}
