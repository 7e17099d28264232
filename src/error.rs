//! What can go wrong, in the words of the contract.
//!
//! An [`Error`] has two faces: `code` and `message` are for the client, `source` is for the operator's log alone. The
//! same codes travel in two places: in an HTTP answer before the first event, and in an `error` event after it. Which
//! HTTP status and envelope a code gets is decided by `http::reject`.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

macro_rules! codes {
    ($($name:ident => $word:literal,)*) => {
        /// What went wrong, as a client's code tells it apart. Stable: clients match on [`Code::as_str`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[expect(
            missing_docs,
            reason = "each variant is named after its code, and each message says what happened"
        )]
        pub enum Code {
            $($name,)*
        }

        impl Code {
            /// Every code there is.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];

            /// The code on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }

            /// The code that is written so; `None` if this version does not know it.
            #[must_use]
            pub fn of(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    InvalidRequest => "invalid_request",
    ContextTooLong => "context_too_long",
    NotRerollable => "not_rerollable",
    Unsupported => "unsupported",
    UnknownProvider => "unknown_provider",
    UpstreamNotAllowed => "upstream_not_allowed",
    MissingToken => "missing_token",
    InvalidToken => "invalid_token",
    NoProviderKey => "no_provider_key",
    BotNotFound => "bot_not_found",
    NoBot => "no_bot",
    ConversationNotFound => "conversation_not_found",
    MessageNotFound => "message_not_found",
    VariantNotFound => "variant_not_found",
    StreamNotFound => "stream_not_found",
    KeyNotFound => "key_not_found",
    RouteNotFound => "route_not_found",
    MethodNotAllowed => "method_not_allowed",
    StreamIdReused => "stream_id_reused",
    GenerationRunning => "generation_running",
    TooManyKeys => "too_many_keys",
    StoryTooLarge => "story_too_large",
    RequestTimeout => "request_timeout",
    BodyTooLarge => "body_too_large",
    RateLimited => "rate_limited",
    TooManyStreams => "too_many_streams",
    BudgetExceeded => "budget_exceeded",
    Internal => "internal",
    Overloaded => "overloaded",
    ShuttingDown => "shutting_down",
    StoreUnavailable => "store_unavailable",
    KeysUnavailable => "keys_unavailable",
    ProviderUnreachable => "provider_unreachable",
    ProviderTimeout => "provider_timeout",
    ProviderRateLimited => "provider_rate_limited",
    ProviderKeyRefused => "provider_key_refused",
    ProviderRejected => "provider_rejected",
    ProviderFailed => "provider_failed",
    ProviderInvalid => "provider_invalid",
    AnswerTooLong => "answer_too_long",
    Interrupted => "interrupted",
    NotSaved => "not_saved",
}

impl Code {
    /// Whether the same request may well succeed if it is made again unchanged.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::RequestTimeout
                | Self::RateLimited
                | Self::TooManyStreams
                | Self::Overloaded
                | Self::ShuttingDown
                | Self::StoreUnavailable
                | Self::KeysUnavailable
                | Self::ProviderUnreachable
                | Self::ProviderTimeout
                | Self::ProviderRateLimited
                | Self::ProviderFailed
                | Self::ProviderInvalid
                | Self::Interrupted
        )
    }
}

/// A request that could not be served, or a generation that could not be finished.
///
/// Cheap to clone, because everybody who attached to a generation gets the same one.
#[derive(Clone)]
pub struct Error {
    code: Code,
    message: Cow<'static, str>,
    retry_after: Option<Duration>,
    words: Option<Arc<str>>,
    detail: Option<Arc<str>>,
}

impl Error {
    /// `message` is a sentence for the client that says what to do; it must not hold a secret or an internal detail.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), retry_after: None, words: None, detail: None }
    }

    /// A fault of the relay's own. The client learns that it happened, the operator's log what it was.
    pub fn internal(detail: impl fmt::Display) -> Self {
        Self::new(Code::Internal, "The relay failed. The request id names this failure in its log.")
            .with_detail(detail)
    }

    /// A database that is not there, or not in time. The operator's log learns what happened.
    pub fn store_unavailable(detail: impl fmt::Display) -> Self {
        Self::new(Code::StoreUnavailable, "The database does not answer. Try again in a moment.")
            .with_detail(detail)
    }

    /// The answer to a stream id that belongs to another turn, wherever that is found out.
    #[must_use]
    pub fn stream_id_reused() -> Self {
        Self::new(
            Code::StreamIdReused,
            "This `stream_id` belongs to another request. Use a new one for each turn, and the same one only to repeat a turn unchanged.",
        )
    }

    /// What is said of a generation that its relay did not live to finish, and of which there is a text or none.
    #[must_use]
    pub fn interrupted(has_text: bool) -> Self {
        Self::new(
            Code::Interrupted,
            if has_text {
                "The relay was shut down while it wrote this. The text so far is kept; ask again for a whole answer."
            } else {
                "The relay was ended while it wrote this, and nothing of it was saved. Ask again."
            },
        )
    }

    /// Adds what only the operator may see.
    #[must_use]
    pub fn with_detail(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Some(detail.to_string().into());
        self
    }

    /// Adds, for the client alone, a sentence with somebody else's words, who may repeat what users wrote: no log ever has it.
    #[must_use]
    pub fn with_words(mut self, words: &str) -> Self {
        self.words = Some(words.into());
        self
    }

    /// Adds the time before which it makes no sense to try again.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// What went wrong, for programs.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// What went wrong and what to do, for the client.
    #[must_use]
    pub fn message(&self) -> Cow<'_, str> {
        match &self.words {
            None => Cow::Borrowed(&self.message),
            Some(words) => Cow::Owned(format!("{} {words}", self.message)),
        }
    }

    /// What went wrong, for the operator.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// What went wrong and what to do, for the operator.
    #[must_use]
    pub fn to_operator(&self) -> String {
        match self.detail() {
            Some(detail) if self.code == Code::Internal => detail.to_owned(),
            Some(detail) => format!("{} ({detail})", self.message),
            None => self.message.to_string(),
        }
    }

    /// The time before which it makes no sense to try again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

/// What went wrong with all its causes, because the first often says only that something did.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)?;
        self.detail.as_ref().map_or(Ok(()), |detail| write!(f, " ({detail})"))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}
