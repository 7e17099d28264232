//! One chunk of a provider's stream: OpenAI's `chat.completion.chunk`, read as leniently as providers write it.
//!
//! Every field may be absent or null, `usage` may stand on any chunk, reasoning goes by two names, content may be a list
//! of parts (Mistral), and an error may stand alone (OpenAI) or beside choices (OpenRouter).

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::text::discreet;

/// What a chunk says. Borrows from the chunk's text where it can.
#[derive(Default, PartialEq)]
pub struct Chunk<'a> {
    /// What the model thinks; may be empty.
    pub reasoning: Cow<'a, str>,
    /// More of the answer; may be empty.
    pub content: Cow<'a, str>,
    /// Why the answer ends, on the chunk that ends it.
    pub finish_reason: Option<Cow<'a, str>>,
    /// The provider's count.
    pub usage: Option<ChunkUsage>,
    /// Why the provider failed.
    pub error: Option<ChunkError>,
}

discreet!(Chunk<'_> { usage });

/// Tokens as the provider counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkUsage {
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Of the answer.
    pub completion_tokens: u64,
}

impl ChunkUsage {
    /// The two counts, if both are there. An answer is not lost for a bill that cannot be read.
    fn read(usage: &serde_json::Value) -> Option<Self> {
        // Some write whole numbers with a fraction.
        let count = |name: &str| {
            let count = usage.get(name)?;
            count
                .as_u64()
                .or_else(|| count.as_f64().filter(|count| *count >= 0.0).map(|count| count as u64))
        };
        Some(Self {
            prompt_tokens: count("prompt_tokens")?,
            completion_tokens: count("completion_tokens")?,
        })
    }
}

/// What a provider says of its own failure.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ChunkError {
    /// An HTTP status, a word, or nothing.
    pub code: Option<String>,
    /// Its own words.
    pub message: String,
}

discreet!(ChunkError {});

/// Reads one chunk.
///
/// # Errors
/// Whatever is no JSON object. Half a surrogate pair is not an error: some servers cut a pair in two, and each half is
/// read as U+FFFD, like other broken text.
pub fn parse(data: &str) -> Result<Chunk<'_>, serde_json::Error> {
    // serde would also read an array, field by field.
    if !data.trim_start().starts_with('{') {
        return Err(serde::de::Error::custom("no JSON object"));
    }
    match serde_json::from_str::<Wire<'_>>(data) {
        Ok(wire) => Ok(wire.into()),
        Err(error) => match replace_lone_surrogates(data) {
            Some(mended) => {
                serde_json::from_str::<Wire<'_>>(&mended).map(|wire| Chunk::from(wire).into_owned())
            }
            None => Err(error),
        },
    }
}

/// The error in a body that is no stream: `{"error": {"message": …}}`, `{"error": "…"}` or `{"message": …}`.
pub(super) fn parse_error_body(body: &[u8]) -> Option<ChunkError> {
    #[derive(Deserialize)]
    struct Body {
        error: Option<WireError>,
        message: Option<String>,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    match (body.error, body.message) {
        (Some(error), _) => Some(error.0),
        (None, Some(message)) => Some(ChunkError { code: None, message }),
        (None, None) => None,
    }
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow, default, deserialize_with = "null_as_default")]
    choices: Vec<WireChoice<'a>>,
    #[serde(default)]
    usage: Option<serde_json::Value>,
    #[serde(default)]
    error: Option<WireError>,
}

#[derive(Deserialize)]
struct WireChoice<'a> {
    #[serde(borrow, default, deserialize_with = "null_as_default")]
    delta: WireDelta<'a>,
    #[serde(borrow, default, deserialize_with = "null_as_default")]
    finish_reason: Text<'a>,
}

#[derive(Default, Deserialize)]
struct WireDelta<'a> {
    #[serde(borrow, default)]
    content: Content<'a>,
    #[serde(borrow, default, deserialize_with = "null_as_default")]
    reasoning_content: Text<'a>,
    #[serde(borrow, default, deserialize_with = "null_as_default")]
    reasoning: Text<'a>,
}

