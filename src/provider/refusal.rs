//! What a provider means that refuses or breaks off, and what is told of its own words.
//!
//! They go to the reader, cleared of keys, and to no log: a server may repeat the prompt, or the key, in them.

use std::time::Duration;

use tokio::time::timeout;

use super::chunk::{self, ChunkError};
use super::openai::{Endpoint, Key, Refusal};
use super::retry;
use super::transport::{Body, Response};
use crate::error::{Code, Error};
use crate::text;

/// How much of an error's body is read, in bytes, and how long that may take. Honest ones are far below both.
const ERROR_BODY_LEN_MAX: usize = 64 << 10;
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// What a reader is told to wait for a provider that limits requests and names no time.
const RATE_LIMIT_WAIT: Duration = Duration::from_secs(30);

/// How much of a provider's own words a client is shown, in bytes.
const PROVIDER_WORDS_LEN_MAX: usize = 300;

/// How much of them is looked through for keys, in bytes. The rest is not shown.
const SCRUBBED_LEN_MAX: usize = 4 << 10;

/// What is taken for a key, in lower case: how keys begin, and so many characters of the one that was sent.
const KEY_PREFIXES: [&str; 4] = ["sk-", "gsk_", "xai-", "aiza"];
const KEY_PIECE_LEN: usize = 8;

impl Endpoint {
    /// What an answer that is no event stream means.
    pub(super) async fn refusal(
        &self,
        response: Response,
        content_type: &str,
        model: &str,
    ) -> Refusal {
        let Response { status, headers, body } = response;
        let retry_after = retry::retry_after(&headers, crate::clock::now());
        let body = error_body(body).await;
        let words = chunk::parse_error_body(&body)
            .map(|error| self.scrub(&error.message))
            .unwrap_or_default();
        let says = (!words.is_empty()).then(|| format!("It says: {words}"));
        let (code, what, told) = match status.as_u16() {
            200 if says.is_some() => (Code::ProviderFailed, "failed. Try again.".to_owned(), says),
            200..=299 => (
                Code::ProviderInvalid,
                "did not answer with an event stream. Its base URL is probably wrong.".to_owned(),
                Some(format!("It sent {content_type}.")),
            ),
            300..=399 => (
                Code::ProviderInvalid,
                "redirects to another address, which the relay does not follow. Its base URL must be the final one.".to_owned(),
                None,
            ),
            401 | 403 => {
                let (code, what) = self.key_refused();
                (code, what, None)
            }
            402 => (
                Code::ProviderRejected,
                format!("gives no more credit to {} account.", self.whose()),
                None,
            ),
            404 => (
                Code::ProviderRejected,
                format!("does not know the model `{model}`, or its base URL is wrong. Choose another model in the bot."),
                None,
            ),
            429 => {
                let wait = retry_after.unwrap_or(RATE_LIMIT_WAIT).as_secs().max(1);
                let what = format!("takes no more requests for now. Try again in {wait} s.");
                (Code::ProviderRateLimited, what, None)
            }
            status @ (408 | 500..=599) => {
                (Code::ProviderFailed, format!("failed ({status}). Try again in a moment."), None)
            }
            status => (
                Code::ProviderRejected,
                format!("rejected the request ({status}). Check the bot's settings."),
                says,
            ),
        };
        let mut error = Error::new(code, format!("The provider `{}` {what}", self.name))
            .with_detail(format!("status {status}"));
        if let Some(told) = told {
            error = error.with_words(&told);
        }
        if let Some(wait) = retry_after {
            error = error.with_retry_after(wait);
        }
        let is_bearable = retry_after.is_none_or(|wait| wait <= retry::RETRY_AFTER_MAX);
        Refusal { error, is_worth_another_try: is_bearable && retry::is_worth_another_try(status) }
    }

    fn key_refused(&self) -> (Code, String) {
        match self.key {
            Key::None => (
                Code::NoProviderKey,
                "wants a key, and there is none for it. Enter yours with `POST /v1/keys`."
                    .to_owned(),
            ),
            Key::Operators(_) => (
                Code::ProviderKeyRefused,
                "refused the relay's key. Whoever runs the relay must check it.".to_owned(),
            ),
            Key::Users(_) => (
                Code::ProviderKeyRefused,
                "refused your key. Enter another one with `POST /v1/keys`.".to_owned(),
            ),
        }
    }

