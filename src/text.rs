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
}
