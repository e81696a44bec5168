//! Server-sent events, read as the bytes come: the pieces of a body may end anywhere.

use bytes::{Bytes, BytesMut};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its kind, if it names one.
    pub(crate) name: Option<String>,
    /// Its lines of data, joined.
    pub(crate) data: String,
}

/// A stream of events that could not be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// An event is larger than allowed.
    TooLarge,
    /// A line is no UTF-8.
    NotText,
}

/// Reads events out of bytes.
#[derive(Debug)]
pub(crate) struct Events {
    buffer: BytesMut,
    /// How much of the buffer holds no end of a line.
    searched: usize,
    name: Option<String>,
    data: Option<String>,
    event_bytes_max: usize,
    /// The last byte was a carriage return, so a line feed that follows belongs to it.
    after_return: bool,
}

impl Events {
    /// An event of more bytes than `event_bytes_max` breaks the stream.
    pub(crate) fn new(event_bytes_max: usize) -> Self {
        Events {
            buffer: BytesMut::new(),
            searched: 0,
            name: None,
            data: None,
            event_bytes_max,
            after_return: false,
        }
    }

    /// Takes what came, and gives the events that are whole now.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Event>, Broken> {
        let mut events = Vec::new();
        self.buffer.extend_from_slice(bytes);
        while let Some(line) = self.line()? {
            if let Some(event) = self.take(&line) {
                events.push(event);
            }
            if self.data.as_ref().is_some_and(|data| data.len() > self.event_bytes_max) {
                return Err(Broken::TooLarge);
            }
        }
        match self.buffer.len() > self.event_bytes_max {
            true => Err(Broken::TooLarge),
            false => Ok(events),
        }
    }

    /// The next whole line, without its end.
    fn line(&mut self) -> Result<Option<String>, Broken> {
        if self.after_return && !self.buffer.is_empty() {
            if self.buffer[0] == b'\n' {
                let _ = self.buffer.split_to(1);
                self.searched = self.searched.saturating_sub(1);
            }
            self.after_return = false;
        }
        let found = self.buffer[self.searched..].iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let Some(found) = found else {
            self.searched = self.buffer.len();
            return Ok(None);
        };
        let line = self.buffer.split_to(self.searched + found);
        self.after_return = self.buffer[0] == b'\r';
        let _ = self.buffer.split_to(1);
        self.searched = 0;
        std::str::from_utf8(&line).map(|line| Some(line.to_owned())).map_err(|_| Broken::NotText)
    }

    fn take(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let name = self.name.take();
            return self.data.take().map(|data| Event { name, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "event" => self.name = Some(value.to_owned()),
            _ => {}
        }
        None
    }
}

/// The bytes of an event whose data has no line breaks, as JSON has none.
pub(crate) fn event(name: Option<&str>, data: &str) -> Bytes {
    let name = name.map_or(String::new(), |name| format!("event: {name}\n"));
    Bytes::from(format!("{name}data: {data}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "\u{feff}: a comment\r\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:two\ndata: lines\n\n\
                        id: 7\n\ndata\n\ndata: \u{fc}\r\rretry: 1\ndata: [DONE]\n\ndata: cut off";

    fn all(pieces: &[&[u8]]) -> Vec<(Option<String>, String)> {
        let mut events = Events::new(100);
        let fed = pieces.iter().flat_map(|piece| events.feed(piece).unwrap());
        fed.map(|event| (event.name, event.data)).collect()
    }

    #[test]
    fn events_are_read_as_the_standard_says() {
        let expected =
            [(None, "{\"a\":1}"), (Some("x"), "two\nlines"), (None, ""), (None, "\u{fc}"), (None, "[DONE]")];
        let read = all(&[TEXT.as_bytes()]);
        let read: Vec<_> = read.iter().map(|(name, data)| (name.as_deref(), data.as_str())).collect();
        assert_eq!(read, expected);
    }

    proptest! {
        /// Wherever the pieces end, the events are the same.
        #[test]
        fn pieces_may_end_anywhere(mut cuts in prop::collection::vec(0..TEXT.len(), 0..8)) {
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&TEXT.as_bytes()[from..cut]);
                from = cut;
            }
            pieces.push(&TEXT.as_bytes()[from..]);
            prop_assert_eq!(all(&pieces), all(&[TEXT.as_bytes()]));
        }

        #[test]
        fn no_bytes_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let mut events = Events::new(64);
            for piece in pieces {
                if events.feed(&piece).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn an_event_without_end_breaks_the_stream() {
        let mut events = Events::new(100);
        assert!(events.feed(&[b'x'; 100]).is_ok());
        assert_eq!(events.feed(b"x"), Err(Broken::TooLarge));
        let mut events = Events::new(100);
        let lines = "data: 0123456789\n".repeat(20);
        assert_eq!(events.feed(lines.as_bytes()), Err(Broken::TooLarge));
        assert_eq!(Events::new(9).feed(b"data: \xff\n"), Err(Broken::NotText));
    }
}
