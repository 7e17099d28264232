//! Rerolls: another variant of a message, in one step or in two.
//!
//! The one-step form answers with the stream. The two-step form is what Storytellr's frontend speaks: this route
//! announces the variant, and `POST /v1/stream` begins it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};

use super::extract::{Json, invalid};
use super::{sse, stream};
use crate::auth::Principal;
use crate::error::Error;
use crate::id::{BotId, ConversationId, MessageId, MessageRef, StreamId, VariantId};
use crate::number;
use crate::relay::Relay;
use crate::store::{Announced, Place};
use crate::text;
use crate::turn::{self, Ask, Turn};

/// The body of `POST /v1/reroll`.
#[derive(Deserialize)]
pub(super) struct RerollBody {
    message_id: Option<MessageRef>,
    /// What the two-step form calls the message.
    parent_message_id: Option<MessageRef>,
    conversation_id: Option<ConversationId>,
    bot_id: Option<BotId>,
    system: Option<String>,
    guidance: Option<String>,
    #[serde(default, deserialize_with = "number::count")]
    max_tokens: Option<u32>,
    temperature: Option<f64>,
    stream_id: Option<StreamId>,
}

/// `POST /v1/reroll`
pub(super) async fn reroll(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    headers: HeaderMap,
    Json(body): Json<RerollBody>,
) -> Result<Response, Error> {
    let is_in_two_steps = match accepts_events(&headers) {
        Accepts::Explicitly => false,
        Accepts::Anything => body.message_id.is_none(),
        Accepts::No => true,
    };
    let Some(message) = body.message_id.or(body.parent_message_id) else {
        return Err(invalid("`message_id` is missing: the assistant's message to write anew."));
    };
    stream::check_settings(body.max_tokens, body.temperature)?;
    if is_in_two_steps {
        let announced =
            relay.store.announce_reroll(&caller, &message, body.conversation_id).await?;
        return Ok(axum::Json(Announcement::from(announced)).into_response());
    }
    let ask = Ask {
        place: Place::Reroll { message },
        messages: None,
        system: body.system.map(|text| text::clean(&text).into_owned()),
        guidance: body.guidance.map(|text| text::clean(&text).into_owned()),
        bot_id: body.bot_id,
        max_tokens: body.max_tokens,
        temperature: body.temperature,
    };
    let stream_id = body.stream_id.unwrap_or_else(StreamId::random);
    let log = turn::start(&relay, caller, Turn { stream_id, ask }).await?;
    Ok(sse::respond(&log))
}

/// Whether a client takes an event stream for an answer.
#[derive(Debug, PartialEq, Eq)]
enum Accepts {
    Explicitly,
    Anything,
    No,
}

fn accepts_events(headers: &HeaderMap) -> Accepts {
    let mut accepts =
        if headers.contains_key(header::ACCEPT) { Accepts::No } else { Accepts::Anything };
    for value in headers.get_all(header::ACCEPT) {
        for range in value.to_str().unwrap_or_default().split(',') {
            let range = range.split(';').next().unwrap_or_default().trim();
            if range.eq_ignore_ascii_case("text/event-stream") {
                return Accepts::Explicitly;
            }
            if matches!(range, "*/*" | "text/*") {
                accepts = Accepts::Anything;
            }
        }
    }
    accepts
}

/// What the two-step form answers, in the words of Storytellr's frontend.
#[derive(Debug, Serialize)]
struct Announcement {
    alternative_message: Alternative,
    stream_id: StreamId,
}

#[derive(Debug, Serialize)]
struct Alternative {
    id: VariantId,
    parent_message_id: MessageId,
    conversation_id: ConversationId,
    content: &'static str,
    is_user_author: bool,
    is_streaming: bool,
    is_complete: bool,
    stream_id: StreamId,
    is_active: bool,
}

impl From<Announced> for Announcement {
    fn from(announced: Announced) -> Self {
        Self {
            stream_id: announced.stream_id.clone(),
            alternative_message: Alternative {
                id: announced.variant_id,
                parent_message_id: announced.message_id,
                conversation_id: announced.conversation_id,
                content: "",
                is_user_author: false,
                is_streaming: true,
                is_complete: false,
                stream_id: announced.stream_id,
                is_active: true,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn clients_say_in_many_ways_whether_they_take_events() {
        for (accept, expected) in [
            ("text/event-stream", Accepts::Explicitly),
            ("application/json, text/event-stream;q=0.9", Accepts::Explicitly),
            ("*/*", Accepts::Anything),
            ("application/json, text/plain, */*", Accepts::Anything),
            ("application/json", Accepts::No),
            ("", Accepts::No),
        ] {
            let headers =
                HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(accepts_events(&headers), expected, "{accept}");
        }
        assert_eq!(accepts_events(&HeaderMap::new()), Accepts::Anything);
    }
}
