//! The spine: one request for an answer, from the caller's word to a running generation, on one screen.
//!
//! A turn is claimed, admitted, begun, assembled and then generated, by a task that belongs to nobody's connection. The
//! caller waits only for the generation to open, and gets its log to follow. Asking again with the same stream id waits
//! for the same task.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tracing::Instrument;

use crate::auth::Principal;
use crate::beginning;
use crate::clock;
use crate::error::{Code, Error};
use crate::event::{BotRef, Start};
use crate::generation::{self, Generation};
use crate::id::{BotId, StreamId};
use crate::journal::{self, Claim, Ended, Log, Opening, Writer};
use crate::limits::tokens::Used;
use crate::limits::{self, Permit};
use crate::own_key;
use crate::prompt::{self, Additions};
use crate::provider::{Call, Request};
use crate::relay::Relay;
use crate::saving;
use crate::spending;
use crate::store::{Begin, Begun, New, Place, new_write_token};
use crate::story::{Beat, Role};
use crate::text::{self, discreet};

/// What a caller is told to wait while the relay is restarted: about as long as a restart takes.
const RETRY_AFTER_SHUTDOWN: Duration = Duration::from_secs(5);

/// One request for an answer, whichever protocol it came by.
#[derive(Debug, Clone)]
pub struct Turn {
    /// The generation's name.
    pub stream_id: StreamId,
    /// What is asked.
    pub ask: Ask,
}

/// What is asked, apart from the name it goes by: equal asks have equal fingerprints.
#[derive(Clone, Serialize)]
pub struct Ask {
    /// Where the answer belongs.
    pub place: Place,
    /// The caller's own context instead of the saved path.
    pub messages: Option<Vec<Beat>>,
    /// Instructions beside the bot's.
    pub system: Option<String>,
    /// A hint for this attempt alone.
    pub guidance: Option<String>,
    /// The bot that is to answer.
    pub bot_id: Option<BotId>,
    /// Tokens that the answer may have, instead of the bot's.
    pub max_tokens: Option<u32>,
    /// Randomness, instead of the bot's.
    pub temperature: Option<f64>,
}

discreet!(Ask { place, bot_id });

/// Starts the generation for `turn`, or attaches to the one that exists, and returns its log once it has begun.
///
/// Dropping the returned future changes nothing: what has been started goes on.
///
/// # Errors
/// Whatever keeps it from beginning. Nothing is saved of such a turn then, and its stream id is free again.
pub async fn start(relay: &Arc<Relay>, caller: Principal, turn: Turn) -> Result<Arc<Log>, Error> {
    let opening = Opening {
        owner: caller.user(),
        stream_id: turn.stream_id.clone(),
        fingerprint: turn.ask.fingerprint()?,
        started_at: clock::now(),
        write_token: match turn.ask.place {
            Place::Nowhere => None,
            _ => Some(new_write_token()?),
        },
    };
    // A caller who hangs up meanwhile must not leave a name that somebody has claimed and nobody writes.
    let (claimed, log) = oneshot::channel();
    relay.tasks.spawn(claim(Arc::clone(relay), caller, turn, opening, claimed).in_current_span());
    let log = log.await.map_err(Error::internal)??;
    log.opened().await?;
    Ok(log)
}

/// Claims the generation's name, answers `claimed` with whose log it is, and writes it if it is this one's.
async fn claim(
    relay: Arc<Relay>,
    caller: Principal,
    turn: Turn,
    opening: Opening,
    claimed: oneshot::Sender<Result<Arc<Log>, Error>>,
) {
    let (answer, writer) = match relay.journal.claim(opening).await {
        Ok(Claim::Existing(log)) => (Ok(log), None),
        Ok(Claim::New(writer)) if relay.tasks.is_draining() => {
            writer.refuse(shutting_down());
            (Err(shutting_down()), None)
        }
        Ok(Claim::New(writer)) => (Ok(Arc::clone(writer.log())), Some(writer)),
        Err(error) => (Err(error), None),
    };
    // Whoever asked may have hung up.
    let _told = claimed.send(answer);
    if let Some(writer) = writer {
        run(relay, caller, turn, writer).await;
    }
}

async fn run(relay: Arc<Relay>, caller: Principal, turn: Turn, writer: Writer) {
    let admitted = match saving::has_room(&relay) {
        Ok(()) => limits::admit(&relay.limits, &caller, spending::attempt(&writer)).await,
        Err(error) => Err(error),
    };
    let mut permit = match admitted {
        Ok(permit) => permit,
        Err(error) => return writer.refuse(error),
    };
    // Boxed, like all that a generation does before its stream and after it: it would have the room for it all the while.
    match Box::pin(open(&relay, &caller, turn, &writer, &mut permit)).await {
        Ok(Opened::New(generation)) => generation::run(&relay, *generation, permit, writer).await,
        Ok(Opened::Over(ended)) => {
            spending::give_back(&relay, permit, Used::NOTHING).await;
            writer.replay(*ended);
        }
        Err(error) => {
            spending::give_back(&relay, permit, Used::NOTHING).await;
            writer.refuse(error);
        }
    }
}

enum Opened {
    New(Box<Generation>),
    Over(Box<Ended>),
}

