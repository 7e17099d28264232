//! The decoder of server-sent events: bytes in, events out, by the grammar of the WHATWG HTML standard, section 9.2.6.
//!
//! It is our own because everything a provider says comes through here, and the crates at hand panic on a byte order
//! mark or hold on to as much as a provider cares to send. What this one promises: any way of cutting the bytes gives
//! the same events, no input makes it panic, and what it holds is bounded by [`LINE_LEN_MAX`] and [`DATA_LEN_MAX`].

use std::borrow::Cow;

use crate::text::{KEPT_LEN_MAX, discreet};

/// The longest line in bytes. The longest honest line is one JSON chunk that carries a whole answer at once.
pub const LINE_LEN_MAX: usize = 1 << 20;

/// The most data of one event in bytes: its lines together.
pub const DATA_LEN_MAX: usize = 4 << 20;

/// The longest event id that is remembered, in bytes; a longer one is ignored, like one with a NUL.
const ID_LEN_MAX: usize = 1 << 10;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// One dispatched event.
#[derive(PartialEq, Eq)]
pub struct Event<'a> {
    /// The event's type, `message` where the source names none.
    pub name: Cow<'a, str>,
    /// Its data lines, joined by line feeds.
    pub data: Cow<'a, str>,
    /// The last id that the source set, in this event or before it.
    pub id: Cow<'a, str>,
}

discreet!(Event<'_> {});

/// A source sent a line or an event that is longer than any honest one. The decoder is of no more use then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Oversized {
    /// A line over [`LINE_LEN_MAX`].
    #[error("a line of over {LINE_LEN_MAX} bytes")]
    Line,
    /// An event over [`DATA_LEN_MAX`].
    #[error("an event of over {DATA_LEN_MAX} bytes")]
    Data,
}

/// The state between two pieces of a stream.
#[derive(Default)]
pub struct Decoder {
    /// How much of a byte order mark the stream has begun with; `None` once that is settled.
    mark: Mark,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_carriage_return: bool,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    /// The data lines of the event so far, each with a line feed behind it.
    data: Vec<u8>,
    name: Vec<u8>,
    id: Vec<u8>,
    retry_ms: Option<u64>,
}

discreet!(Decoder {});

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Matched(usize),
    Settled,
}

impl Default for Mark {
    fn default() -> Self {
        Self::Matched(0)
    }
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The reconnection time that the source asked for last, in milliseconds.
    #[must_use]
    pub fn retry_ms(&self) -> Option<u64> {
        self.retry_ms
    }

    /// Takes the next bytes of the stream and hands over each event that is complete with them. An event that is
    /// not complete when the stream ends is never handed over, as the standard has it.
    ///
    /// # Errors
    /// [`Oversized`] at the first line or event over its limit; events before it have been handed over.
    pub fn push(
        &mut self,
        bytes: &[u8],
        mut on_event: impl FnMut(Event<'_>),
    ) -> Result<(), Oversized> {
        let mut bytes = self.settle_mark(bytes);
        if self.after_carriage_return && !bytes.is_empty() {
            self.after_carriage_return = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) {
            self.end_line(&bytes[..end], &mut on_event)?;
            let is_carriage_return = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            if is_carriage_return {
                self.after_carriage_return = bytes.is_empty();
                bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
        }
        self.hold(bytes)
    }

    /// Drops one byte order mark from the very beginning, even if it comes byte by byte.
    fn settle_mark<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Mark::Matched(matched) = self.mark else { return bytes };
        let missing = &BYTE_ORDER_MARK[matched..];
        if let Some(rest) = bytes.strip_prefix(missing) {
            self.mark = Mark::Settled;
            return rest;
        }
        if missing.starts_with(bytes) {
            self.mark = Mark::Matched(matched + bytes.len());
            return &[];
        }
        // What looked like a mark was the beginning of a line.
        self.mark = Mark::Settled;
        self.line.extend_from_slice(&BYTE_ORDER_MARK[..matched]);
        bytes
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), Oversized> {
        if self.line.len() + bytes.len() > LINE_LEN_MAX {
            return Err(Oversized::Line);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    /// A line ends with `tail`. Most lines come whole and are read where they are, without a copy.
    fn end_line(
        &mut self,
        tail: &[u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Oversized> {
        if self.line.is_empty() {
            if tail.len() > LINE_LEN_MAX {
                return Err(Oversized::Line);
            }
            return self.read_line(tail, on_event);
        }
        self.hold(tail)?;
        let mut line = std::mem::take(&mut self.line);
        let read = self.read_line(&line, on_event);
        line.clear();
        line.shrink_to(KEPT_LEN_MAX);
        self.line = line;
        read
    }

    fn read_line(
        &mut self,
        line: &[u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Oversized> {
        if line.is_empty() {
            self.dispatch(on_event);
            return Ok(());
        }
        let (field, value) = match memchr::memchr(b':', line) {
            // A comment.
            Some(0) => return Ok(()),
            Some(colon) => {
                (&line[..colon], line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..]))
            }
            None => (line, &[][..]),
        };
        match field {
            b"data" => {
                if self.data.len() + value.len() >= DATA_LEN_MAX {
                    return Err(Oversized::Data);
                }
                self.data.extend_from_slice(value);
                self.data.push(b'\n');
            }
            b"event" => {
                self.name.clear();
                self.name.extend_from_slice(value);
            }
            b"id" if !value.contains(&0) && value.len() <= ID_LEN_MAX => {
                self.id.clear();
                self.id.extend_from_slice(value);
            }
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                // Out of range is ignored like any other value that is no time.
                let retry = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
                self.retry_ms = retry.or(self.retry_ms);
            }
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self, on_event: &mut impl FnMut(Event<'_>)) {
        if let Some((_, data)) = self.data.split_last() {
            let name = if self.name.is_empty() { &b"message"[..] } else { &self.name };
            on_event(Event { name: decode(name), data: decode(data), id: decode(&self.id) });
        }
        self.data.clear();
        self.data.shrink_to(KEPT_LEN_MAX);
        self.name.clear();
    }
}

/// `bytes` as text, with U+FFFD for what is none. To check first is faster than `from_utf8_lossy` alone, which looks at each
/// character.
fn decode(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;
