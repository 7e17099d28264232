//! Events as the entries of a Redis stream: one field each, named after the event.

use std::time::Duration;

use redis::Value;
use redis::streams::StreamId as Entry;
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error};
use crate::event::{Kind, Seq};
use crate::journal::View;
use crate::journal::mirror::{Refusal, Told};

const START: &str = "start";
const END: &str = "end";
const REFUSED: &str = "refused";
const GONE: &str = "gone";

/// The field that is written for an event.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) value: String,
}

impl Field {
    /// Of an event that a follower was handed. `None` for one that others cannot be told: they have to begin anew.
    pub(super) fn of(view: &View<'_>) -> Option<Self> {
        Some(match view {
            View::Start(start) => Self { name: START, value: json(start) },
            View::Text(kind, text) => Self { name: kind.as_str(), value: (*text).to_owned() },
            View::End(end) => Self { name: END, value: json(end) },
            View::Sync { .. } => return None,
        })
    }

    pub(super) fn refused(error: &Error) -> Self {
        let refused = WireError {
            code: error.code().as_str().to_owned(),
            message: error.message().into_owned(),
            retry_after_ms: error.retry_after().map(|time| time.as_millis() as u64),
        };
        Self { name: REFUSED, value: json(&refused) }
    }

    pub(super) fn gone() -> Self {
        Self { name: GONE, value: String::new() }
    }
}

/// Strings and numbers only, so it does not fail.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[derive(Serialize, Deserialize)]
struct WireError {
    code: String,
    message: String,
    retry_after_ms: Option<u64>,
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        let code = Code::of(&error.code).unwrap_or(Code::Internal);
        let told = Self::new(code, error.message);
        match error.retry_after_ms {
            Some(time) => told.with_retry_after(Duration::from_millis(time)),
            None => told,
        }
    }
}

/// The event of an entry, and its position. `None` if this version cannot read it.
pub(super) fn told(entry: &Entry) -> Option<(Seq, Told)> {
    let (_, seq) = entry.id.split_once('-')?;
    let (name, value) = entry.map.iter().next()?;
    let Value::BulkString(value) = value else { return None };
    let value = std::str::from_utf8(value).ok()?;
    let told = match name.as_str() {
        START => Told::Start(serde_json::from_str(value).ok()?),
        END => Told::End(serde_json::from_str(value).ok()?),
        REFUSED => {
            let error: WireError = serde_json::from_str(value).ok()?;
            Told::Refused(Refusal(error.into()))
        }
        GONE => Told::Gone,
        name => {
            let kind = [Kind::Reasoning, Kind::Token].into_iter().find(|k| k.as_str() == name)?;
            Told::Text(kind, value.to_owned())
        }
    };
    Some((seq.parse().ok()?, told))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::event::{End, Failed, Failure, Start};
    use crate::id::StreamId;

    #[track_caller]
    fn check(field: Field, expected: &Told) {
        let map = HashMap::from([(field.name.to_owned(), Value::BulkString(field.value.into()))]);
        let read = told(&Entry { id: "3-17".to_owned(), map, ..Entry::default() });
        assert_eq!(read.as_ref().map(|(seq, told)| (*seq, told)), Some((17, expected)));
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let start = Start::for_tests();
        check(Field::of(&View::Start(&start)).unwrap(), &Told::Start(start));
        let text = " a\n🦊";
        for kind in [Kind::Reasoning, Kind::Token] {
            check(Field::of(&View::Text(kind, text)).unwrap(), &Told::Text(kind, text.to_owned()));
        }
        let error = Error::new(Code::NoBot, "Make a bot.").with_retry_after(Duration::from_secs(2));
        check(Field::refused(&error), &Told::Refused(Refusal(error.clone())));
        let end = End::Failed(Failed {
            failure: Failure::from(&error),
            stream_id: StreamId::random(),
            message_id: None,
            saved: Some(false),
        });
        check(Field::of(&View::End(&end)).unwrap(), &Told::End(end));
        check(Field::gone(), &Told::Gone);
    }

    #[test]
    fn what_a_newer_version_writes_is_not_guessed_at() {
        let map = HashMap::from([("image".to_owned(), Value::BulkString(b"x".to_vec()))]);
        assert_eq!(told(&Entry { id: "1-2".to_owned(), map, ..Entry::default() }), None);
    }
}
