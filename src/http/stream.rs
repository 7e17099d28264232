//! Streams: start one, follow it, stop it, find what it wrote.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, State};
use axum::response::Response;
use axum::{Extension, Json as JsonResponse};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::extract::{Id, Json, Parameters, invalid};
use super::sse::{self, LAST_EVENT_ID};
use super::whole::Turns;
use crate::auth::Principal;
use crate::error::Error;
use crate::event::Cursor;
use crate::id::{BotId, ConversationId, MessageId, StreamId, VariantId};
use crate::journal::{Log, Opening, Roll, Running, TEXT_LEN_MAX};
use crate::number;
use crate::relay::Relay;
use crate::replay;
use crate::saving;
use crate::store::Place;
use crate::story::{Beat, Role, Status};
use crate::text;
use crate::turn::{self, Ask, Turn};

/// How long a stop waits for the generation to have been saved, so that whoever reads next sees it stopped. If it takes
/// longer, it is stopped all the same.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// The body of `POST /v1/stream`.
#[derive(Deserialize)]
pub(super) struct StartBody {
    conversation_id: Option<ConversationId>,
    parent_id: Option<MessageId>,
    input: Option<String>,
    messages: Option<Vec<WireMessage>>,
    system: Option<String>,
    bot_id: Option<BotId>,
    #[serde(default, deserialize_with = "number::count")]
    max_tokens: Option<u32>,
    temperature: Option<f64>,
    stream_id: Option<StreamId>,
    /// The second half of the two-step reroll.
    is_alternative: Option<bool>,
    alternative_id: Option<VariantId>,
}

/// One message of the caller's own context, as OpenAI has it.
#[derive(Deserialize)]
#[serde(expecting = "a message {\"role\": …, \"content\": …}")]
struct WireMessage {
    role: WireRole,
    content: Content,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WireRole {
    #[serde(alias = "developer")]
    System,
    User,
    Assistant,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "text, or a list of parts {\"type\": \"text\", \"text\": …}")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Part {
    Text { text: String },
}

/// `POST /v1/stream`
pub(super) async fn start(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Json(body): Json<StartBody>,
) -> Result<Response, Error> {
    let log = turn::start(&relay, caller, body.into_turn()?).await?;
    Ok(sse::respond(&log))
}

/// What `GET /v1/streams` answers.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    data: Vec<Running>,
    /// As every list has it; this one is never cut.
    next: Option<String>,
    /// False while other relays may write what is not known here.
    complete: bool,
}

/// `GET /v1/streams`
pub(super) async fn list(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
) -> JsonResponse<Listed> {
    let Roll { running, is_complete } = relay.journal.running(caller.user()).await;
    JsonResponse(Listed { data: running, next: None, complete: is_complete })
}

#[derive(Debug, Deserialize)]
struct FollowParameters {
    after: Option<String>,
}

/// `GET /v1/streams/{stream_id}`
pub(super) async fn follow(
    State(relay): State<Arc<Relay>>,
    Extension(turns): Extension<Turns>,
    caller: Principal,
    Id(stream_id): Id<StreamId>,
    After(after): After,
) -> Result<Response, Error> {
    let room = turns.room(caller.user());
    if let Some(log) = relay.journal.find(caller.user(), &stream_id).await {
        log.opened().await?;
        return Ok(sse::resume(&log, after, room, None));
    }
    let read = rebuild(&relay, &caller, stream_id);
    let (log, share) = turns.replay(caller.user(), read).await?;
    Ok(sse::resume(&log, after, room, Some(share)))
}

