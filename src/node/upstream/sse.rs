//! Server-sent events, read as they come in pieces.

/// Longest event.
const EVENT_BYTES_MAX: usize = 64 << 10;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// Its name; `message` if it has none.
    pub(super) name: String,
    /// Its data, line by line.
    pub(super) data: String,
}

/// An event is longer than [`EVENT_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// What has come of the next event.
#[derive(Debug, Default)]
pub(super) struct Reader {
    line: Vec<u8>,
    name: String,
    data: Vec<String>,
    bytes: usize,
}

impl Reader {
    /// Takes a piece in, and gives the events that it ends.
    pub(super) fn take(&mut self, piece: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for byte in piece {
            self.bytes += 1;
            if EVENT_BYTES_MAX < self.bytes {
                return Err(TooLong);
            }
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                events.extend(self.line(String::from_utf8_lossy(&line).trim_end_matches('\r')));
            } else {
                self.line.push(*byte);
            }
        }
        Ok(events)
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            self.bytes = 0;
            let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            let name = if name.is_empty() { "message".to_owned() } else { name };
            return (!data.is_empty()).then(|| Event { name, data: data.join("\n") });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => self.data.push(value.to_owned()),
            _ => {} // a comment, an id, or what a later version says
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.to_owned(), data: data.to_owned() }
    }

    const TEXT: &str =
        ": hello\n\nevent: topup\ndata: {\"a\":1}\nid: 7\n\r\ndata:x\r\ndata: y\r\n\r\nevent: lost\n\nevent: card\ndata: {}\n\n";

    fn wanted() -> Vec<Event> {
        vec![event("topup", "{\"a\":1}"), event("message", "x\ny"), event("card", "{}")]
    }

    #[test]
    fn what_never_ends_is_given_up() {
        let mut reader = Reader::default();
        assert_eq!(reader.take(&vec![b'a'; EVENT_BYTES_MAX]), Ok(Vec::new()));
        assert_eq!(reader.take(b"a"), Err(TooLong));
        let mut reader = Reader::default();
        let endless = ": a\n".repeat(EVENT_BYTES_MAX);
        assert_eq!(reader.take(endless.as_bytes()), Err(TooLong), "lines without an event do not go on for ever");
    }

    proptest! {
        #[test]
        fn events_are_the_same_however_they_are_cut(cuts in prop::collection::vec(0..TEXT.len(), 0..12)) {
            let mut cuts = cuts;
            cuts.extend([0, TEXT.len()]);
            cuts.sort_unstable();
            let mut reader = Reader::default();
            let pieces = cuts.windows(2).map(|pair| &TEXT.as_bytes()[pair[0]..pair[1]]);
            let events: Vec<Event> = pieces.flat_map(|piece| reader.take(piece).unwrap()).collect();
            prop_assert_eq!(events, wanted());
        }

        #[test]
        fn no_bytes_make_the_reader_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let mut reader = Reader::default();
            for piece in pieces {
                let _ = reader.take(&piece);
            }
        }
    }
}
