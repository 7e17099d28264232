//! The chunks of one stream, of which nearly all are the one before but for their text.
//!
//! A provider writes them all from one template. Where a chunk has the bytes of one that was read before, around a text in
//! which JSON escapes nothing, it says the same with another text, and comparing finds that in a tenth of the time that
//! reading JSON takes.

use std::borrow::Cow;

use super::chunk::{self, Chunk};
use crate::event::Kind;
use crate::text::discreet;

/// How long the bytes around a text may be, and how often they may change before they are taken for different each time: some
/// providers count in them, or pad them by chance.
const PATTERN_LEN_MAX: usize = 2 << 10;
const PATTERNS_MAX: u8 = 16;

/// The chunks of one stream.
#[derive(Debug, Default)]
pub struct Chunks {
    pattern: Option<Pattern>,
    patterns: u8,
}

/// What chunks have in common that say nothing but a text: all before it, with the quotation mark, and all behind it.
struct Pattern {
    kind: Kind,
    before: Box<str>,
    after: Box<str>,
}

discreet!(Pattern { kind });

impl Chunks {
    /// Reads the next one: what [`chunk::parse`] makes of it.
    ///
    /// # Errors
    /// As there.
    pub fn read<'a>(&mut self, data: &'a str) -> Result<Chunk<'a>, serde_json::Error> {
        if let Some(chunk) = self.pattern.as_ref().and_then(|pattern| pattern.read(data)) {
            return Ok(chunk);
        }
        let chunk = chunk::parse(data)?;
        if self.patterns < PATTERNS_MAX
            && let Some(pattern) = Pattern::of(data, &chunk)
        {
            self.pattern = Some(pattern);
            self.patterns += 1;
        }
        Ok(chunk)
    }
}

impl Pattern {
    /// That of a chunk which says nothing but a text, and has it as it is.
    fn of(data: &str, chunk: &Chunk<'_>) -> Option<Self> {
        let (kind, text) = match chunk {
            Chunk { finish_reason: Some(_), .. }
            | Chunk { usage: Some(_), .. }
            | Chunk { error: Some(_), .. } => return None,
            Chunk { reasoning: Cow::Borrowed(text), content, .. } if content.is_empty() => {
                (Kind::Reasoning, *text)
            }
            Chunk { reasoning, content: Cow::Borrowed(text), .. } if reasoning.is_empty() => {
                (Kind::Token, *text)
            }
            _ => return None,
        };
        // Where an empty text is not from is not known.
        let at = text.as_ptr().addr().checked_sub(data.as_ptr().addr())?;
        let (before, after) = (data.get(..at)?, data.get(at + text.len()..)?);
        let is_short = before.len() + after.len() <= PATTERN_LEN_MAX;
        let is_quoted = before.ends_with('"') && after.starts_with('"');
        (is_short && is_quoted && !text.is_empty()).then(|| Self {
            kind,
            before: before.into(),
            after: after.into(),
        })
    }

    /// What a chunk says, if it is another of these. An empty text may be one of several, of which another is not.
    fn read<'a>(&self, data: &'a str) -> Option<Chunk<'a>> {
        let text = data.strip_prefix(&*self.before)?.strip_suffix(&*self.after)?;
        if text.is_empty() || !is_plain(text) {
            return None;
        }
        let text = Cow::Borrowed(text);
        Some(match self.kind {
            Kind::Reasoning => Chunk { reasoning: text, ..Chunk::default() },
            Kind::Token => Chunk { content: text, ..Chunk::default() },
        })
    }
}

