//! The end of a generation: it is saved first and told after, once, whoever ends it.

use secrecy::SecretString;
use tracing::warn;

use crate::error::{Code, Error};
use crate::event::{Done, DoneStatus, End, Failed, Failure, Start, Usage};
use crate::journal::{Hold, Writer};
use crate::outbox::Name;
use crate::relay::Relay;
use crate::saving::{self, Saved};
use crate::store::{Conclusion, Finish, Outcome};

/// Saves what was written, and returns the last event. `None` if another relay has ended the generation: what there is of
/// it is for that one to say.
pub(crate) async fn save(
    relay: &Relay,
    writer: &Writer,
    write_token: Option<SecretString>,
    conclusion: &Conclusion,
) -> Option<End> {
    let start = writer.start()?;
    if relay.journal.seal(writer.log(), conclusion).await == Hold::Lost {
        return None;
    }
    let has_text = writer.has_text();
    let Some(write_token) = write_token else {
        return Some(last_event(start, conclusion, None, has_text));
    };
    let finish = Finish::concluded(write_token, writer.texts(), conclusion, start.model.clone());
    match saving::save(relay, &Name::of(writer.log()), &finish).await {
        Ok(Saved::Stored(finished)) if !finished.is_by(&finish) => {
            warn!(stream_id = %start.stream_id, "another relay has saved this generation");
            None
        }
        Ok(saved) => Some(last_event(start, conclusion, Some(saved), has_text)),
        Err(error) => {
            if error.code() == Code::Internal {
                // What is recorded is all that is left of it.
                writer.leave_record();
            }
            Some(End::Failed(Failed {
                failure: Failure::from(&error),
                stream_id: start.stream_id,
                message_id: None,
                saved: None,
            }))
        }
    }
}

/// What is said last of a generation, with text or without; `saved` is what became of its rows, if it has any.
pub(crate) fn last_event(
    start: Start,
    conclusion: &Conclusion,
    saved: Option<Saved>,
    has_text: bool,
) -> End {
    let (message_id, variant_id) = match saved {
        Some(Saved::Stored(finished)) => (finished.message_id, finished.variant_id),
        // What will become of its rows is not known yet.
        Some(Saved::Waiting) => (start.message_id, start.variant_id),
        None => (None, None),
    };
    let is_saved = saved.map(|saved| matches!(saved, Saved::Stored(_)));
    let status = match conclusion.outcome {
        Outcome::Complete => DoneStatus::Complete,
        Outcome::Stopped => DoneStatus::Stopped,
        Outcome::Interrupted | Outcome::Failed | Outcome::Refused => {
            let interrupted = || Failure::from(&Error::interrupted(has_text));
            let is_interrupted = conclusion.outcome == Outcome::Interrupted;
            // Who asks for the message later cannot be told whether nothing had come, or nothing of it is left.
            let is_lost = is_interrupted && !has_text;
            let failure = conclusion.failure.clone().filter(|_| !is_interrupted);
            return End::Failed(Failed {
                failure: failure.unwrap_or_else(interrupted),
                stream_id: start.stream_id,
                message_id: message_id.filter(|_| has_text),
                saved: is_saved.filter(|_| !is_lost),
            });
        }
    };
    let is_announced = conclusion.is_announced;
    End::Done(Done {
        stream_id: start.stream_id,
        message_id: message_id.filter(|_| !is_announced),
        variant_id,
        alternative_id: variant_id.filter(|_| is_announced),
        status,
        finish_reason: conclusion.finish_reason.clone(),
        usage: conclusion.usage.unwrap_or(Usage::UNKNOWN),
        saved: is_saved,
    })
}
