//! A user's own key for a provider: what can be one, where it may be sent, and what is shown of it.

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::id::ProviderKeyId;

/// The longest key in bytes. Most have some hundred; those that are signed tokens have a thousand or two.
pub const KEY_LEN_MAX: usize = 4_096;

/// The shortest key whose last four characters are shown: of a shorter one they would be too much.
const SHOWN_LEN_MIN: usize = 12;

/// What a user sees of a key: never the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderKey {
    /// Its row.
    pub id: ProviderKeyId,
    /// The provider that it is for.
    pub provider: String,
    /// Where provider `custom` is; absent for all others.
    pub base_url: Option<String>,
    /// Its last four characters; empty if it is too short for that.
    pub last4: String,
    /// When it was given.
    pub created_at: Timestamp,
}

/// A key as a store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SealedKey {
    /// Its row.
    pub id: ProviderKeyId,
    /// The origin that it may be sent to; empty where the provider's address is the operator's word.
    pub origin: String,
    /// The key, of which only [`crate::seal::MasterKeys`] can make anything.
    pub sealed: String,
}

/// A key to be kept in place of the one of the same provider and origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NewKey {
    /// As in [`ProviderKey`].
    pub provider: String,
    /// As in [`ProviderKey`].
    pub base_url: Option<String>,
    /// As in [`ProviderKey`].
    pub last4: String,
    /// As in [`SealedKey`].
    pub origin: String,
    /// As in [`SealedKey`].
    pub sealed: String,
}

/// Whether the text can be a key: what HTTP can carry as a token, and nothing that a hand may have pasted beside it.
#[must_use]
pub fn is_key(text: &SecretString) -> bool {
    let text = text.expose_secret();
    (1..=KEY_LEN_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// What is shown of the key.
#[must_use]
pub fn last4(key: &SecretString) -> String {
    let key = key.expose_secret();
    let end = key.len().checked_sub(4).and_then(|at| key.get(at..));
    end.filter(|_| key.len() >= SHOWN_LEN_MIN).unwrap_or_default().to_owned()
}

/// Scheme, host and port of an address: what a key is bound to whose address is a user's word. The same for every way of
/// writing the address.
#[must_use]
pub fn origin(base_url: &Url) -> String {
    base_url.origin().ascii_serialization()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_printable_and_have_no_spaces() {
        for good in ["x", "sk-proj-aB3_-.~+/=", &"x".repeat(KEY_LEN_MAX)] {
            assert!(is_key(&SecretString::from(good)), "{good}");
        }
        for bad in
            ["", " sk-x", "sk-x\n", "sk x", "sk-\0", "sk-ä", "\u{7f}", &"x".repeat(KEY_LEN_MAX + 1)]
        {
            assert!(!is_key(&SecretString::from(bad)), "{bad:?}");
        }
    }

    #[test]
    fn a_short_key_is_not_shown() {
        for (key, shown) in [
            ("", ""),
            ("abcd", ""),
            ("abcdefghijk", ""),
            ("abcdefghijkl", "ijkl"),
            ("sk-0123456789", "6789"),
        ] {
            assert_eq!(last4(&SecretString::from(key)), shown, "{key}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port_however_written() {
        let origin = |url: &str| origin(&Url::parse(url).unwrap());
        for same in [
            "https://llm.example",
            "https://llm.example/v1/",
            "https://LLM.example:443/other?x",
            "HTTPS://llm.example/v1",
        ] {
            assert_eq!(origin(same), "https://llm.example", "{same}");
        }
        for other in [
            "http://llm.example",
            "https://llm.example:8443",
            "https://llm.example.evil.io",
            "https://evil.io/llm.example",
            "https://llm.example@evil.io",
            "https://llm.example.",
            "https://api.llm.example",
        ] {
            assert_ne!(origin(other), "https://llm.example", "{other}");
        }
        assert_eq!(origin("http://127.0.0.1:80/v1"), "http://127.0.0.1");
        assert_eq!(origin("http://0x7f.1:8080/v1"), "http://127.0.0.1:8080");
        assert_eq!(origin("https://bücher.example"), "https://xn--bcher-kva.example");
    }
}
