//! A token that carries the time at which it was sent, by the clock that the kernel notes arrivals by.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// How long such a token is, in bytes: a mark, and seven digits of six bits for the microseconds.
pub(crate) const LEN: usize = 8;

const MARK: u8 = b'@';
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const TIMES: u64 = 1 << 42;

/// Microseconds of the machine's clock.
pub(crate) fn now() -> u64 {
    // There is such a clock on every system that this runs on.
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |now| micros(now.into()))
}

/// The same of a time since the epoch.
pub(crate) fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

/// The token of that time.
pub(crate) fn token(time: u64) -> [u8; LEN] {
    let mut token = [MARK; LEN];
    for (at, digit) in token[1..].iter_mut().enumerate() {
        *digit = DIGITS[(time >> (6 * at) & 63) as usize];
    }
    token
}

/// Finds tokens in a text that comes in pieces.
#[derive(Debug, Default)]
pub(crate) struct Finder {
    /// The beginning of a token whose end has not come.
    begun: Vec<u8>,
}

impl Finder {
    /// Hands over how long ago each token in `bytes` was sent, in microseconds.
    pub(crate) fn find(&mut self, mut bytes: &[u8], now: u64, mut on_token: impl FnMut(u64)) {
        if !self.begun.is_empty() {
            let missing = (LEN - self.begun.len()).min(bytes.len());
            self.begun.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.begun.len() < LEN {
                return;
            }
            on_token(age(&self.begun, now));
            self.begun.clear();
        }
        while let Some(at) = memchr::memchr(MARK, bytes) {
            bytes = &bytes[at..];
            if bytes.len() < LEN {
                self.begun.extend_from_slice(bytes);
                return;
            }
            on_token(age(&bytes[..LEN], now));
            bytes = &bytes[LEN..];
        }
    }
}

fn age(token: &[u8], now: u64) -> u64 {
    let digit = |digit: &u8| match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'-' => 62,
        _ => 63,
    };
    let time =
        token[1..].iter().rev().fold(0, |time: u64, byte| time << 6 | u64::from(digit(byte)));
    (now % TIMES).wrapping_sub(time) % TIMES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_however_they_are_cut() {
        let mut text = Vec::new();
        for time in [5, 1 << 40, 77] {
            text.extend_from_slice(b"data: ");
            text.extend_from_slice(&token(time));
        }
        for cut in 1..text.len() {
            let (mut finder, mut ages) = (Finder::default(), Vec::new());
            for piece in text.chunks(cut) {
                finder.find(piece, (1 << 40) + 100, |age| ages.push(age));
            }
            assert_eq!(ages, [(1 << 40) + 95, 100, (1 << 40) + 23]);
        }
    }
}
