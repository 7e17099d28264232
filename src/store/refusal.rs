//! What a store refuses, and in which words: every store says the same.

use crate::error::{Code, Error};

/// What stores refuse.
const REFUSALS: [Code; 15] = [
    Code::InvalidRequest,
    Code::InvalidToken,
    Code::NotRerollable,
    Code::BotNotFound,
    Code::NoBot,
    Code::ConversationNotFound,
    Code::MessageNotFound,
    Code::VariantNotFound,
    Code::StreamNotFound,
    Code::KeyNotFound,
    Code::StreamIdReused,
    Code::GenerationRunning,
    Code::TooManyKeys,
    Code::StoryTooLarge,
    Code::Unsupported,
];

/// The refusal of that code.
pub(super) fn refusal(code: Code) -> Error {
    let message = match code {
        // The one request whose form a store judges.
        Code::InvalidRequest => "`cursor` must be the `next` of the page before.",
        Code::InvalidToken => "The access token names no user.",
        Code::NotRerollable => {
            "Only an assistant's message can be rerolled. To change a message of the user, write a variant of it."
        }
        Code::BotNotFound => "There is no such bot of yours.",
        Code::NoBot => "You have no bot. Make one with `POST /v1/bots`.",
        Code::ConversationNotFound => "There is no such conversation of yours.",
        Code::MessageNotFound => "There is no such message of yours.",
        Code::VariantNotFound => "There is no such variant of that message.",
        Code::StreamNotFound => "What this stream was to write has been deleted.",
        Code::KeyNotFound => "There is no such key of yours.",
        Code::StreamIdReused => return Error::stream_id_reused(),
        Code::GenerationRunning => {
            "An answer is being written there, or waits to be saved. Stop it, or wait until it is saved."
        }
        Code::TooManyKeys => {
            "You have as many keys as one may have. Delete one that you do not use any more."
        }
        Code::StoryTooLarge => {
            "There is more text there than can be read at once. Delete messages that you do not need, or go on in a new story."
        }
        Code::Unsupported => {
            "The app's own tables, on which this relay works, cannot do that. Do it in the app."
        }
        other => {
            return Error::internal(format!("a store refused with {}", other.as_str()));
        }
    };
    Error::new(code, message)
}

/// The refusal whose code a function of the database named.
pub(super) fn refusal_named(name: &str) -> Option<Error> {
    REFUSALS.into_iter().find(|code| code.as_str() == name).map(refusal)
}
