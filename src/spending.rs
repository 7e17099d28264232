//! What a generation costs its user: set aside before the provider is called, and settled by what it came to, whoever ends
//! it and however.

use crate::auth::Principal;
use crate::error::{Code, Error};
use crate::journal::Writer;
use crate::limits::Permit;
use crate::limits::tokens::{Attempt, Estimate, Used};
use crate::outbox::Name;
use crate::prompt;
use crate::relay::Relay;
use crate::store::{Conclusion, Outcome};

/// How long an answer may be of which nobody says so, in tokens: long ones are half of it.
const ANSWER_TOKENS: u32 = 4_096;

/// What a provider says, or is said of it, that has not begun to answer, and charges nothing.
const FREE: [Code; 6] = [
    Code::UpstreamNotAllowed,
    Code::NoProviderKey,
    Code::ProviderUnreachable,
    Code::ProviderRateLimited,
    Code::ProviderKeyRefused,
    Code::ProviderRejected,
];

/// How many tokens an answer may have where tokens are counted and nobody says so: nobody could set aside what has no bound.
/// As far as the bot's context has room for as much of a prompt.
pub(crate) fn answer_tokens(context_size: u32) -> u32 {
    ANSWER_TOKENS.min(context_size / 2).max(1)
}

/// Sets aside what an answer of at most so many tokens may cost to a prompt of so many.
///
/// # Errors
/// `BudgetExceeded`; `Internal` of the book's disk, which ends the process.
pub(crate) async fn reserve(
    relay: &Relay,
    caller: &Principal,
    permit: &mut Permit,
    prompt: u64,
    answer: u32,
) -> Result<(), Error> {
    let estimate = Estimate { prompt, answer: u64::from(answer) };
    let reserved = permit.reserve(caller, estimate).await;
    reserved.inspect_err(|error| fail_if_broken(relay, error))
}

/// What tokens are set aside for, when that is written.
pub(crate) fn attempt(writer: &Writer) -> Attempt {
    let name = Name::of(writer.log());
    match writer.write_token() {
        Some(write_token) => Attempt::saved_with(name, &write_token),
        None => Attempt::unsaved(name, writer.started_at()),
    }
}

/// Settles by how the generation ended, unless whoever has taken it over has, and gives the permit back. A model that was
/// broken off and `has_hidden_thoughts`, which its provider does not pass on and nobody can count, is taken to have used all
/// that was set aside.
pub(crate) async fn settle(
    relay: &Relay,
    permit: Permit,
    conclusion: &Conclusion,
    has_hidden_thoughts: bool,
) {
    let is_broken_off = conclusion.outcome != Outcome::Complete;
    let used = match used(conclusion) {
        Some(Used::Counted { estimated: true, .. }) if is_broken_off && has_hidden_thoughts => {
            Used::All
        }
        Some(used) => used,
        None => Used::All,
    };
    give_back(relay, permit, used).await;
}

/// Gives the permit back, with what came of it.
pub(crate) async fn give_back(relay: &Relay, permit: Permit, used: Used) {
    if let Err(error) = permit.settle(used).await {
        fail_if_broken(relay, &error);
    }
}

/// Settles for a relay that is gone, by how it was about to end the generation or by what is left of what the model thought
/// and said. What that relay had in its own book alone it settles itself when it is started again.
pub(crate) async fn settle_for(
    relay: &Relay,
    attempt: &Attempt,
    conclusion: Option<&Conclusion>,
    [reasoning, content]: [&str; 2],
) {
    if !relay.limits.share_budgets() {
        return;
    }
    let used = match conclusion.and_then(used) {
        Some(used) => used,
        None => {
            let text = [reasoning, content].concat();
            let count = move || prompt::count_tokens(&text, usize::MAX) as u64;
            tokio::task::spawn_blocking(count).await.map_or(Used::All, Used::Answer)
        }
    };
    if let Err(error) = relay.limits.settle_for(attempt, used).await {
        fail_if_broken(relay, &error);
    }
}

/// What a generation came to that ended so; `None` if nobody counted.
fn used(conclusion: &Conclusion) -> Option<Used> {
    let usage = conclusion.usage?;
    let code = conclusion.failure.as_ref().and_then(|failure| Code::of(&failure.code));
    if usage.completion_tokens == 0 && code.is_some_and(|code| FREE.contains(&code)) {
        return Some(Used::NOTHING);
    }
    let tokens = usage.prompt_tokens.saturating_add(usage.completion_tokens);
    Some(Used::Counted { tokens, estimated: usage.estimated })
}

/// A book that cannot be written is no reason to go on.
fn fail_if_broken(relay: &Relay, error: &Error) {
    if error.code() == Code::Internal {
        relay.tasks.fail(error.clone());
    }
}
