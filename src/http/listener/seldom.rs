//! What happens a thousand times a second is told once in a while: a log must not be flooded by whoever floods the relay.

use std::time::Duration;

use tokio::time::Instant;

/// How long is kept silent after something was told.
const INTERVAL: Duration = Duration::from_secs(10);

/// Counts what happens between two times that it is told.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    told_at: Option<Instant>,
    times: u64,
}

impl Seldom {
    /// Notes that it has happened. If it is time to tell so: how many times since it was told last.
    pub(super) fn tell(&mut self) -> Option<u64> {
        self.times += 1;
        if self.told_at.is_some_and(|told_at| told_at.elapsed() < INTERVAL) {
            return None;
        }
        self.told_at = Some(Instant::now());
        Some(std::mem::take(&mut self.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_is_told_at_once_and_the_others_together() {
        let mut seldom = Seldom::default();
        assert_eq!(seldom.tell(), Some(1));
        for _ in 0..1_000 {
            assert_eq!(seldom.tell(), None);
        }
        tokio::time::advance(INTERVAL).await;
        assert_eq!(seldom.tell(), Some(1_001));
        assert_eq!(seldom.tell(), None);
    }
}
