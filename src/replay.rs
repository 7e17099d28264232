//! A generation that is over, put together again from what the database has of it.

use crate::error::{Code, Error};
use crate::event::{Done, DoneStatus, End, Failed, Failure, Start, Usage};
use crate::journal::Ended;
use crate::store::SavedStream;
use crate::story::Status;

/// The events of `saved`, as a follower gets them. `is_saved` says whether the database has it so, or will.
///
/// # Errors
/// `StreamNotFound` for a variant that was announced and never begun: there is nothing to follow.
pub(crate) fn ended(saved: SavedStream, is_saved: bool) -> Result<Ended, Error> {
    let end = match saved.status {
        Status::Pending => return Err(not_begun()),
        Status::Complete => End::Done(done(&saved, DoneStatus::Complete, is_saved)),
        Status::Stopped => End::Done(done(&saved, DoneStatus::Stopped, is_saved)),
        Status::Failed => {
            let failure = saved.error.clone().unwrap_or_else(unknown);
            End::Failed(failed(&saved, failure, is_saved))
        }
        // Streaming, and in no journal: whoever wrote it is gone. So is the text, if none is here.
        Status::Interrupted | Status::Streaming => {
            let failure = Failure::from(&Error::interrupted(saved.has_text()));
            let failed = failed(&saved, failure, is_saved);
            End::Failed(Failed { saved: failed.saved.filter(|_| saved.has_text()), ..failed })
        }
    };
    let start = Start {
        stream_id: saved.stream_id,
        conversation_id: Some(saved.conversation_id),
        message_id: Some(saved.id),
        variant_id: Some(saved.variant_id),
        user_message_id: saved.user_message_id,
        bot: saved.bot,
        model: saved.model.unwrap_or_default(),
    };
    Ok(Ended { start, reasoning: saved.reasoning, content: saved.content, end })
}

/// What is said of a stream that neither the journal nor the database knows.
pub(crate) fn not_found() -> Error {
    Error::new(
        Code::StreamNotFound,
        "There is no such stream of yours. One that saved nothing is forgotten ten minutes after its end.",
    )
}

fn done(saved: &SavedStream, status: DoneStatus, is_saved: bool) -> Done {
    Done {
        stream_id: saved.stream_id.clone(),
        message_id: (!saved.is_announced).then_some(saved.id),
        variant_id: Some(saved.variant_id),
        alternative_id: saved.is_announced.then_some(saved.variant_id),
        status,
        finish_reason: saved.finish_reason.clone(),
        usage: saved.usage.unwrap_or(Usage::UNKNOWN),
        saved: Some(is_saved),
    }
}

fn failed(saved: &SavedStream, failure: Failure, is_saved: bool) -> Failed {
    Failed {
        failure,
        stream_id: saved.stream_id.clone(),
        message_id: saved.has_text().then_some(saved.id),
        saved: Some(is_saved),
    }
}

fn unknown() -> Failure {
    Failure::from(&Error::new(Code::ProviderFailed, "The answer failed. Ask again."))
}

fn not_begun() -> Error {
    Error::new(
        Code::StreamNotFound,
        "This stream was announced but not begun. Begin it with `POST /v1/stream`.",
    )
}