/// A string that borrows where the JSON has no escapes; serde borrows through a newtype but not through `Option<Cow>`.
#[derive(Default, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl<'a> From<Wire<'a>> for Chunk<'a> {
    fn from(wire: Wire<'a>) -> Self {
        let mut chunk = Self {
            usage: wire.usage.as_ref().and_then(ChunkUsage::read),
            error: wire.error.map(|error| error.0),
            ..Self::default()
        };
        // The relay asks for one choice, so there is one.
        if let Some(WireChoice { delta, finish_reason }) = wire.choices.into_iter().next() {
            let Content { text, thinking } = delta.content;
            // Whoever sends reasoning under both names sends the same text twice.
            chunk.reasoning = [delta.reasoning_content.0, delta.reasoning.0, thinking]
                .into_iter()
                .find(|text| !text.is_empty())
                .unwrap_or_default();
            chunk.content = text;
            chunk.finish_reason = Some(finish_reason.0).filter(|reason| !reason.is_empty());
        }
        chunk
    }
}

impl Chunk<'_> {
    fn into_owned(self) -> Chunk<'static> {
        Chunk {
            reasoning: self.reasoning.into_owned().into(),
            content: self.content.into_owned().into(),
            finish_reason: self.finish_reason.map(|reason| reason.into_owned().into()),
            usage: self.usage,
            error: self.error,
        }
    }
}

/// `content`: a string, null, or Mistral's list of parts, some of which are thoughts.
#[derive(Default)]
struct Content<'a> {
    text: Cow<'a, str>,
    thinking: Cow<'a, str>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor;

        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text or a list of parts")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Content<'de>, E> {
                Ok(Content { text: Cow::Borrowed(text), thinking: Cow::default() })
            }

            fn visit_str<E>(self, text: &str) -> Result<Content<'de>, E> {
                Ok(Content { text: Cow::Owned(text.to_owned()), thinking: Cow::default() })
            }

            fn visit_unit<E>(self) -> Result<Content<'de>, E> {
                Ok(Content::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content<'de>, A::Error> {
                let (mut text, mut thinking) = (String::new(), String::new());
                while let Some(part) = parts.next_element::<Part>()? {
                    text.push_str(&part.text);
                    for thought in &part.thinking {
                        thinking.push_str(&thought.text);
                    }
                }
                Ok(Content { text: text.into(), thinking: thinking.into() })
            }
        }

        deserializer.deserialize_any(ContentVisitor)
    }
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
    #[serde(default)]
    thinking: Vec<Thought>,
}

#[derive(Deserialize)]
struct Thought {
    #[serde(default)]
    text: String,
}

/// `error`: an object whose `code` is a number or a word, or the message alone.
struct WireError(ChunkError);

impl<'de> Deserialize<'de> for WireError {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ErrorVisitor;

        impl<'de> Visitor<'de> for ErrorVisitor {
            type Value = WireError;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an error object or its message")
            }

            fn visit_str<E>(self, message: &str) -> Result<WireError, E> {
                Ok(WireError(ChunkError { code: None, message: message.to_owned() }))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<WireError, A::Error> {
                let mut error = ChunkError::default();
                while let Some(field) = fields.next_key::<Cow<'de, str>>()? {
                    let as_text = |value: serde_json::Value| match value {
                        serde_json::Value::String(text) => Some(text),
                        serde_json::Value::Number(number) => Some(number.to_string()),
                        _ => None,
                    };
                    match &*field {
                        "code" => error.code = as_text(fields.next_value()?).or(error.code),
                        // OpenAI's word where it has no code.
                        "type" if error.code.is_none() => {
                            error.code = as_text(fields.next_value()?);
                        }
                        "message" => {
                            error.message = as_text(fields.next_value()?).unwrap_or_default();
                        }
                        _ => {
                            fields.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(WireError(error))
            }
        }

        deserializer.deserialize_any(ErrorVisitor)
    }
}

/// `json` with every `\uD800` to `\uDFFF` that has no partner replaced by `\uFFFD`; `None` if there is none.
fn replace_lone_surrogates(json: &str) -> Option<String> {
    let unit = |at: usize| -> Option<u32> {
        let escape = json.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(escape, 16).ok()
    };
    let mut mended = String::with_capacity(json.len());
    let (mut at, mut copied, mut found) = (0, 0, false);
    while let Some(offset) = memchr::memchr(b'\\', &json.as_bytes()[at..]) {
        at += offset;
        match (unit(at), unit(at + 6)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => at += 12,
            (Some(0xD800..=0xDFFF), _) => {
                mended.push_str(&json[copied..at]);
                mended.push_str("\\uFFFD");
                at += 6;
                (copied, found) = (at, true);
            }
            // An escape is a backslash and one ASCII character; the second may be a backslash too.
            _ => at = json.ceil_char_boundary(at + 2).min(json.len()),
        }
    }
    mended.push_str(&json[copied..]);
    found.then_some(mended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, expected: &Chunk<'_>) {
        assert_eq!(&parse(json).unwrap(), expected, "{json}");
    }

    fn content(text: &str) -> Chunk<'_> {
        Chunk { content: text.into(), ..Chunk::default() }
    }

