//! When a request to a provider is made again, and how long the relay waits before it is.

use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;
use jiff::fmt::rfc2822;

/// Tries in all: the first and two more. A reader waits meanwhile, so more would only hide that something is wrong.
pub(super) const TRIES: u32 = 3;

/// The longest wait that a provider may ask for by `Retry-After`. If it asks for more, the reader is told instead.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);

/// Whoever asks for more than a day has a broken clock, or none.
const RETRY_AFTER_BELIEVED_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The wait before the second try where the provider names none; before the third it is four times as long.
const BACKOFF: Duration = Duration::from_millis(250);

/// Whether a request that got this status may be made again.
pub(super) fn is_worth_another_try(status: http::StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 429)
}

/// The wait before the try after `tries_made`. `jitter`, 0 to 255, spreads it from half to one and a half, so that
/// many who failed together do not come back together.
pub(super) fn backoff(tries_made: u32, jitter: u8) -> Duration {
    let base = BACKOFF * 4_u32.pow(tries_made.saturating_sub(1));
    base / 2 + base * u32::from(jitter) / u32::from(u8::MAX)
}

/// What the provider asks for by `Retry-After`: seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    read_retry_after(headers, now).map(|wait| wait.min(RETRY_AFTER_BELIEVED_MAX))
}

fn read_retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = rfc2822::parse(value).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, StatusCode};

    use super::*;

    #[track_caller]
    fn check(value: &'static str, expected: Option<u64>) {
        let now = "2026-11-06T08:49:30Z".parse().unwrap();
        let headers =
            HeaderMap::from_iter([(http::header::RETRY_AFTER, HeaderValue::from_static(value))]);
        assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{value}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        check("7", Some(7));
        check("18446744073709551615", Some(24 * 60 * 60));
        check("Fri, 06 Nov 2026 08:49:37 GMT", Some(7));
        check("Fri, 06 Nov 2026 08:00:00 GMT", Some(0));
        check("soon", None);
        check("-1", None);
    }

    #[test]
    fn waits_grow_and_spread() {
        assert_eq!(backoff(1, 0), Duration::from_millis(125));
        assert_eq!(backoff(1, 255), Duration::from_millis(375));
        assert_eq!(backoff(2, 0), Duration::from_millis(500));
    }

    #[test]
    fn only_passing_faults_are_worth_another_try() {
        for (status, worth) in [
            (408, true),
            (429, true),
            (500, true),
            (503, true),
            (400, false),
            (401, false),
            (404, false),
        ] {
            assert_eq!(
                is_worth_another_try(StatusCode::from_u16(status).unwrap()),
                worth,
                "{status}"
            );
        }
    }
}
