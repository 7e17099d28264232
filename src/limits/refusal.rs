//! What is said to whoever asks for too much.

use std::time::Duration;

use super::tokens::Estimate;
use super::{Quota, TooMany};
use crate::error::{Code, Error};

/// What a caller over a limit of generations is told to wait: about as long as an answer takes.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// One request too many of that user, or from that address.
pub(super) fn too_many_requests(quota: Quota) -> TooMany {
    let error = Error::new(
        Code::RateLimited,
        format!(
            "More than {} requests in {} s. Wait for the time in `Retry-After`.",
            quota.rate.requests,
            quota.rate.window.as_secs()
        ),
    );
    (quota, error.with_retry_after(quota.resets_in))
}

/// One generation too many of that user.
pub(super) fn too_many_streams(max: usize) -> Error {
    Error::new(
        Code::TooManyStreams,
        format!("You have {max} answers being written. Wait for one to end, or stop one."),
    )
    .with_retry_after(RETRY_AFTER)
}

/// More tokens than the user has left, until the day is over, or ever.
pub(super) fn over_budget(estimate: Estimate, limit: u64, taken: u64, left: Duration) -> Error {
    let (needed, room) = (estimate.total(), limit.saturating_sub(taken));
    let fits = needed <= limit;
    let advice = if fits { "Wait for midnight (UTC), or ask" } else { "No day has so many: ask" };
    let error = Error::new(
        Code::BudgetExceeded,
        format!(
            "This answer may need {needed} tokens, and {room} of your {limit} for today are left. {advice} for less: a shorter `max_tokens`, or less context."
        ),
    );
    if fits { error.with_retry_after(left) } else { error }
}

/// One generation too many of the process.
pub(super) fn overloaded() -> Error {
    Error::new(
        Code::Overloaded,
        "The relay writes as many answers as it can. Try again in a moment.",
    )
    .with_retry_after(RETRY_AFTER)
}
