//! One generation: from the provider's answer through the journal into the store.
//!
//! It runs in a task of its own and belongs to nobody's connection. However it ends (the provider finishes or fails,
//! somebody stops it, nobody comes back, the relay is shut down, a bug panics), the text is saved first and the end is
//! told after, once.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::time::Duration;

use futures_util::FutureExt;
use secrecy::SecretString;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::beside::Beside;
use crate::bot::Reasoning;
use crate::ending;
use crate::error::{Code, Error};
use crate::event::{Failure, Start, Usage};
use crate::journal::{Control, Watch, Writer};
use crate::limits::Permit;
use crate::prompt;
use crate::provider::{Batch, Call, Completed, Completion, Progress};
use crate::relay::{Relay, Times};
use crate::spending;
use crate::store::{Conclusion, Outcome};

/// A generation that is ready to run.
#[derive(Debug)]
pub(crate) struct Generation {
    /// Its first event.
    pub(crate) start: Start,
    /// What it is saved with; absent if nothing is saved.
    pub(crate) write_token: Option<SecretString>,
    /// What the provider is asked.
    pub(crate) call: Call,
    /// Whether readers see what the model thinks.
    pub(crate) shows_reasoning: bool,
    /// Whether it was begun by the two-step reroll, whose client knows the variant as the alternative.
    pub(crate) is_announced: bool,
}

/// Why a generation ends.
#[derive(Debug)]
enum Ending {
    /// What is left of the provider's answer comes along.
    Complete(Completed, Completion),
    Stopped,
    Interrupted,
    Failed(Error),
    /// Another relay has taken it over.
    Lost,
}

/// Runs a generation to its end. When this returns, its text is saved and its followers have been told. `permit` is given
/// back in between, with what the generation came to.
pub(crate) async fn run(relay: &Relay, generation: Generation, permit: Permit, writer: Writer) {
    let Generation { start, write_token, call, shows_reasoning, is_announced } = generation;
    writer.open(start.clone());
    // A bug must end one answer and not the relay, and must not leave a variant that streams for ever.
    let mut batch = Batch::new(shows_reasoning);
    let streamed = AssertUnwindSafe(stream(relay, &call, &mut batch, &writer)).catch_unwind().await;
    let ending = streamed
        .unwrap_or_else(|_| Ending::Failed(Error::internal("the task of a generation panicked")));
    log_ending(&start, &call, &ending);

    let hidden_len = batch.hidden_len();
    let is_lost = matches!(ending, Ending::Lost);
    let usage = usage(&ending, &call, &writer, hidden_len).await;
    let thinks = call.request.reasoning.is_some_and(|reasoning| reasoning != Reasoning::Off);
    let has_hidden_thoughts = thinks && hidden_len == 0 && writer.texts().0.is_empty();
    let (conclusion, unread) = conclude(ending, usage, is_announced);
    let end = if is_lost {
        None
    } else {
        Box::pin(ending::save(relay, &writer, write_token, &conclusion)).await
    };
    // Whoever sees the end may ask for the next answer at once.
    spending::settle(relay, permit, &conclusion, has_hidden_thoughts).await;
    match end {
        Some(end) => writer.end(end),
        None => writer.lose(),
    }
    if let Some(completion) = unread {
        completion.drain().await;
    }
}

/// Passes the provider's text on until something ends it.
async fn stream(relay: &Relay, call: &Call, batch: &mut Batch, writer: &Writer) -> Ending {
    // Of its own, because the one that all share is behind one lock.
    let ending = relay.tasks.ending().child_token();
    let mut interruption = Beside::new(interruption(&relay.times, writer.watch(), ending));

    let first_token_by = Instant::now() + relay.times.first_token;
    let opened = tokio::select! {
        biased;
        ending = &mut interruption => return ending,
        opened = Box::pin(relay.providers.open(call, batch, first_token_by)) => opened,
        () = sleep_until(first_token_by) => return Ending::Failed(no_first_token(relay.times.first_token)),
    };
    let (mut completion, mut progress) = match opened {
        Ok(opened) => opened,
        Err(error) => return Ending::Failed(error),
    };

    let mut read_at = Instant::now();
    let mut idle = pin!(sleep(relay.times.idle));
    loop {
        // What came before a failure is kept, so the text goes first.
        if let Err(error) = writer.append(batch.pieces()) {
            return Ending::Failed(error);
        }
        // A comment or an empty chunk is no sign that the model is at work.
        if batch.has_tokens() {
            read_at = Instant::now();
        }
        batch.clear();
        match progress {
            Ok(Progress::More) => {}
            Ok(Progress::Completed(completed)) => return Ending::Complete(completed, completion),
            Err(error) => return Ending::Failed(error),
        }
        progress = tokio::select! {
            biased;
            ending = &mut interruption => return ending,
            progress = completion.read(batch) => progress,
            () = &mut idle => {
                // Behind the model's last word the provider's own limit counts.
                if read_at.elapsed() >= relay.times.idle && !completion.has_finish_reason() {
                    return Ending::Failed(stalled(relay.times.idle));
                }
                // Set again only when it fires, rather than at every token.
                let since = if completion.has_finish_reason() { Instant::now() } else { read_at };
                idle.as_mut().reset(since + relay.times.idle);
                Ok(Progress::More)
            }
        };
        // Over in no time, so that what interrupts it is heard of next, behind the text that has come.
        if batch.has_tokens() && matches!(progress, Ok(Progress::More)) {
            progress = completion.gather(batch).await;
        }
    }
}

