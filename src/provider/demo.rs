//! The built-in storyteller: a small story without end at a human pace, so that the relay can be tried with no key and
//! no network. Its turns differ, rerolls too, because each begins at a random place of the same few beginnings.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Batch, Completed, Progress, Request};
use crate::event::Kind;
use crate::id::random_byte;
use crate::text::discreet;

/// The provider's name.
pub(super) const NAME: &str = "demo";

/// The pace of a quick reader: some fourteen words a second.
const WORD_INTERVAL: Duration = Duration::from_millis(70);

/// Sentences of one answer: a few seconds' worth.
const SENTENCES: usize = 4;

const WHO: &[&str] = &[
    "The keeper",
    "Old Maren",
    "A gull with one grey wing",
    "The smuggler's daughter",
    "The lamp itself",
];
const DOES: &[&str] = &[
    "counted the steps down to the water",
    "listened to the fog as if it had a name",
    "found a letter between two stones",
    "lit the lantern an hour too early",
    "whistled three notes that nobody had taught her",
    "followed wet footprints that led only upwards",
];
const WHERE: &[&str] = &[
    "where the tide forgets to turn",
    "beneath the iron stair",
    "on the far side of the bell rock",
    "in the room that is on no plan",
    "at the edge of the light",
];
const AND_THEN: &[&str] = &[
    "and the sea held its breath",
    "and far out a ship answered",
    "but the door was already open",
    "and for once the wind said nothing",
    "though somebody had been there before",
];

/// One answer of the storyteller, as far as it has been told.
pub struct Story {
    text: String,
    told: usize,
    words: u32,
    words_max: u32,
    next_word_at: Instant,
}

discreet!(Story { told, words });

impl Story {
    pub(super) fn new(request: &Request) -> Self {
        // From a random place on in order, so that an answer does not repeat itself.
        let begin = || usize::from(random_byte());
        let (who, does, place, then) = (begin(), begin(), begin(), begin());
        let pick = |from: &[&'static str], at: usize| from[at % from.len()];
        let sentence = |at| {
            let (who, does) = (pick(WHO, who + at), pick(DOES, does + at));
            format!("{who} {does} {}, {}.", pick(WHERE, place + at), pick(AND_THEN, then + at))
        };
        let sentences: Vec<_> = (0..SENTENCES).map(sentence).collect();
        Self {
            text: sentences.join(" "),
            told: 0,
            words: 0,
            words_max: request.max_tokens.unwrap_or(u32::MAX),
            next_word_at: Instant::now() + WORD_INTERVAL,
        }
    }

    /// Tells the next word when it is time for it. A word counts as a token. Cancel safe.
    pub(super) async fn read(&mut self, batch: &mut Batch) -> Progress {
        sleep_until(self.next_word_at).await;
        self.next_word_at += WORD_INTERVAL;
        let rest = &self.text[self.told..];
        if rest.is_empty() {
            return completed("stop");
        }
        if self.words == self.words_max {
            return completed("length");
        }
        let word = rest.split_inclusive(' ').next().unwrap_or(rest);
        batch.push(Kind::Token, word);
        self.told += word.len();
        self.words += 1;
        Progress::More
    }
}

fn completed(finish_reason: &str) -> Progress {
    Progress::Completed(Completed { finish_reason: finish_reason.to_owned(), usage: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn tell(max_tokens: Option<u32>) -> (String, String) {
        let request = Request {
            model: String::new(),
            messages: Vec::new(),
            max_tokens,
            temperature: None,
            reasoning: None,
        };
        let (mut story, mut batch) = (Story::new(&request), Batch::new(false));
        let mut told = String::new();
        loop {
            let progress = story.read(&mut batch).await;
            told.extend(batch.pieces().map(|(_, text)| text));
            batch.clear();
            if let Progress::Completed(completed) = progress {
                return (told, completed.finish_reason);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_a_few_sentences_at_a_readers_pace() {
        let began = Instant::now();
        let (told, finish_reason) = tell(None).await;
        assert_eq!((told.matches('.').count(), finish_reason.as_str()), (SENTENCES, "stop"));
        let words = u32::try_from(told.split(' ').count()).unwrap();
        assert_eq!(began.elapsed(), WORD_INTERVAL * (words + 1));
    }

    #[tokio::test(start_paused = true)]
    async fn max_tokens_is_kept() {
        let (told, finish_reason) = tell(Some(5)).await;
        assert_eq!((told.split_whitespace().count(), finish_reason.as_str()), (5, "length"));
    }
}