/// `DELETE /v1/streams/{stream_id}`
pub(super) async fn stop(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Id(stream_id): Id<StreamId>,
) -> Result<StatusCode, Error> {
    if let Some(log) = relay.journal.find(caller.user(), &stream_id).await {
        relay.journal.stop(&log).await?;
        let _elapsed = timeout(STOP_WAIT, log.ended()).await;
        return Ok(StatusCode::NO_CONTENT);
    }
    let saved = relay.store.find_stream(&caller, &stream_id).await?;
    let saved = saved.ok_or_else(replay::not_found)?;
    if saved.status == Status::Streaming {
        // Where it is known that nobody writes it, it has ended.
        saving::ended(&relay, &caller, saved).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
pub(super) struct MessageParameters {
    stream_id: StreamId,
}

/// `GET /v1/message-by-stream-id`
pub(super) async fn message(
    State(relay): State<Arc<Relay>>,
    Extension(turns): Extension<Turns>,
    caller: Principal,
    Parameters(MessageParameters { stream_id }): Parameters<MessageParameters>,
) -> Result<Response, Error> {
    let read = saving::find(&relay, &caller, &stream_id);
    turns.bounded(caller.user(), TEXT_LEN_MAX as u64, read).await
}

/// The log of a stream that the journal has forgotten, from the database.
async fn rebuild(
    relay: &Relay,
    caller: &Principal,
    stream_id: StreamId,
) -> Result<Arc<Log>, Error> {
    let saved = relay.store.find_stream(caller, &stream_id).await?.ok_or_else(replay::not_found)?;
    let started_at = saved.created_at;
    let ended = saving::ended(relay, caller, saved).await?;
    let opening = Opening {
        owner: caller.user(),
        stream_id,
        fingerprint: String::new(),
        started_at,
        write_token: None,
    };
    Ok(Log::rebuilt(opening, ended))
}

/// Where a reader wants to go on.
pub(super) struct After(Option<Cursor>);

impl<S: Send + Sync> FromRequestParts<S> for After {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let parameters = Parameters::<FollowParameters>::from_request_parts(parts, state).await?;
        cursor(&parts.headers, parameters.0.after.as_deref()).map(Self)
    }
}

/// What the header and the address say of it. A browser that reconnects by itself repeats the address it first called, so
/// what its header says is newer than what the address says.
pub(super) fn cursor(headers: &HeaderMap, after: Option<&str>) -> Result<Option<Cursor>, Error> {
    let header = headers.get(LAST_EVENT_ID).map(|value| value.to_str().unwrap_or("?"));
    // Neither is passed over: what is wrong in an address is wrong from the first call on.
    let (header, after) = (read_cursor(header)?, read_cursor(after)?);
    Ok(header.or(after))
}

fn read_cursor(said: Option<&str>) -> Result<Option<Cursor>, Error> {
    let Some(cursor) = said.filter(|cursor| !cursor.is_empty()) else { return Ok(None) };
    let is_number = cursor.bytes().all(|byte| byte.is_ascii_digit());
    // Beyond every generation is beyond every generation, by however many digits.
    let id = is_number.then(|| cursor.parse().unwrap_or(u64::MAX));
    id.map(|id| Some(Cursor::from_id(id))).ok_or_else(|| {
        invalid("`Last-Event-ID` (or `after`) must be the `id` of an event of this stream: a whole number.")
    })
}

impl StartBody {
    /// The turn that is asked for, its texts cleaned.
    pub(super) fn into_turn(self) -> Result<Turn, Error> {
        check_settings(self.max_tokens, self.temperature)?;
        let clean = |text: Option<String>| text.map(|text| text::clean(&text).into_owned());
        let input = clean(self.input);
        if input.as_deref().is_some_and(|input| input.trim().is_empty()) {
            return Err(invalid("`input` is empty. Send the user's message, or leave it out."));
        }
        let mut messages =
            self.messages.map(|messages| messages.into_iter().map(Beat::from).collect::<Vec<_>>());
        let place = match (self.is_alternative.unwrap_or(false), self.conversation_id) {
            (true, conversation_id) => {
                let variant_id = self.alternative_id.ok_or_else(|| {
                    invalid("`is_alternative` needs `alternative_id` and `stream_id`, as `POST /v1/reroll` answered them.")
                })?;
                if self.stream_id.is_none() {
                    return Err(invalid(
                        "`is_alternative` needs the `stream_id` that `POST /v1/reroll` answered.",
                    ));
                }
                Place::Announced { variant_id, conversation_id }
            }
            (false, Some(conversation_id)) => {
                if input.is_none() && messages.is_none() && self.parent_id.is_none() {
                    return Err(invalid(
                        "There is nothing to answer. Send `input`, `messages` or `parent_id`.",
                    ));
                }
                Place::Reply { conversation_id, parent_id: self.parent_id, input }
            }
            (false, None) => {
                if self.parent_id.is_some() {
                    return Err(invalid("`parent_id` needs `conversation_id`."));
                }
                if input.is_none() && messages.is_none() {
                    return Err(invalid("There is nothing to answer. Send `input` or `messages`."));
                }
                let said = input.map(|content| Beat { role: Role::User, content });
                messages = Some(messages.into_iter().flatten().chain(said).collect());
                Place::Nowhere
            }
        };
        if messages.as_ref().is_some_and(Vec::is_empty) {
            return Err(invalid("`messages` is empty."));
        }
        let ask = Ask {
            place,
            messages,
            system: clean(self.system),
            guidance: None,
            bot_id: self.bot_id,
            max_tokens: self.max_tokens,
            temperature: self.temperature,
        };
        Ok(Turn { stream_id: self.stream_id.unwrap_or_else(StreamId::random), ask })
    }
}

/// The limits of what every provider takes.
pub(super) fn check_settings(
    max_tokens: Option<u32>,
    temperature: Option<f64>,
) -> Result<(), Error> {
    if max_tokens == Some(0) {
        return Err(invalid("`max_tokens` must be 1 or more, or absent."));
    }
    if temperature.is_some_and(|temperature| !(0.0..=2.0).contains(&temperature)) {
        return Err(invalid("`temperature` must be from 0 to 2, or absent."));
    }
    Ok(())
}

impl From<WireMessage> for Beat {
    fn from(message: WireMessage) -> Self {
        let role = match message.role {
            WireRole::System => Role::System,
            WireRole::User => Role::User,
            WireRole::Assistant => Role::Assistant,
        };
        let content = match message.content {
            Content::Text(text) => text,
            Content::Parts(parts) => parts.into_iter().map(|Part::Text { text }| text).collect(),
        };
        Self { role, content: text::clean(&content).into_owned() }
    }
}
