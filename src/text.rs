//! Cleaning of text, once, where it enters the relay, so that what a client put together is byte for byte what is saved.

use std::borrow::Cow;

/// `text` without NUL (which PostgreSQL cannot store) and without carriage returns (which would end a line of an SSE
/// `data` field, so that a client would put together another text than was saved). Borrows if there is none of either.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    if memchr::memchr2(0, b'\r', text.as_bytes()).is_none() {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().filter(|character| !matches!(character, '\0' | '\r')).collect())
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
