//! What a provider says, read as a generation reads it, on whatever a fuzzer sends.

use secrecy::SecretString;
use serde_json::Value;
use url::Url;

pub(crate) use super::cleartext::fuzzing::response;
pub(crate) use super::guard::fuzzing::{address, base_url};
use super::habits::ORDINARY;
use super::openai::{End, Endpoint, Key, Upstream};
use super::pattern::Chunks;
use super::{Batch, chunk};
use crate::error::Error;

/// A key that a provider was sent, and how many characters of it are a part of it that may not come back.
const KEY: &str = "canary-0123456789-abcdefghij";
const PIECE_LEN: usize = 8;

/// Each line is what one event of the stream has as its data.
pub(crate) fn answer(input: &[u8]) {
    let Ok(url) = Url::parse("https://llm.example/v1") else { return };
    let endpoint = Endpoint {
        name: "custom".to_owned(),
        upstream: Upstream::Trusted(url),
        key: Key::Users(SecretString::from(KEY)),
        habits: ORDINARY,
        is_added: false,
    };
    let (mut end, mut batch) = (End::default(), Batch::new(true));
    let mut chunks = Chunks::default();
    for data in String::from_utf8_lossy(input).split('\n') {
        check_chunk(data);
        assert_eq!(chunks.read(data).ok(), chunk::parse(data).ok(), "{data:?}");
        if let Err(error) = end.take_in(data, &endpoint, &mut batch) {
            check_error(&error);
            break;
        }
    }
    let pieces: Vec<_> = batch.pieces().map(|(_, text)| text).collect();
    assert_eq!(pieces.concat().len(), batch.len());
    for text in pieces.into_iter().chain(end.finish_reason.as_deref()) {
        assert!(!text.contains(['\0', '\r']), "{text:?}");
    }
    assert!(end.finish_reason.is_none_or(|reason| reason.len() <= 64));
}

/// Where serde's own reading finds an answer, ours finds the same one.
fn check_chunk(data: &str) {
    let _whatever_it_is = chunk::parse_error_body(data.as_bytes());
    let Ok(chunk) = chunk::parse(data) else { return };
    let Ok(json) = serde_json::from_str::<Value>(data) else { return };
    let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str);
    if let Some(content) = text("/choices/0/delta/content") {
        assert_eq!(chunk.content, content);
    }
    if let Some(reasoning) = text("/choices/0/delta/reasoning_content")
        && !reasoning.is_empty()
    {
        assert_eq!(chunk.reasoning, reasoning);
    }
    if let Some(reason) = text("/choices/0/finish_reason").filter(|reason| !reason.is_empty()) {
        assert_eq!(chunk.finish_reason.as_deref(), Some(reason));
    }
}

/// What goes to a reader and to the log is short, on one line, and has no key in it.
fn check_error(error: &Error) {
    let told = error.to_string();
    assert!(told.len() < 1_000 && !told.contains(['\0', '\r', '\n']), "{told:?}");
    let told = told.to_ascii_lowercase();
    let mut pieces = (0..=KEY.len() - PIECE_LEN).map(|at| &KEY[at..at + PIECE_LEN]);
    assert!(!pieces.any(|piece| told.contains(piece)) && !told.contains("sk-"), "{told:?}");
}