async fn open(
    relay: &Arc<Relay>,
    caller: &Principal,
    turn: Turn,
    writer: &Writer,
    permit: &mut Permit,
) -> Result<Opened, Error> {
    let begin = turn.begin(writer, relay.times.expiry(clock::now()))?;
    let (begun, safe) = beginning::begin(relay, caller, writer, &begin).await?;
    let mut new = match begun {
        Begun::New(new) => new,
        Begun::Existing(saved) => {
            safe.wait().await?;
            return Ok(Opened::Over(Box::new(saving::ended(relay, caller, *saved).await?)));
        }
    };
    let is_announced = matches!(turn.ask.place, Place::Announced { .. });
    let prepared = if writer.is_lost() {
        // This relay was paused for so long that another has taken the name for its own.
        Err(journal::moved())
    } else {
        prepare(relay, caller, turn.ask, &mut new, permit).await
    };
    safe.wait().await?;
    let call = match prepared {
        Ok(call) => call,
        Err(error) => {
            if new.rows.is_some() {
                beginning::take_back(relay, writer, &begin).await;
            }
            return Err(error);
        }
    };
    let New { bot, rows, .. } = *new;
    let start = Start {
        stream_id: turn.stream_id,
        conversation_id: rows.as_ref().map(|rows| rows.conversation_id),
        message_id: rows.as_ref().map(|rows| rows.message_id),
        variant_id: rows.as_ref().map(|rows| rows.variant_id),
        user_message_id: rows.as_ref().and_then(|rows| rows.user_message_id),
        bot: BotRef { id: Some(bot.id), name: bot.settings.name },
        model: bot.settings.model,
    };
    let shows_reasoning = bot.settings.show_reasoning;
    Ok(Opened::New(Box::new(Generation {
        start,
        write_token: rows.map(|_| begin.write_token),
        call,
        shows_reasoning,
        is_announced,
    })))
}

/// All that can keep the turn from being run once its bot and its context are known; last of all, what it may cost is set
/// aside. Takes the keys and the path from `new`.
async fn prepare(
    relay: &Arc<Relay>,
    caller: &Principal,
    ask: Ask,
    new: &mut New,
    permit: &mut Permit,
) -> Result<Call, Error> {
    let (path, keys) = (mem::take(&mut new.path), mem::take(&mut new.keys));
    let bot = &new.bot.settings;
    let target = relay.providers.target(bot, own_key::open(relay, caller, bot, keys)?)?;
    let max_tokens = ask.max_tokens.or(bot.max_tokens);
    let (model, reasoning, temperature) =
        (bot.model.clone(), bot.reasoning, ask.temperature.or(bot.temperature));
    // The store puts a saved input at the end of the path; beside the caller's own messages it follows those.
    let said = match ask.place {
        Place::Reply { input: Some(input), .. } if ask.messages.is_some() => {
            Some(Beat { role: Role::User, content: input })
        }
        _ => None,
    };
    let bot = bot.clone();
    let has_budget = relay.limits.has_budget(caller);
    let answer_tokens = max_tokens.unwrap_or_else(|| spending::answer_tokens(bot.context_size));
    let mut beats = ask.messages.unwrap_or(path);
    beats.extend(said);
    let system = [Some(&bot.system_prompt), ask.system.as_ref(), ask.guidance.as_ref()];
    let texts = beats.iter().map(|beat| &beat.content).chain(system.into_iter().flatten());
    let len = texts.map(String::len).sum();
    let assemble = move || {
        let additions =
            Additions { system: ask.system.as_deref(), guidance: ask.guidance.as_deref() };
        let messages = prompt::assemble(&bot, &additions, beats, max_tokens)?;
        let prompt_tokens = has_budget.then(|| prompt::count_prompt(&messages));
        Ok::<_, Error>((messages, prompt_tokens))
    };
    let (messages, prompt_tokens) = relay.assembly.run(len, assemble).await?;
    if let Some(prompt_tokens) = prompt_tokens {
        spending::reserve(relay, caller, permit, prompt_tokens, answer_tokens).await?;
    }
    let max_tokens = if has_budget { Some(answer_tokens) } else { max_tokens };
    Ok(Call { target, request: Request { model, messages, max_tokens, temperature, reasoning } })
}

impl Turn {
    fn begin(&self, writer: &Writer, expires_at: Timestamp) -> Result<Begin, Error> {
        Ok(Begin {
            stream_id: self.stream_id.clone(),
            fingerprint: writer.log().fingerprint().to_owned(),
            place: self.ask.place.clone(),
            bot_id: self.ask.bot_id,
            wants_path: self.ask.messages.is_none(),
            expires_at,
            write_token: match writer.write_token() {
                Some(write_token) => write_token,
                // Nothing is saved, but the database is asked in the same words.
                None => new_write_token()?,
            },
        })
    }
}

impl Ask {
    /// The same for the same ask, on every instance and in every version that knows the same fields.
    fn fingerprint(&self) -> Result<String, Error> {
        let json = serde_json::to_vec(self).map_err(Error::internal)?;
        Ok(text::hex(&Sha256::digest(json)))
    }
}

fn shutting_down() -> Error {
    Error::new(
        Code::ShuttingDown,
        "The relay is being restarted and begins nothing new. Try again in a moment.",
    )
    .with_retry_after(RETRY_AFTER_SHUTDOWN)
}
