//! Cleaning of text, once, where it enters the relay, so that what a client put together is byte for byte what is saved.

use std::borrow::Cow;

/// How much room a buffer of an answer keeps from one token to the next, in bytes. A token needs less; what one long piece
/// needed would be held for as long as the answer is open.
pub(crate) const KEPT_LEN_MAX: usize = 512;

/// `text` without NUL (which PostgreSQL cannot store) and without carriage returns (which would end a line of an SSE
/// `data` field, so that a client would put together another text than was saved). Borrows if there is none of either.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    if memchr::memchr2(0, b'\r', text.as_bytes()).is_none() {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().filter(|character| !matches!(character, '\0' | '\r')).collect())
}

/// How much room a text gets to grow when it has none left: a part of its length, and so many bytes at least.
const SPARE_PART: usize = 8;
const SPARE_LEN_MIN: usize = 128;

/// Appends to a text that grows by tokens and is one of thousands. Doubling its room would copy less, and hold up to as much
/// again as there is of it.
pub(crate) fn append(text: &mut String, more: &str) {
    if text.capacity() - text.len() < more.len() {
        text.reserve_exact(more.len() + text.len() / SPARE_PART + SPARE_LEN_MIN);
    }
    text.push_str(more);
}

/// The longest prefix of `text` that has at most `len_max` bytes and ends between two characters.
#[must_use]
pub fn prefix(text: &str, len_max: usize) -> &str {
    &text[..text.floor_char_boundary(len_max)]
}

/// `bytes` in hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Gives a type that holds people's words a `Debug` that has the named fields and nothing else: whatever is printed by
/// mistake, in a panic too, says of a text that there is one.
macro_rules! discreet {
    ($type:ty { $($field:ident),* }) => {
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($type))
                    $(.field(stringify!($field), &self.$field))*
                    .finish_non_exhaustive()
            }
        }
    };
}

pub(crate) use discreet;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_grows_by_tokens_holds_little_more_than_itself() {
        let (mut text, mut moves) = (String::new(), 0);
        for token in 0..100_000 {
            let capacity = text.capacity();
            append(&mut text, if token % 7 == 0 { "once" } else { " upon" });
            moves += usize::from(text.capacity() != capacity);
            assert!(text.capacity() <= text.len() + text.len() / 8 + 256, "{}", text.len());
        }
        assert!(moves < 100, "{moves}");
    }

    #[test]
    fn nul_and_carriage_returns_are_dropped_and_nothing_else() {
        assert_eq!(clean("a\r\nb\0c\u{2028}\u{feff}🦊\r"), "a\nbc\u{2028}\u{feff}🦊");
        assert!(matches!(clean("plain\n"), Cow::Borrowed("plain\n")));
    }

    #[test]
    fn prefixes_do_not_cut_characters() {
        assert_eq!(prefix("a🦊b", 4), "a");
        assert_eq!(prefix("a🦊b", 5), "a🦊");
        assert_eq!(prefix("ab", 9), "ab");
    }

    #[test]
    fn a_text_is_not_printed() {
        struct Note {
            id: u8,
            text: String,
        }
        discreet!(Note { id });
        let note = Note { id: 7, text: "a secret".to_owned() };
        assert_eq!(format!("{note:?}"), "Note { id: 7, .. }");
        assert_eq!(note.text, "a secret");
    }
}