/// Returns when the generation has to end though the provider has not ended it.
async fn interruption(times: &Times, mut watch: Watch, shutdown: CancellationToken) -> Ending {
    let deadline = Instant::now() + times.generation;
    loop {
        let deserted_until = watch.deserted_since().map(|since| since + times.detached_grace);
        if deserted_until.is_some_and(|until| until <= Instant::now()) {
            return Ending::Stopped;
        }
        tokio::select! {
            biased;
            control = watch.control() => match control {
                Control::Stop => return Ending::Stopped,
                Control::Lost => return Ending::Lost,
                Control::Deserted(_) => {}
            },
            () = shutdown.cancelled() => return Ending::Interrupted,
            () = sleep_until(deadline) => return Ending::Failed(too_long(times.generation)),
            () = sleep_until(deserted_until.unwrap_or(deadline)) => {}
        }
    }
}

/// How the generation ended, and what is left unread of the provider's answer.
fn conclude(
    ending: Ending,
    usage: Option<Usage>,
    is_announced: bool,
) -> (Conclusion, Option<Completion>) {
    let mut unread = None;
    let (outcome, finish_reason, failure) = match ending {
        Ending::Complete(completed, completion) => {
            unread = Some(completion);
            (Outcome::Complete, Some(completed.finish_reason), None)
        }
        Ending::Stopped => (Outcome::Stopped, None, None),
        // What is said of it depends on its text.
        Ending::Interrupted | Ending::Lost => (Outcome::Interrupted, None, None),
        Ending::Failed(error) => (Outcome::Failed, None, Some(Failure::from(&error))),
    };
    (Conclusion { outcome, finish_reason, usage, failure, is_announced }, unread)
}

/// The provider's count, or the relay's own if there is none: of what was written, and of so many bytes that nobody saw.
/// `None` if that failed.
async fn usage(ending: &Ending, call: &Call, writer: &Writer, hidden_len: usize) -> Option<Usage> {
    if let Ending::Complete(Completed { usage: Some(usage), .. }, _) = ending {
        return Some(*usage);
    }
    let ((reasoning, content), messages) = (writer.texts(), call.request.messages.clone());
    let counted = tokio::task::spawn_blocking(move || {
        let written = prompt::count_tokens(&(reasoning + &content), usize::MAX) as u64;
        Usage {
            prompt_tokens: prompt::count_prompt(&messages),
            completion_tokens: written + prompt::estimate_tokens(hidden_len),
            estimated: true,
        }
    });
    counted.await.ok()
}

fn log_ending(start: &Start, call: &Call, ending: &Ending) {
    let (stream_id, provider) = (&start.stream_id, call.target.name());
    match ending {
        Ending::Complete(completed, _) => {
            let finish_reason = known_reason(&completed.finish_reason);
            info!(%stream_id, provider, finish_reason, "generation complete");
        }
        Ending::Stopped => info!(%stream_id, provider, "generation stopped"),
        Ending::Interrupted => info!(%stream_id, provider, "generation interrupted"),
        Ending::Lost => warn!(%stream_id, provider, "generation given up to another relay"),
        Ending::Failed(error) if error.code() == Code::Internal => {
            error!(%stream_id, provider, %error, "generation failed");
        }
        Ending::Failed(error) => warn!(%stream_id, provider, %error, "generation failed"),
    }
}

fn no_first_token(time: Duration) -> Error {
    Error::new(
        Code::ProviderTimeout,
        format!(
            "The provider sent no text within {} s. Try again, or choose another model.",
            time.as_secs_f64()
        ),
    )
}

/// The finish reason, if it is one of OpenAI's words: others may be anybody's, and are not for the log.
fn known_reason(finish_reason: &str) -> &'static str {
    let known = ["stop", "length", "content_filter", "tool_calls"];
    known.into_iter().find(|known| *known == finish_reason).unwrap_or("other")
}

fn stalled(time: Duration) -> Error {
    Error::new(
        Code::ProviderTimeout,
        format!(
            "The provider stopped sending for {} s. What had come is kept; ask again for a whole answer.",
            time.as_secs_f64()
        ),
    )
}

fn too_long(time: Duration) -> Error {
    Error::new(
        Code::ProviderTimeout,
        format!(
            "The answer took longer than {} s. What had come is kept; set `max_tokens` in the bot for shorter ones.",
            time.as_secs_f64()
        ),
    )
}
