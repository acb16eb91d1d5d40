//! One field of a table, read as what it should be.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::node::{Node, Value};
use super::{At, Fault, Form, Presence, Table, nearest, quoted};
use crate::domain::money::{AmountError, Credits, Decimal};
use crate::domain::time::{Nanos, Wall};

/// Longest path, as the kernel's `PATH_MAX`.
const PATH_BYTES_MAX: usize = 4_096;

/// One field: its place, and its value if there is one. JSON's `null` is no value.
pub struct Field<'f> {
    form: &'f Form<'f>,
    key: String,
    node: Option<&'f Node>,
    at: At,
}

/// What came of reading a field as a `T`. A wrong value is noted already.
#[must_use]
pub struct Answer<'f, T> {
    field: Field<'f>,
    state: State<T>,
}

enum State<T> {
    Absent,
    Wrong,
    Given(T),
}

impl<'f, T> Answer<'f, T> {
    /// The value; its absence is a mistake.
    #[must_use]
    pub fn required(self) -> Option<T> {
        self.or_missing("it has no default".to_owned())
    }

    /// The same, with a sample of what is to be written there.
    #[must_use]
    pub fn required_as(self, sample: &str) -> Option<T> {
        self.or_missing(format!("such as {sample}"))
    }

    fn or_missing(self, hint: String) -> Option<T> {
        match self.state {
            State::Given(value) => Some(value),
            State::Wrong => None,
            State::Absent => {
                let fault = Fault::new("missing_key", format!("{} is missing", self.field.key)).hint(hint);
                self.field.form.note(&self.field.at, "", fault);
                None
            }
        }
    }

    /// The value, or this one where nothing is written.
    #[must_use]
    pub fn or(self, default: T) -> Option<T> {
        match self.state {
            State::Given(value) => Some(value),
            State::Wrong => None,
            State::Absent => Some(default),
        }
    }

    /// The value if one is written. `None` is a mistake, `Some(None)` is none written.
    #[must_use]
    pub fn optional(self) -> Option<Option<T>> {
        match self.state {
            State::Given(value) => Some(Some(value)),
            State::Wrong => None,
            State::Absent => Some(None),
        }
    }

    /// The value, made into something narrower or found faulty.
    pub fn check<U>(self, narrow: impl FnOnce(T) -> Result<U, Fault>) -> Answer<'f, U> {
        let Answer { field, state } = self;
        let state = match state {
            State::Given(value) => match narrow(value) {
                Ok(value) => State::Given(value),
                Err(fault) => {
                    field.note(fault);
                    State::Wrong
                }
            },
            State::Wrong => State::Wrong,
            State::Absent => State::Absent,
        };
        Answer { field, state }
    }
}

impl<'f> Field<'f> {
    pub(super) fn new(form: &'f Form<'f>, key: String, node: Option<&'f Node>, at: At) -> Field<'f> {
        let node = node.filter(|node| node.value != Value::Null);
        Field { form, key, node, at }
    }

    /// Notes a fault of this field.
    pub fn note(&self, fault: Fault) {
        self.form.note(&self.at, &self.key, fault);
    }

    /// Whether something is written here.
    #[must_use]
    pub fn presence(&self) -> Presence {
        if self.node.is_some() { Presence::Given } else { Presence::Absent }
    }

    /// Whether an integer is written here, where a field can be read in two ways.
    #[must_use]
    pub fn is_integer(&self) -> bool {
        matches!(self.value(), Some(Value::Integer(_)))
    }

    fn value(&self) -> Option<&'f Value> {
        self.node.map(|node| &node.value)
    }