    fn whose(&self) -> &'static str {
        if matches!(self.key, Key::Users(_)) { "your" } else { "the relay's" }
    }

    /// A provider's own words, without any key in them: some echo the one they were sent, or parts of it.
    pub(super) fn scrub(&self, words: &str) -> String {
        let words = text::clean(text::prefix(words, SCRUBBED_LEN_MAX));
        let key = self.key.text().unwrap_or_default().to_ascii_lowercase();
        let pieces: Vec<_> = key.as_bytes().windows(KEY_PIECE_LEN.min(key.len()).max(1)).collect();
        let has_key = |word: &str| {
            let word = word.to_ascii_lowercase();
            KEY_PREFIXES.iter().any(|prefix| word.contains(prefix))
                || pieces.iter().any(|piece| memchr::memmem::find(word.as_bytes(), piece).is_some())
        };
        let words: Vec<_> = words
            .split_whitespace()
            .map(|word| if has_key(word) { "[key]" } else { word })
            .collect();
        text::prefix(&words.join(" "), PROVIDER_WORDS_LEN_MAX).to_owned()
    }

    /// An error that the provider sent in the stream.
    pub(super) fn said(&self, error: &ChunkError) -> Error {
        let (words, name) = (self.scrub(&error.message), &self.name);
        let code = error.code.as_deref().unwrap_or_default();
        if code == "429" || code.contains("rate_limit") {
            return Error::new(
                Code::ProviderRateLimited,
                format!(
                    "The provider `{name}` broke off because of its limits. Try again in a moment."
                ),
            );
        }
        let error = Error::new(
            Code::ProviderFailed,
            format!("The provider `{name}` broke off. Try again."),
        );
        if words.is_empty() { error } else { error.with_words(&format!("It says: {words}")) }
    }
}

/// As much of the body as an honest error has.
async fn error_body(mut body: Body) -> Vec<u8> {
    let mut text = Vec::new();
    let read = async {
        while text.len() < ERROR_BODY_LEN_MAX {
            let take = |bytes: &[u8]| {
                text.extend_from_slice(&bytes[..bytes.len().min(ERROR_BODY_LEN_MAX - text.len())]);
            };
            if !matches!(body.read(take).await, Ok(true)) {
                break;
            }
        }
    };
    // A body that does not come in time is read as far as it came.
    let _elapsed = timeout(ERROR_BODY_TIMEOUT, read).await;
    text
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;
    use url::Url;

    use super::*;
    use crate::provider::habits::ORDINARY;
    use crate::provider::openai::Upstream;

    #[test]
    fn a_providers_words_are_passed_on_without_keys() {
        let endpoint = Endpoint {
            name: "custom".to_owned(),
            upstream: Upstream::Trusted(Url::parse("https://llm.example").unwrap()),
            key: Key::Users(SecretString::from("Canary-0123456789-abcdefghij")),
            habits: ORDINARY,
            is_added: false,
        };
        for (words, scrubbed) in [
            ("Slow  down,\nplease.", "Slow down, please."),
            (
                "Incorrect API key provided: Canary-0123456789-abcdefghij.",
                "Incorrect API key provided: [key]",
            ),
            ("key=canary-0123456789-ABCDEFGHIJ&x", "[key]"),
            ("no: Canary-0***********ghij", "no: [key]"),
            ("no: ****abcdefghij", "no: [key]"),
            ("no: sk-other and AIzaOther", "no: [key] and [key]"),
            ("Canary is a bird", "Canary is a bird"),
        ] {
            assert_eq!(endpoint.scrub(words), scrubbed);
        }
        let long = format!("{}Canary-0123456789-abcdefghij", "x ".repeat(SCRUBBED_LEN_MAX / 2 - 7));
        assert!(!endpoint.scrub(&long).contains("Canary"));
        let keyless = Endpoint { key: Key::None, ..endpoint };
        assert_eq!(keyless.scrub("just words"), "just words");
    }
}
