//! OpenAI's chat completions over SSE: the request, the first answer to it, and the stream that follows.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use reqwest::RequestBuilder;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::chunk::ChunkError;
use super::client::{Clients, USER_AGENT};
use super::guard::{Guard, UserUrl};
use super::habits::Habits;
use super::pattern::Chunks;
use super::sse::Decoder;
use super::transport::{Body, Response, describe};
use super::{Batch, Completed, Progress, Request};
use crate::error::{Code, Error};
use crate::event::{Kind, Usage};
use crate::text;

/// How long a stream may go on after its finish reason: usage and `[DONE]` come right behind it or not at all.
const TRAILER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for the end of the body behind the end of an answer.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest finish reason that is passed on, in bytes; OpenAI's longest word has 14.
const FINISH_REASON_LEN_MAX: usize = 64;

/// A server that speaks the dialect, with the key it is asked with.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub(super) name: String,
    pub(super) upstream: Upstream,
    pub(super) key: Key,
    pub(super) habits: Habits,
    /// Whether the operator named its address.
    pub(super) is_added: bool,
}

/// Where requests are posted, and whose word that is.
#[derive(Debug, Clone)]
pub(super) enum Upstream {
    /// The operator's, or a known provider's.
    Trusted(Url),
    /// A user's.
    Guarded(UserUrl),
}

/// The key that a server is asked with, by whose it is.
#[derive(Debug, Clone)]
pub(super) enum Key {
    None,
    Operators(SecretString),
    Users(SecretString),
}

impl Key {
    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Operators(key) | Self::Users(key) => Some(key.expose_secret()),
        }
    }
}

/// Why one try failed, and whether another makes sense.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: Error,
    pub(super) is_worth_another_try: bool,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, is_worth_another_try: false }
    }
}

/// An answer that is coming in from a server. Dropped before its end, it closes the connection.
#[derive(Debug)]
pub struct Stream {
    endpoint: Arc<Endpoint>,
    body: Body,
    decoder: Decoder,
    end: End,
}

/// What is known of a stream: what its chunks have in common, and its end.
#[derive(Debug, Default)]
pub(super) struct End {
    chunks: Chunks,
    pub(super) finish_reason: Option<String>,
    usage: Option<Usage>,
    /// When it will be taken for ended, after its finish reason has come.
    deadline: Option<Instant>,
    is_done: bool,
}

impl Endpoint {
    /// The provider's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes the request once. When it returns, the provider has accepted it and answers with an event stream.
    pub(super) async fn open(
        self: &Arc<Self>,
        clients: &Clients,
        guard: &Guard,
        request: &Request,
    ) -> Result<Stream, Refusal> {
        let body = Bytes::from(self.body(request).to_string());
        let headers = self.headers()?;
        let prepare = |call: RequestBuilder| call.headers(headers.clone()).body(body.clone());
        let unreachable = |detail: String| Refusal {
            error: self.unreachable().with_detail(detail),
            is_worth_another_try: true,
        };
        let response = match &self.upstream {
            Upstream::Trusted(url) if url.scheme() == "http" => {
                let response = clients.cleartext.post(url, &headers, &body).await;
                Response::from(response.map_err(|fault| unreachable(fault.to_string()))?)
            }
            Upstream::Trusted(url) => {
                let response = prepare(clients.library.post(url.clone())).send().await;
                Response::from(response.map_err(|error| unreachable(describe(error)))?)
            }
            Upstream::Guarded(url) => Response::from(guard.post(url, prepare).await?),
        };
        let content_type =
            response.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type =
            self.scrub(&content_type.unwrap_or("no content type").to_ascii_lowercase());
        if response.status == StatusCode::OK && content_type.starts_with("text/event-stream") {
            return Ok(Stream {
                endpoint: Arc::clone(self),
                body: response.body,
                decoder: Decoder::new(),
                end: End::default(),
            });
        }
        Err(self.refusal(response, &content_type, &request.model).await)
    }

    fn headers(&self) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::from_iter([
            (header::ACCEPT, HeaderValue::from_static("text/event-stream")),
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (header::USER_AGENT, HeaderValue::from_static(USER_AGENT)),
        ]);
        if let Some(key) = self.key.text() {
            let mut key = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| {
                self.unreachable().with_detail("its key cannot be sent in a header")
            })?;
            key.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, key);
        }
        Ok(headers)
    }

    fn body(&self, request: &Request) -> Value {
        let messages: Vec<_> = request
            .messages
            .iter()
            .map(|beat| json!({"role": beat.role.as_str(), "content": beat.content}))
            .collect();
        let mut body = Map::from_iter([
            ("model".to_owned(), json!(request.model)),
            ("messages".to_owned(), Value::Array(messages)),
            ("stream".to_owned(), json!(true)),
        ]);
        if self.habits.asks_usage {
            body.insert("stream_options".to_owned(), json!({"include_usage": true}));
        }
        if let Some(max_tokens) = request.max_tokens {
            body.insert(self.habits.max_tokens.to_owned(), json!(max_tokens));
        }
        if let Some(temperature) = request.temperature {
            body.insert("temperature".to_owned(), json!(temperature));
        }
        if let Some(reasoning) = request.reasoning {
            self.habits.reasoning.apply(reasoning, &mut body);
        }
        Value::Object(body)
    }

    fn unreachable(&self) -> Error {
        Error::new(
            Code::ProviderUnreachable,
            format!("The provider `{}` cannot be reached. Try again in a moment.", self.name),
        )
    }
}

