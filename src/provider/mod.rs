//! Providers of language models: what they are asked, and what they answer, whoever they are.
//!
//! There is one dialect, OpenAI's chat completions over SSE; each provider's habits are data in `habits.rs`. The
//! `demo` needs no network. Addresses that the operator named are called as they are, those that users typed through
//! `guard/`. A request is tried again only as long as no token has come: after that a second try
//! would give the reader a second answer.

pub mod chunk;
mod cleartext;
mod client;
mod demo;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod gather;
mod guard;
mod habits;
mod key_check;
mod openai;
pub mod pattern;
mod refusal;
mod registry;
mod retry;
pub mod sse;
mod transport;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use crate::bot::Reasoning;
use crate::error::Error;
use crate::event::{Kind, Usage};
use crate::story::Beat;
use crate::text::{self, KEPT_LEN_MAX, discreet};

pub use guard::{LOOP_MARK, UpstreamAllow, special_purpose};
pub use key_check::KeyCheck;
use openai::Endpoint;
use registry::chat_completions;
pub use registry::{Added, Providers, key_variable};
pub(crate) use registry::{CUSTOM, known_names};

/// What a provider is asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// The provider's name of the model.
    pub model: String,
    /// The prompt.
    pub messages: Vec<Beat>,
    /// Tokens that the answer may have; absent: the provider's default.
    pub max_tokens: Option<u32>,
    /// Randomness; absent: the provider's default.
    pub temperature: Option<f64>,
    /// How much the model thinks; absent: the provider's default.
    pub reasoning: Option<Reasoning>,
}

/// A request and where it goes.
#[derive(Debug, Clone)]
pub struct Call {
    /// Where it goes.
    pub target: Target,
    /// What is asked.
    pub request: Request,
}

/// A provider that can be called: its address and its key are known.
#[derive(Debug, Clone)]
pub enum Target {
    /// The built-in storyteller.
    Demo,
    /// A server that speaks the dialect.
    Endpoint(Arc<Endpoint>),
}

impl Target {
    /// The provider's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Demo => demo::NAME,
            Self::Endpoint(endpoint) => endpoint.name(),
        }
    }
}

/// An answer that is coming in.
#[derive(Debug)]
pub enum Completion {
    /// From the built-in storyteller.
    Demo(demo::Story),
    /// From a server.
    Stream(Box<openai::Stream>),
}

impl Completion {
    /// Waits for more of the answer and adds it to `batch`. Cancel safe: what was not added is added by the next call.
    ///
    /// # Errors
    /// Why there will be no more. What had come before it is in `batch` all the same.
    pub async fn read(&mut self, batch: &mut Batch) -> Result<Progress, Error> {
        match self {
            Self::Demo(story) => Ok(story.read(batch).await),
            Self::Stream(stream) => stream.read(batch).await.map_err(|refusal| refusal.error),
        }
    }

    /// Adds to `batch`, which has something, what else has come meanwhile, within bounds and without waiting for more. Whoever
    /// passes text on does so less often then.
    ///
    /// # Errors
    /// As [`Completion::read`].
    pub async fn gather(&mut self, batch: &mut Batch) -> Result<Progress, Error> {
        if let Self::Stream(stream) = self
            && stream.is_read_in_one_go()
        {
            return Ok(Progress::More);
        }
        gather::gather(batch, |context, batch| pin!(self.read(batch)).poll(context)).await
    }

    /// Whether the model has said its last word, and only the provider's is missing.
    #[must_use]
    pub fn has_finish_reason(&self) -> bool {
        match self {
            Self::Demo(_) => false,
            Self::Stream(stream) => stream.has_finish_reason(),
        }
    }

    /// Reads what is left behind the end of a completed answer, if it comes at once, so that the connection can be used
    /// for the next request: a new one costs two round trips and a TLS handshake.
    pub async fn drain(self) {
        match self {
            Self::Demo(_) => {}
            Self::Stream(stream) => stream.drain().await,
        }
    }
}

/// How far an answer has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// There may be more.
    More,
    /// That was all.
    Completed(Completed),
}

/// The end of an answer that came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completed {
    /// Why it ended, in OpenAI's words.
    pub finish_reason: String,
    /// The provider's count, if it gave one.
    pub usage: Option<Usage>,
}

/// Text that came in together, to be passed on together. Used again and again, so that a token costs no allocation.
pub struct Batch {
    text: String,
    /// The kind of each stretch of text, and where it ends.
    runs: Vec<(Kind, usize)>,
    has_tokens: bool,
    shows_reasoning: bool,
    /// Bytes of reasoning that were dropped since the beginning.
    hidden_len: usize,
}

discreet!(Batch { runs, has_tokens });

impl Batch {
    /// An empty batch. Reasoning that is not shown is dropped here, before anybody could see or keep it.
    #[must_use]
    pub fn new(shows_reasoning: bool) -> Self {
        let (text, runs) = (String::new(), Vec::new());
        Self { text, runs, has_tokens: false, shows_reasoning, hidden_len: 0 }
    }

    /// Adds text as the provider sent it; it is cleaned here, once and for all.
    pub fn push(&mut self, kind: Kind, text: &str) {
        if text.is_empty() {
            return;
        }
        self.has_tokens = true;
        if kind == Kind::Reasoning && !self.shows_reasoning {
            self.hidden_len = self.hidden_len.saturating_add(text.len());
            return;
        }
        self.text.push_str(&text::clean(text));
        match self.runs.last_mut() {
            Some((last, end)) if *last == kind => *end = self.text.len(),
            _ => self.runs.push((kind, self.text.len())),
        }
    }

    /// Whether the model has said anything, shown or not.
    #[must_use]
    pub fn has_tokens(&self) -> bool {
        self.has_tokens
    }

    /// How much reasoning it has dropped since it was made, in bytes: whoever pays for the answer pays for that.
    #[must_use]
    pub fn hidden_len(&self) -> usize {
        self.hidden_len
    }

    /// How much text is in it, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Whether no text is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// What is in it, in order.
    pub fn pieces(&self) -> impl Iterator<Item = (Kind, &str)> + Clone {
        let begins = std::iter::once(0).chain(self.runs.iter().map(|(_, end)| *end));
        self.runs.iter().zip(begins).map(|((kind, end), begin)| (*kind, &self.text[begin..*end]))
    }

    /// Empties it and keeps its room, as far as the next token needs it.
    pub fn clear(&mut self) {
        self.text.clear();
        self.text.shrink_to(KEPT_LEN_MAX);
        self.runs.clear();
        self.has_tokens = false;
    }
}