    #[test]
    fn fields_may_be_absent_or_null() {
        for json in [
            "{}",
            r#"{"choices":null,"usage":null,"error":null}"#,
            r#"{"choices":[]}"#,
            r#"{"choices":[{}]}"#,
            r#"{"choices":[{"delta":null,"finish_reason":null}]}"#,
            r#"{"choices":[{"delta":{"content":null,"reasoning":null,"reasoning_content":null}}]}"#,
        ] {
            check(json, &Chunk::default());
        }
    }

    #[test]
    fn content_is_borrowed_where_it_can_be() {
        let json =
            r#"{"id":"x","choices":[{"index":0,"delta":{"role":"assistant","content":"once"}}]}"#;
        assert!(matches!(parse(json).unwrap().content, Cow::Borrowed("once")));
        check(r#"{"choices":[{"delta":{"content":"a\n🦊\ud83e\udd8a"}}]}"#, &content("a\n🦊🦊"));
    }

    #[test]
    fn reasoning_has_three_names_and_is_counted_once() {
        let expected = Chunk { reasoning: "hm".into(), ..Chunk::default() };
        check(r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#, &expected);
        check(r#"{"choices":[{"delta":{"reasoning":"hm"}}]}"#, &expected);
        check(r#"{"choices":[{"delta":{"reasoning":"hm","reasoning_content":"hm"}}]}"#, &expected);
        check(
            r#"{"choices":[{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]},{"type":"text","text":"so"}]}}]}"#,
            &Chunk { content: "so".into(), ..expected },
        );
    }

    #[test]
    fn usage_and_finish_reason_stand_on_any_chunk() {
        check(
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#,
            &Chunk {
                finish_reason: Some("stop".into()),
                usage: Some(ChunkUsage { prompt_tokens: 3, completion_tokens: 4 }),
                ..Chunk::default()
            },
        );
    }

    #[test]
    fn a_usage_that_cannot_be_read_loses_nothing_else() {
        for usage in [
            "null",
            "[]",
            "7",
            r#"{"prompt_tokens":null,"completion_tokens":4}"#,
            r#"{"prompt_tokens":-3,"completion_tokens":4}"#,
            "{}",
        ] {
            check(
                &format!(r#"{{"choices":[{{"delta":{{"content":"x"}}}}],"usage":{usage}}}"#),
                &Chunk { content: "x".into(), ..Chunk::default() },
            );
        }
        check(
            r#"{"usage":{"prompt_tokens":3.0,"completion_tokens":4}}"#,
            &Chunk {
                usage: Some(ChunkUsage { prompt_tokens: 3, completion_tokens: 4 }),
                ..Chunk::default()
            },
        );
    }

    #[test]
    fn errors_of_every_shape() {
        let error = |code: Option<&str>, message: &str| Chunk {
            error: Some(ChunkError { code: code.map(str::to_owned), message: message.to_owned() }),
            ..Chunk::default()
        };
        check(
            r#"{"error":{"message":"no","type":"server_error","code":null}}"#,
            &error(Some("server_error"), "no"),
        );
        check(
            r#"{"error":{"code":429,"message":"slow down","metadata":{}}}"#,
            &error(Some("429"), "slow down"),
        );
        check(r#"{"error":"gone"}"#, &error(None, "gone"));
        let beside_choices = r#"{"error":{"code":"server_error","message":"no"},"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}"#;
        assert_eq!(parse(beside_choices).unwrap().finish_reason.as_deref(), Some("error"));
        assert!(parse(beside_choices).unwrap().error.is_some());
    }

    #[test]
    fn half_a_surrogate_pair_is_replaced() {
        check(r#"{"choices":[{"delta":{"content":"a\ud83e"}}]}"#, &content("a\u{FFFD}"));
        check(
            r#"{"choices":[{"delta":{"content":"\udd8ab\\ud83e\ud83e\udd8a"}}]}"#,
            &content("\u{FFFD}b\\ud83e🦊"),
        );
        for broken in [
            "",
            "{",
            "[]",
            "nonsense",
            r#"{"choices":[{"delta":{"content":"\ud83e"}"#,
            "\\",
            "\\é\\u\\ud8",
        ] {
            assert!(parse(broken).is_err(), "{broken}");
        }
    }
}