impl Stream {
    /// Waits for more of the answer. Cancel safe.
    pub(super) async fn read(&mut self, batch: &mut Batch) -> Result<Progress, Refusal> {
        let Self { endpoint, body, decoder, end } = self;
        let (deadline, mut decoded) = (end.deadline, Ok(()));
        let next = body.read(|bytes| {
            if decoded.is_ok() {
                decoded = decode(endpoint, decoder, end, bytes, batch);
            }
        });
        let next = match deadline {
            None => next.await,
            Some(deadline) => timeout_at(deadline, next).await.unwrap_or(Ok(false)),
        };
        decoded?;
        match next {
            Ok(true) => {}
            Ok(false) | Err(_) if end.finish_reason.is_some() => end.is_done = true,
            Ok(false) => {
                return Err(invalid(endpoint, "ended the answer before it was finished").into());
            }
            Err(detail) => {
                let broken = format!(
                    "The connection to the provider `{}` broke off. Try again.",
                    endpoint.name
                );
                let error = Error::new(Code::ProviderUnreachable, broken).with_detail(detail);
                return Err(Refusal { error, is_worth_another_try: true });
            }
        }
        Ok(if end.is_done { Progress::Completed(end.completed()) } else { Progress::More })
    }

    /// Whether a read leaves nothing behind that had come.
    pub(super) fn is_read_in_one_go(&self) -> bool {
        matches!(self.body, Body::Cleartext(_))
    }

    pub(super) fn has_finish_reason(&self) -> bool {
        self.end.finish_reason.is_some()
    }

    /// Reads to the end of the body, if that is near.
    pub(super) async fn drain(mut self) {
        let to_the_end = async { while let Ok(true) = self.body.read(|_| {}).await {} };
        // A provider that does not come to its end gets its connection closed.
        let _elapsed = timeout(DRAIN_TIMEOUT, to_the_end).await;
    }
}

fn decode(
    endpoint: &Endpoint,
    decoder: &mut Decoder,
    end: &mut End,
    bytes: &[u8],
    batch: &mut Batch,
) -> Result<(), Error> {
    let mut failed = Ok(());
    let decoded = decoder.push(bytes, |event| {
        // The first end counts; what a provider says after it does not.
        if failed.is_ok() && !end.is_done {
            failed = end.take_in(&event.data, endpoint, batch);
        }
    });
    failed?;
    if end.is_done {
        return Ok(());
    }
    decoded.map_err(|oversized| {
        invalid(endpoint, "sent something far too long").with_detail(oversized)
    })
}

impl End {
    fn completed(&mut self) -> Completed {
        let finish_reason = self.finish_reason.take().unwrap_or_else(|| "stop".to_owned());
        Completed { finish_reason, usage: self.usage }
    }

    /// Takes the data of one event.
    pub(super) fn take_in(
        &mut self,
        data: &str,
        endpoint: &Endpoint,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        if data.trim() == "[DONE]" {
            self.is_done = true;
            return Ok(());
        }
        let chunk =
            self.chunks.read(data).map_err(|error| {
                // Without serde's own words, which quote what was sent.
                invalid(endpoint, "sent something that is no chunk of an answer")
                    .with_detail(format!("{:?} error at byte {}", error.classify(), error.column()))
            })?;
        batch.push(Kind::Reasoning, &chunk.reasoning);
        batch.push(Kind::Token, &chunk.content);
        if let Some(usage) = chunk.usage {
            let (prompt_tokens, completion_tokens) = (usage.prompt_tokens, usage.completion_tokens);
            self.usage = Some(Usage { prompt_tokens, completion_tokens, estimated: false });
        }
        if self.finish_reason.is_some() {
            return Ok(());
        }
        match (chunk.error, chunk.finish_reason) {
            (Some(error), _) => Err(endpoint.said(&error)),
            (None, Some(reason)) if reason == "error" => Err(endpoint.said(&ChunkError::default())),
            (None, Some(reason)) => {
                self.finish_reason =
                    Some(text::prefix(&text::clean(&reason), FINISH_REASON_LEN_MAX).to_owned());
                self.deadline = Some(Instant::now() + TRAILER_TIMEOUT);
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }
}

fn invalid(endpoint: &Endpoint, what: &str) -> Error {
    Error::new(
        Code::ProviderInvalid,
        format!("The provider `{}` {what}. Try again.", endpoint.name),
    )
}