    /// Reads the value if there is one.
    fn read<T>(self, read: impl FnOnce(&Field<'f>, &'f Value) -> Result<T, Fault>) -> Answer<'f, T> {
        let state = match self.value() {
            None => State::Absent,
            Some(value) => match read(&self, value) {
                Ok(value) => State::Given(value),
                Err(fault) => {
                    self.note(fault);
                    State::Wrong
                }
            },
        };
        Answer { field: self, state }
    }

    /// Text of at most so many bytes, without control characters.
    pub fn text(self, bytes_max: usize) -> Answer<'f, String> {
        self.read(|_, value| bounded_text(value, bytes_max).map(str::to_owned))
    }

    /// Text that a type reads: a name, an id.
    pub fn name<T: FromStr<Err: Display>>(self) -> Answer<'f, T> {
        self.read(|_, value| {
            text(value)?.parse().map_err(|error: T::Err| Fault::new("not_a_name", error.to_string()).hint("such as \"name-1\""))
        })
    }

    /// One of these words.
    pub fn word<T: Copy>(self, words: &[(&'static str, T)]) -> Answer<'f, T> {
        self.read(|_, value| {
            let given = text(value)?;
            let known = || words.iter().map(|(word, _)| *word);
            words.iter().find(|(word, _)| *word == given).map(|(_, meaning)| *meaning).ok_or_else(|| {
                let allowed = known().collect::<Vec<_>>().join(", ");
                let hint = match nearest(given, known()) {
                    near if near.starts_with("did") => format!("{near} Allowed: {allowed}"),
                    _ => format!("allowed: {allowed}"),
                };
                Fault::new("unknown_word", format!("{} is not known here", quoted(given))).hint(hint)
            })
        })
    }

    /// `true` or `false`.
    pub fn boolean(self) -> Answer<'f, bool> {
        self.read(|_, value| match value {
            Value::Boolean(boolean) => Ok(*boolean),
            other => Err(wrong_type("true or false", other)),
        })
    }

    /// An integer within bounds.
    pub fn integer<T: TryFrom<i128> + Into<i128> + Copy>(self, range: RangeInclusive<T>) -> Answer<'f, T> {
        let (low, high): (i128, i128) = ((*range.start()).into(), (*range.end()).into());
        let hint = || format!("an integer from {low} to {high}, without quotes");
        self.read(|_, value| match value {
            Value::Integer(integer) => (low..=high)
                .contains(integer)
                .then(|| T::try_from(*integer).ok())
                .flatten()
                .ok_or_else(|| Fault::new("out_of_range", format!("{integer} is out of range {low}..={high}")).hint(hint())),
            other => Err(wrong_type("an integer", other).hint(hint())),
        })
    }

    /// An integer of seconds, where the key ends with `_s`.
    pub fn seconds(self, range: RangeInclusive<u64>) -> Answer<'f, Nanos> {
        self.integer(range).check(|seconds| Ok(Nanos::from_secs(seconds)))
    }

    /// An integer of milliseconds, where the key ends with `_ms`.
    pub fn millis(self, range: RangeInclusive<u64>) -> Answer<'f, Nanos> {
        self.integer(range).check(|millis| Ok(Nanos::from_millis(millis)))
    }

    /// A length of time with its unit: `250ms`, `30s`, `5m`, `1h`, `2d`.
    pub fn duration(self, range: RangeInclusive<Nanos>) -> Answer<'f, Nanos> {
        self.read(|_, value| match value {
            Value::Text(given) => duration(given),
            other => Err(wrong_type("a length of time", other).hint("a number and a unit in quotes, such as \"30s\" or \"5m\"")),
        })
        .check(|length| {
            let (low, high) = (range.start(), range.end());
            let outside = || Fault::new("out_of_range", format!("{length} is out of range {low} to {high}"));
            range.contains(&length).then_some(length).ok_or_else(|| outside().hint(format!("from {low} to {high}")))
        })
    }

    /// An amount of credit: a decimal in quotes, never negative, not above `most`.
    pub fn amount(self, most: Credits) -> Answer<'f, Credits> {
        self.read(|_, value| decimal_text(value)?.parse::<Credits>().map_err(|error| amount_fault(&error))).check(|amount| {
            let inside = Credits::ZERO <= amount && amount <= most;
            inside
                .then_some(amount)
                .ok_or_else(|| Fault::new("out_of_range", format!("{amount} is out of range 0 to {most}")).hint("never negative"))
        })
    }

    /// An exact decimal in quotes, such as a price.
    pub fn decimal(self) -> Answer<'f, Decimal> {
        self.read(|_, value| decimal_text(value)?.parse::<Decimal>().map_err(|error| amount_fault(&error)))
    }

    /// An instant with its offset from UTC (RFC 3339), from 1970 on: text, or TOML's own form.
    pub fn instant(self) -> Answer<'f, Wall> {
        const HINT: &str = "RFC 3339 with an offset, such as \"2026-11-01T00:00:00Z\"";
        self.read(|_, value| {
            let (Value::Text(given) | Value::Instant(given)) = value else {
                return Err(wrong_type("a date and time", value).hint(HINT));
            };
            let malformed = || Fault::new("malformed", format!("{} is not an instant", quoted(given))).hint(HINT);
            let instant: jiff::Timestamp = given.parse().map_err(|_| malformed())?;
            let before = || Fault::new("out_of_range", format!("{} is before 1970", quoted(given))).hint("a later one");
            u64::try_from(instant.as_millisecond()).map(Wall).map_err(|_| before())
        })
    }

    /// An absolute path without `.` or `..` in it.
    pub fn absolute_path(self) -> Answer<'f, String> {
        self.read(|_, value| {
            let path = bounded_text(value, PATH_BYTES_MAX)?;
            if !path.starts_with('/') {
                return Err(Fault::new("not_absolute", format!("{} is not an absolute path", quoted(path))).hint("begin with /"));
            }
            if path.split('/').any(|step| step == "." || step == "..") {
                return Err(Fault::new("malformed", format!("{} holds . or ..", quoted(path))).hint("write the path they lead to"));
            }
            Ok(path.to_owned())
        })
    }

    /// A list of at most so many items, each read in the same way.
    pub fn list<T>(self, items_max: usize, read: impl FnMut(Field<'f>) -> Option<T>) -> Answer<'f, Vec<T>> {
        let (form, at, key) = (self.form, self.at.clone(), self.key.clone());
        let (mut read, list) = (read, self.key.clone());
        let answer = self.read(|_, value| match value {
            Value::List(items) if items.len() <= items_max => Ok(items),
            Value::List(items) => {
                Err(Fault::new("too_many", format!("{} items are too many: at most {items_max}", items.len())).hint("leave some out"))
            }
            Value::Table(_) => Err(wrong_type("a list", value).hint(format!("write [[{list}]], with two brackets, for each of them"))),
            other => Err(wrong_type("a list", other).hint("in brackets, with commas between")),
        });
        let Answer { field, state } = answer;
        let state = match state {
            State::Given(items) => {
                let fields = items.iter().enumerate().map(|(index, node)| {
                    let at = at.below(node.offset, &index.to_string());
                    Field { form, key: key.clone(), node: Some(node), at }
                });
                // Every item is read, also after a wrong one.
                let values: Vec<Option<T>> = fields.map(&mut read).collect();
                values.into_iter().collect::<Option<Vec<T>>>().map_or(State::Wrong, State::Given)
            }
            State::Wrong => State::Wrong,
            State::Absent => State::Absent,
        };
        Answer { field, state }
    }

    /// A list in which nothing stands twice.
    pub fn set<T: PartialEq + Clone>(self, items_max: usize, mut read: impl FnMut(Field<'f>) -> Option<T>) -> Answer<'f, Vec<T>> {
        let mut seen: Vec<T> = Vec::new();
        self.list(items_max, |field| {
            let (form, at, key) = (field.form, field.at.clone(), field.key.clone());
            let value = read(field)?;
            if seen.contains(&value) {
                form.note(&at, &key, Fault::new("duplicate", "stands in this list twice").hint("leave one out"));
                return None;
            }
            seen.push(value.clone());
            Some(value)
        })
    }

    /// A table with known keys.
    pub fn table<T>(self, read: impl FnOnce(&Table<'f>) -> Option<T>) -> Answer<'f, T> {
        let state = match self.value() {
            None => State::Absent,
            Some(Value::Table(entries)) => Table::read(self.form, entries, self.at.clone(), read).map_or(State::Wrong, State::Given),
            Some(other) => {
                self.note(wrong_type("a table", other).hint("in braces: { key = \"value\" }"));
                State::Wrong
            }
        };
        Answer { field: self, state }
    }

    /// A table with known keys, all of which have defaults: it may be left out.
    pub fn table_or_defaults<T>(self, read: impl FnOnce(&Table<'f>) -> Option<T>) -> Option<T> {
        match self.value() {
            None => Table::read(self.form, &[], self.at.clone(), read),
            Some(_) => self.table(read).required(),
        }
    }

    /// A table whose keys the writer chooses: at most so many, each read in the same way.
    pub fn map<T>(self, entries_max: usize, mut read: impl FnMut(&'f str, Field<'f>) -> Option<T>) -> Answer<'f, Vec<T>> {
        let (form, at) = (self.form, self.at.clone());
        self.read(|_, value| match value {
            Value::Table(entries) if entries.len() <= entries_max => Ok(entries),
            Value::Table(entries) => {
                Err(Fault::new("too_many", format!("{} keys are too many: at most {entries_max}", entries.len())).hint("leave some out"))
            }
            other => Err(wrong_type("a table", other).hint("in braces: { key = \"value\" }")),
        })
        .and_then(|entries| {
            let table = Table::new(form, entries, at);
            let values: Vec<Option<T>> = table.every_field().map(|(key, field)| read(key, field)).collect();
            values.into_iter().collect()
        })
    }
}

impl<'f, T> Answer<'f, T> {
    /// Like [`Answer::check`], where whatever is wrong has been noted already.
    fn and_then<U>(self, go_on: impl FnOnce(T) -> Option<U>) -> Answer<'f, U> {
        let state = match self.state {
            State::Given(value) => go_on(value).map_or(State::Wrong, State::Given),
            State::Wrong => State::Wrong,
            State::Absent => State::Absent,
        };
        Answer { field: self.field, state }
    }
}

fn wrong_type(expected: &str, found: &Value) -> Fault {
    Fault::new("wrong_type", format!("expected {expected}, found {}", found.kind()))
}

fn text(value: &Value) -> Result<&str, Fault> {
    match value {
        Value::Text(text) => Ok(text),
        other => Err(wrong_type("text", other).hint("text stands in quotes")),
    }
}

fn bounded_text(value: &Value, bytes_max: usize) -> Result<&str, Fault> {
    let text = text(value)?;
    if text.is_empty() || bytes_max < text.len() {
        let fault = Fault::new("out_of_range", format!("{} bytes of text, expected 1 to {bytes_max}", text.len()));
        return Err(fault.hint(if text.is_empty() { "write something, or leave it out" } else { "a shorter one" }));
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::new("malformed", format!("{} holds a control character", quoted(text))).hint("one line, without tabs"));
    }
    Ok(text)
}

/// The text of a decimal. A number without quotes has been through a float in most programs, so it is not taken.
fn decimal_text(value: &Value) -> Result<&str, Fault> {
    match value {
        Value::Text(text) => Ok(text),
        Value::Fraction(number) => Err(wrong_type("a decimal in quotes", value).hint(format!("write \"{number}\", which stays exact"))),
        Value::Integer(number) => Err(wrong_type("a decimal in quotes", value).hint(format!("write \"{number}\""))),
        other => Err(wrong_type("a decimal in quotes", other).hint("such as \"0.04\"")),
    }
}

fn amount_fault(error: &AmountError) -> Fault {
    match error {
        AmountError::Malformed(text) => Fault::new("malformed", format!("{} is not a decimal number", quoted(text)))
            .hint("digits, with a point if need be: \"4\", \"0.04\""),
        AmountError::TooFine(text) => {
            Fault::new("too_fine", format!("{} has too many digits behind the point", quoted(text))).hint("9 for an amount, 18 for a price")
        }
        AmountError::TooLarge(text) => Fault::new("out_of_range", format!("{} is too large", quoted(text))).hint("a smaller number"),
    }
}

fn duration(text: &str) -> Result<Nanos, Fault> {
    let malformed = || {
        Fault::new("malformed", format!("{} is not a length of time", quoted(text)))
            .hint("such as \"250ms\", \"30s\", \"5m\", \"1h\", \"2d\"")
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis_each: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(malformed()),
    };
    if number.is_empty() {
        return Err(malformed());
    }
    let too_long = || Fault::new("out_of_range", format!("{} is too long", quoted(text))).hint("a shorter one");
    let number: u64 = number.parse().map_err(|_| too_long())?;
    number.checked_mul(millis_each).and_then(|millis| millis.checked_mul(1_000_000)).map(Nanos).ok_or_else(too_long)
}
