//! What must be true of every stream, whatever failed meanwhile.
//!
//! For every stream that was begun there is one variant; its text is a beginning of what the provider sent, and all of it
//! where `done` was sent; and a reader who comes back has put together exactly what is saved.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::client::{Reading, check_ids};
use crate::provider::{Gate, PATIENCE, Script};
use crate::relay::{User, is_settled};

/// What every provider of these tests sends, a word at a time.
pub(crate) const TEXT: &str = "Once upon a time 🦊 there was a lighthouse\nthat nobody had lit for years, until one night it shone.";

/// How much of the text a token has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cut {
    Words,
    /// As little as there can be: a reader may then have a single byte more than is recorded.
    Letters,
}

impl Cut {
    fn tokens(self) -> Vec<&'static str> {
        match self {
            Self::Words => TEXT.split_inclusive(' ').collect(),
            Self::Letters => TEXT.split("").filter(|letter| !letter.is_empty()).collect(),
        }
    }
}

/// All of the text, told in about that much time, and what it cost, so that an end is not held up by counting.
pub(crate) fn telling(cut: Cut, time: Duration) -> Script {
    let tokens = cut.tokens();
    let pause = time / u32::try_from(tokens.len()).unwrap();
    let script =
        tokens.into_iter().fold(Script::new(), |script, token| script.token(token).pause(pause));
    script.finish("stop").usage(9, 21).done()
}

/// The first word, and the others when the gate is opened.
pub(crate) fn gated(gate: &Gate) -> Script {
    let (first, rest) = TEXT.split_at(5);
    Script::new().token(first).gate(gate).token(rest).finish("stop").done()
}

/// A stream, as far as its reader came before the relay was gone.
pub(crate) struct Told {
    pub(crate) stream_id: String,
    answer: Answer,
}

enum Answer {
    /// None: the relay was gone before.
    Lost,
    /// It was refused, and nothing of it may be there.
    Refused,
    Begun(Box<Reading>),
}

/// Asks, and reads until the end, or until the relay is gone.
pub(crate) async fn tell(user: User, story: i64, stream_id: String) -> Told {
    tell_and_count(user, story, stream_id, watch::Sender::default()).await
}

/// As [`tell`], and counts the bytes of text that are read, and one more for the end.
pub(crate) async fn tell_and_count(
    user: User,
    story: i64,
    stream_id: String,
    count: watch::Sender<usize>,
) -> Told {
    let body = json!({"conversation_id": story, "input": "Go on.", "stream_id": stream_id});
    let request = user.request(http::Method::POST, "/v1/stream").body(body.to_string());
    let Ok(response) = request.send().await else {
        return Told { stream_id, answer: Answer::Lost };
    };
    let answer = match response.status().as_u16() {
        200 => {
            let mut reading = Reading::new(response);
            while let Some(event) = reading.next_if_whole().await {
                let len = match event.name.as_str() {
                    "token" => event.data.len(),
                    _ => usize::from(event.is_end()),
                };
                count.send_modify(|count| *count += len);
            }
            Answer::Begun(Box::new(reading))
        }
        // A relay that ends because of a fault of its own promises nothing.
        500 => Answer::Lost,
        503 => Answer::Refused,
        status => panic!("{stream_id}: {status}"),
    };
    Told { stream_id, answer }
}

/// How streams ended, counted.
#[derive(Debug, Default)]
pub(crate) struct Endings(BTreeMap<String, usize>);

impl Endings {
    pub(crate) fn count(&mut self, ending: String) {
        *self.0.entry(ending).or_default() += 1;
    }

    pub(crate) fn of(&self, ending: &str) -> usize {
        self.0.get(ending).copied().unwrap_or(0)
    }
}

/// Holds a stream to the oracle, once the relay runs again. Returns how it ended: as its status says, or `none` if it
/// never began.
pub(crate) async fn check(user: &User, story: i64, told: Told) -> String {
    let Told { stream_id, answer } = told;
    let Some(saved) = settled(user, &stream_id).await else {
        if let Answer::Begun(reading) = answer {
            assert!(reading.seen.is_empty(), "{stream_id} had begun and is gone");
        }
        return "none".to_owned();
    };
    assert!(!matches!(answer, Answer::Refused), "{stream_id} was refused: {saved}");
    let content = saved["content"].as_str().unwrap();
    assert!(TEXT.starts_with(content), "{stream_id}: {content:?}");
    let tree = user.tree(story).await;
    let variants = tree.to_string().matches(&format!("\"stream_id\":\"{stream_id}\"")).count();
    assert_eq!(variants, 1, "{stream_id}");
    let status = saved["status"].as_str().unwrap().to_owned();
    if status == "complete" {
        assert_eq!(content, TEXT, "{stream_id}");
    }
    let reading = match answer {
        Answer::Begun(reading) => match reading.seen.last().filter(|event| event.is_end()) {
            Some(end) if end.name == "done" => {
                assert_eq!((status.as_str(), reading.text().as_str()), ("complete", TEXT));
                return status;
            }
            // Where the text of an error is safe it says so; a relay that cannot save it says that.
            Some(end) if end.json()["saved"] == true => *reading,
            Some(_) => return status,
            None => {
                let mut more =
                    user.follow(&stream_id, reading.seen.last().and_then(|event| event.id)).await;
                more.end().await;
                more.seen = [reading.seen, more.seen].concat();
                check_ids(&more.seen);
                more
            }
        },
        Answer::Lost | Answer::Refused => {
            let mut whole = user.follow(&stream_id, None).await;
            whole.end().await;
            whole
        }
    };
    assert_eq!(reading.text(), content, "{stream_id}: {:?}", reading.seen);
    status
}

/// What is saved of the stream, once nobody writes it any more.
async fn settled(user: &User, stream_id: &str) -> Option<Value> {
    let since = Instant::now();
    loop {
        let answer = user.get(&format!("/v1/message-by-stream-id?stream_id={stream_id}")).await;
        match answer.status {
            404 => return None,
            200 if is_settled(&answer.json) => return Some(answer.json),
            _ => assert!(since.elapsed() < PATIENCE, "not settled: {:?}", answer.json),
        }
        sleep(Duration::from_millis(10)).await;
    }
}