/// Whether a JSON string can have that text as it is.
fn is_plain(text: &str) -> bool {
    // To its end, which is near, so that many bytes are looked at in one go.
    text.bytes()
        .fold(true, |is_plain, byte| is_plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const OPENAI: [&str; 2] = [
        r#"{"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":""#,
        r#""},"logprobs":null,"finish_reason":null}],"usage":null}"#,
    ];

    fn of_openai(text: &str) -> String {
        [OPENAI[0], text, OPENAI[1]].concat()
    }

    /// Reads one chunk behind another, and checks that each says what it says by itself. Returns whether the last was compared
    /// alone.
    #[track_caller]
    fn check(all: &[&str]) -> bool {
        let (mut chunks, mut is_compared) = (Chunks::default(), false);
        for data in all {
            is_compared =
                chunks.pattern.as_ref().is_some_and(|pattern| pattern.read(data).is_some());
            assert_eq!(chunks.read(data).ok(), chunk::parse(data).ok(), "{data}");
        }
        is_compared
    }

    #[test]
    fn what_is_the_same_but_for_its_text_is_compared() {
        let first = of_openai("once");
        for text in [
            "upon",
            " ",
            "\u{7f}",
            "é🦊\u{2028}",
            "}",
            "null",
            "'",
            OPENAI[0].trim_end_matches('"'),
        ] {
            let is_plain = !text.contains('"');
            assert_eq!(check(&[&first, &of_openai(text)]), is_plain, "{text}");
        }
        for text in ["", "\\n", "\"", "\\\"", "\\", "\n", "\0", "a\",\"content\":\"b"] {
            assert!(!check(&[&first, &of_openai(text)]), "{text}");
        }
        for other in [OPENAI[0], OPENAI[1], &first[1..], "{}", "[DONE]", ""] {
            assert!(!check(&[&first, other]), "{other}");
        }
    }

    #[test]
    fn thoughts_and_words_take_turns() {
        let thought = r#"{"choices":[{"delta":{"reasoning":"hm"}}]}"#;
        let again = r#"{"choices":[{"delta":{"reasoning":"hm, hm"}}]}"#;
        assert!(check(&[thought, again]));
        assert!(check(&[thought, again, &of_openai("so"), &of_openai(" it")]));
        assert!(!check(&[thought, &of_openai("so"), again]));
    }

    #[test]
    fn text_under_two_names_is_read_as_ever() {
        let twice = |one: &str, two: &str| {
            format!(
                r#"{{"choices":[{{"delta":{{"reasoning":"{one}","reasoning_content":"{two}"}}}}]}}"#
            )
        };
        check(&[&twice("hm", "hm"), &twice("hm", ""), &twice("", "hm"), &twice("so", "hm")]);
        check(&[&twice("", "hm"), &twice("", "so"), &twice("so", "")]);
        check(&[&twice("hm", ""), &twice("so", ""), &twice("so", "hm")]);
    }

    #[test]
    fn what_is_long_or_never_the_same_is_not_kept() {
        let padded = |padding: &str, text: &str| {
            format!(r#"{{"padding":"{padding}","choices":[{{"delta":{{"content":"{text}"}}}}]}}"#)
        };
        let long = "x".repeat(PATTERN_LEN_MAX);
        assert!(!check(&[&padded(&long, "once"), &padded(&long, "upon")]));
        let mut all: Vec<_> = (0..=PATTERNS_MAX).map(|at| padded(&at.to_string(), "x")).collect();
        all.push(all[usize::from(PATTERNS_MAX)].clone());
        assert!(!check(&all.iter().map(String::as_str).collect::<Vec<_>>()));
    }

    proptest! {
        #[test]
        fn whatever_comes_says_what_it_says_by_itself(
            parts in prop::collection::vec(
                (
                    select(vec!["content", "reasoning", "reasoning_content"]),
                    select(vec!["", "a", "\\n", "\"", "\\", "\u{1}", "é", "\"},\"x\":{\"y\":\"", "\\ud83e"]),
                    "[a-c\"\\\\]{0,3}",
                    select(vec!["null", "\"stop\"", "\"\"", "1"]),
                    0..400_usize,
                ),
                1..12,
            ),
        ) {
            let mut chunks = Chunks::default();
            for (name, odd, text, reason, cut) in parts {
                let mut data = format!(
                    r#"{{"choices":[{{"delta":{{"{name}":"{odd}{text}"}},"finish_reason":{reason}}}]}}"#
                );
                data.truncate(data.floor_char_boundary(cut.max(20)));
                prop_assert_eq!(chunks.read(&data).ok(), chunk::parse(&data).ok());
            }
        }
    }
}
