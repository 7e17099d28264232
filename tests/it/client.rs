//! A reader: an SSE client of its own, so that the relay is not measured by its own ruler.

use std::collections::VecDeque;

use http::HeaderMap;
use serde_json::Value;
use tokio::time::timeout;

use crate::provider::PATIENCE;

/// One event as a client gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) id: Option<u64>,
    pub(crate) name: String,
    pub(crate) data: String,
}

impl Event {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    pub(crate) fn is_end(&self) -> bool {
        matches!(self.name.as_str(), "done" | "error")
    }
}

/// Holds events to what is promised of their ids, also where their reader has come back in between, and wherever.
pub(crate) fn check_ids(seen: &[Event]) {
    let ids: Vec<_> = seen.iter().map(|event| event.id.expect("an event without id")).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
}

/// A stream being read.
pub(crate) struct Reading {
    response: reqwest::Response,
    buffer: Vec<u8>,
    ready: VecDeque<Event>,
    /// All events so far.
    pub(crate) seen: Vec<Event>,
    /// Whether it may end in the middle of an event.
    may_break: bool,
}

impl Reading {
    pub(crate) fn new(response: reqwest::Response) -> Self {
        let (buffer, ready, seen) = (Vec::new(), VecDeque::new(), Vec::new());
        Self { response, buffer, ready, seen, may_break: false }
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(crate) fn stream_id(&self) -> String {
        self.headers()["x-stream-id"].to_str().unwrap().to_owned()
    }

    /// The next event, pings left out; `None` when the relay has closed the stream.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                if event.name == "ping" {
                    continue;
                }
                self.seen.push(event.clone());
                return Some(event);
            }
            let bytes = timeout(PATIENCE, self.response.chunk()).await;
            let bytes = bytes.unwrap_or_else(|_| panic!("nothing more came after {:?}", self.seen));
            // A connection that breaks ends a stream like one that is closed: a reader can only ask again.
            let Some(bytes) = bytes.ok().flatten() else {
                assert!(
                    self.may_break || self.buffer.is_empty(),
                    "half an event: {:?}",
                    String::from_utf8_lossy(&self.buffer)
                );
                return None;
            };
            self.buffer.extend_from_slice(&bytes);
            while let Some(end) = self.buffer.windows(2).position(|window| window == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                self.ready.push_back(parse(std::str::from_utf8(&event).unwrap()));
            }
        }
    }

    /// The next event; `None` when the relay has closed the stream, or is gone, be it in the middle of an event.
    pub(crate) async fn next_if_whole(&mut self) -> Option<Event> {
        self.may_break = true;
        self.next().await
    }

    /// Reads until an event of that name.
    pub(crate) async fn until(&mut self, name: &str) -> Event {
        while let Some(event) = self.next().await {
            if event.name == name {
                return event;
            }
        }
        panic!("no `{name}` in {:?}", self.seen)
    }

    /// Reads to the end, which must be one, at the end.
    pub(crate) async fn end(&mut self) -> Event {
        while self.next().await.is_some() {}
        let ends: Vec<_> = self.seen.iter().filter(|event| event.is_end()).collect();
        assert_eq!(ends.len(), 1, "{:?}", self.seen);
        let last = self.seen.last().unwrap();
        assert!(last.is_end(), "{:?}", self.seen);
        check_ids(&self.seen);
        last.clone()
    }

    /// Reads to the end, which must be `done`.
    pub(crate) async fn done(&mut self) -> Value {
        let end = self.end().await;
        assert_eq!(end.name, "done", "{end:?}");
        end.json()
    }

    /// Reads to the end, which must be `error`.
    pub(crate) async fn error(&mut self) -> Value {
        let end = self.end().await;
        assert_eq!(end.name, "error", "{end:?}");
        end.json()
    }

    /// What a client puts together from what it has read.
    pub(crate) fn text(&self) -> String {
        self.fold("token", "content")
    }

    pub(crate) fn reasoning(&self) -> String {
        self.fold("reasoning", "reasoning")
    }

    fn fold(&self, name: &str, field: &str) -> String {
        self.seen.iter().fold(String::new(), |text, event| match event.name.as_str() {
            "sync" => event.json()[field].as_str().unwrap().to_owned(),
            event_name if event_name == name => text + &event.data,
            _ => text,
        })
    }
}

fn parse(text: &str) -> Event {
    let mut event = Event { id: None, name: "message".to_owned(), data: String::new() };
    let mut data = Vec::new();
    for line in text.trim_end_matches('\n').split('\n') {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => event.id = Some(value.parse().unwrap()),
            "event" => value.clone_into(&mut event.name),
            "data" => data.push(value),
            _ => panic!("an unknown field in {text:?}"),
        }
    }
    event.data = data.join("\n");
    event
}
