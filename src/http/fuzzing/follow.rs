//! Readers of one generation who come late, go, and come back with the id of the last event that they have, as bytes on the
//! wire: each must have the text in the end, all of it, once.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue};

use super::super::sse::{LAST_EVENT_ID, encode};
use super::super::stream::cursor;
use crate::error::Code;
use crate::event::{Cursor, End, Kind, Start};
use crate::journal::memory::MemoryJournal;
use crate::journal::{Claim, Ended, Follower, Journal, Log, Opening, Writer};
use crate::provider::sse::Decoder;
use crate::text;

/// How many read at once.
const READERS: usize = 3;

/// The ids that the relay gives out are below this: 20 bits count how often a text was replaced, and a made-up id that
/// says a million times may well begin anew.
const MADE_UP: u64 = 0xF_FFFF << 33;

/// The first byte says whether the generation is put together from the database in the end. What follows is what happens
/// in it, each with a byte or more.
pub(crate) fn follow(input: &[u8]) {
    let Some((is_rebuilt, mut rest)) = input.split_first() else { return };
    let claim = MemoryJournal::default().claim(Opening::for_tests()).now_or_never();
    let Some(Ok(Claim::New(writer))) = claim else { panic!("the name is free") };
    writer.open(Start::for_tests());
    let mut log = Arc::clone(writer.log());
    let mut readers: [Reader; READERS] = std::array::from_fn(|_| Reader::come(&log, None));
    while let Some((act, after)) = rest.split_first() {
        rest = after;
        let who = usize::from(act >> 3) % READERS;
        match act % 8 {
            0..=2 => {
                let (text, after) = rest.split_at(usize::from(act >> 3).min(rest.len()));
                rest = after;
                let kind = if act % 8 == 0 { Kind::Reasoning } else { Kind::Token };
                let text = String::from_utf8_lossy(text);
                let appended = writer.append([(kind, &*text::clean(&text))].into_iter());
                assert!(appended.is_ok(), "no fuzzer sends as much as is too much");
            }
            3 => readers[who].read(usize::MAX),
            4 => readers[who].read(1),
            5 => readers[who].come_back(&log),
            6 => {
                let (id, after) = rest.split_at(usize::from(act >> 3).min(rest.len()));
                rest = after;
                listen_in(&writer, id);
            }
            _ => readers[who] = Reader::come(&log, None),
        }
    }
    let (reasoning, content) = writer.texts();
    if is_rebuilt % 2 == 1 {
        let ended = Ended {
            start: Start::for_tests(),
            reasoning: reasoning.clone(),
            content: content.clone(),
            end: End::for_tests(),
        };
        log = Log::rebuilt(Opening::for_tests(), ended);
        readers.iter_mut().for_each(|reader| reader.come_back(&log));
    }
    writer.end(End::for_tests());
    for mut reader in readers {
        reader.read(usize::MAX);
        assert_eq!((&reader.reasoning, &reader.content, reader.ends), (&reasoning, &content, 1));
    }
}

/// Somebody who says to have come as far as they like.
fn listen_in(writer: &Writer, id: &[u8]) {
    let Ok(header) = HeaderValue::from_bytes(id) else { return };
    let after = match cursor(&HeaderMap::from_iter([(LAST_EVENT_ID, header)]), None) {
        Ok(after) => after,
        Err(error) => {
            assert!(!id.iter().all(u8::is_ascii_digit), "{id:?}");
            return assert_eq!(error.code(), Code::InvalidRequest);
        }
    };
    assert!(id.iter().all(u8::is_ascii_digit), "{id:?}");
    let (reasoning, content) = writer.texts();
    let known = after.map(Cursor::id).filter(|id| *id < MADE_UP);
    let mut reader = Reader { known, ..Reader::come(writer.log(), after) };
    reader.read(usize::MAX);
    if after.is_none() || reader.is_synced {
        assert_eq!((&reader.reasoning, &reader.content), (&reasoning, &content));
    }
    assert!(reasoning.ends_with(&reader.reasoning) && content.ends_with(&reader.content));
}

/// What a client does.
struct Reader {
    follower: Follower,
    decoder: Decoder,
    reasoning: String,
    content: String,
    /// The id of the last event.
    known: Option<u64>,
    is_synced: bool,
    ends: usize,
}

impl Reader {
    fn come(log: &Arc<Log>, after: Option<Cursor>) -> Self {
        Self {
            follower: Follower::new(log, after),
            decoder: Decoder::new(),
            reasoning: String::new(),
            content: String::new(),
            known: None,
            is_synced: false,
            ends: 0,
        }
    }

    /// The connection is gone; the next one begins where this one was.
    fn come_back(&mut self, log: &Arc<Log>) {
        let mut headers = HeaderMap::new();
        if let Some(id) = self.known {
            headers.insert(LAST_EVENT_ID, HeaderValue::from(id));
        }
        let Ok(after) = cursor(&headers, None) else { panic!("{:?} was given out", self.known) };
        assert_eq!(after.map(Cursor::id), self.known, "an id says it all");
        self.follower = Follower::new(log, after);
        self.decoder = Decoder::new();
    }

    /// Reads what there is, up to so many events.
    fn read(&mut self, events_max: usize) {
        let mut frame = BytesMut::new();
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..events_max {
            let polled = self
                .follower
                .poll(&mut context, |after, view| encode(&mut frame, after.id(), &view));
            if polled != Poll::Ready(true) {
                break;
            }
        }
        let mut decoder = std::mem::take(&mut self.decoder);
        let decoded = decoder.push(&frame, |event| self.take(&event.name, &event.data, &event.id));
        assert_eq!(decoded, Ok(()));
        self.decoder = decoder;
    }

    fn take(&mut self, name: &str, data: &str, id: &str) {
        let Ok(id) = id.parse() else { panic!("{id} is no number") };
        assert!(self.known < Some(id), "ids grow: {:?} {id}", self.known);
        self.known = Some(id);
        match name {
            "start" => {}
            "reasoning" => self.reasoning.push_str(data),
            "token" => self.content.push_str(data),
            "sync" => {
                let whole: serde_json::Value = serde_json::from_str(data).unwrap_or_default();
                let text = |field: &str| whole[field].as_str().unwrap_or("?").to_owned();
                (self.reasoning, self.content) = (text("reasoning"), text("content"));
                self.is_synced = true;
            }
            "done" => self.ends += 1,
            other => panic!("{other} is not expected"),
        }
    }
}
