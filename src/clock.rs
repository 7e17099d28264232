//! The one place that reads the wall clock. Durations are measured with [`tokio::time::Instant`], which tests can pause.

use jiff::Timestamp;

/// The present, in whole milliseconds: what every store can keep, so a time read back equals the time written.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the function that the lint points to")]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}
