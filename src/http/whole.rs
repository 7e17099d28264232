//! Answers as large as what a user has written: whole stories, messages with all their variants, lists, and streams that are
//! over.
//!
//! Nearly all are small, and many of those are read at once. What they hold has a limit for all, beyond which there is still a
//! little for each user, and one for each. The few that are not small take turns. So their memory has a bound, whatever users
//! have saved and however slowly they read it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use http_body::{Frame, SizeHint};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::shares::{Share, Shares};
use crate::error::{Code, Error};
use crate::id::UserId;
use crate::journal::Log;

/// How long the texts of a small answer are together, in bytes, and how many of those are read at once.
const SMALL_LEN_MAX: u64 = 1 << 20;
const SMALL_MAX: usize = 64;

/// How long the texts of any answer are, in bytes, with what a store counts for each: some five million words. As JSON it is
/// twice that if all of it is quotation marks, and six times if it is control characters.
const LEN_MAX: u64 = 32 << 20;

/// How many large answers are read at once; how many are being sent, and how many of those to one user.
const LARGE_READ_MAX: usize = 2;
const LARGE_SENT_MAX: usize = 8;
const LARGE_SENT_PER_USER_MAX: usize = 2;

/// How many bytes of small answers, lists and streams that are over may be held at once while they are sent, how many
/// of them for one user, and how many of a user's there is always room for: those of two of the longest, or eight usual ones.
const HELD_LEN_MAX: usize = 256 << 20;
const HELD_LEN_PER_USER_MAX: usize = 64 << 20;
const HELD_LEN_LITTLE: usize = 8 << 20;

/// How long a turn is waited for.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take to be sent.
const SENDING_TIMEOUT: Duration = Duration::from_secs(120);

/// A piece of an answer, in bytes.
const PIECE_LEN: usize = 64 << 10;

/// Whose turn it is.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// Large answers that are being sent.
    sending: Shares,
    /// The bytes of all else.
    held: Shares,
}

impl Default for Turns {
    fn default() -> Self {
        let semaphore = |places| Arc::new(Semaphore::new(places));
        Self {
            small: semaphore(SMALL_MAX),
            large: semaphore(LARGE_READ_MAX),
            sending: Shares::new(LARGE_SENT_MAX, LARGE_SENT_PER_USER_MAX, 0),
            held: Shares::new(HELD_LEN_MAX, HELD_LEN_PER_USER_MAX, HELD_LEN_LITTLE),
        }
    }
}

impl Turns {
    /// What `read` returns to the user, as JSON. It is told how long texts may be together, and asked once more, when there is
    /// a turn for a large answer, if it says that they are longer. Nothing is refused that it has done.
    ///
    /// # Errors
    /// Those of `read`; `Overloaded` if no turn comes, or if too much is held for others.
    pub(super) async fn answer<T, F>(
        &self,
        user: UserId,
        status: StatusCode,
        read: impl Fn(u64) -> F,
    ) -> Result<Response, Error>
    where
        T: Serialize + Send + 'static,
        F: Future<Output = Result<T, Error>>,
    {
        let turn = turn_of(&self.small).await?;
        let mut share = self.held.take(user, SMALL_LEN_MAX as usize).ok_or_else(overloaded)?;
        match read(SMALL_LEN_MAX).await {
            Err(error) if error.code() == Code::StoryTooLarge => drop((turn, share)),
            read => {
                let text = encode(&read?)?;
                share.resize_to(text.len());
                return Ok(respond(status, text, share));
            }
        }
        let place = self.sending.take(user, 1).ok_or_else(overloaded)?;
        let turn = turn_of(&self.large).await?;
        let whole = read(LEN_MAX).await?;
        // Too long for a thread that streams. Its turn ends with it.
        let encoding = move || {
            let _turn = turn;
            encode(&whole)
        };
        let text = tokio::task::spawn_blocking(encoding).await.map_err(Error::internal)??;
        Ok(respond(status, text, place))
    }

    /// What `read` returns to the user, as JSON. It sees to its length itself.
    ///
    /// # Errors
    /// Those of `read`; `Overloaded` if too much is held for others.
    pub(super) async fn bounded<T: Serialize>(
        &self,
        user: UserId,
        read: impl Future<Output = Result<T, Error>>,
    ) -> Result<Response, Error> {
        let text = encode(&read.await?)?;
        // The longest of all is longer than a user's share, and must not be refused for ever.
        let len = text.len().min(HELD_LEN_LITTLE);
        let mut share = self.held.take(user, len).ok_or_else(overloaded)?;
        share.resize_to(text.len());
        Ok(respond(StatusCode::OK, text, share))
    }

    /// The log of a stream that is over, as `read` puts it together, and its share of what is held.
    ///
    /// # Errors
    /// Those of `read`; `Overloaded` if too much is held for others.
    pub(super) async fn replay(
        &self,
        user: UserId,
        read: impl Future<Output = Result<Arc<Log>, Error>>,
    ) -> Result<(Arc<Log>, Share), Error> {
        let log = read.await?;
        let share = self.held.take(user, log.text_len()).ok_or_else(overloaded)?;
        Ok((log, share))
    }
}

fn encode<T: Serialize>(answer: &T) -> Result<Vec<u8>, Error> {
    let mut text = serde_json::to_vec(answer).map_err(Error::internal)?;
    text.shrink_to_fit();
    Ok(text)
}

fn respond(status: StatusCode, text: Vec<u8>, share: Share) -> Response {
    let until = Instant::now() + SENDING_TIMEOUT;
    let body = Body::new(Answer { text: text.into(), until, _share: share });
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (status, json, body).into_response()
}

async fn turn_of(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
    let turn = timeout(TURN_TIMEOUT, Arc::clone(places).acquire_owned()).await;
    turn.map_err(|_| overloaded())?.map_err(Error::internal)
}

fn overloaded() -> Error {
    Error::new(Code::Overloaded, "Too much is being read. Try again in a moment.")
}

/// The body of an answer. It has its share until it is sent, or given up.
struct Answer {
    text: Bytes,
    until: Instant,
    _share: Share,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if self.text.is_empty() {
            return Poll::Ready(None);
        }
        // Asked for whenever the piece before has gone.
        if Instant::now() >= self.until {
            return Poll::Ready(Some(Err(std::io::ErrorKind::TimedOut.into())));
        }
        let len = self.text.len().min(PIECE_LEN);
        Poll::Ready(Some(Ok(Frame::data(self.text.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.text.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.text.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;

    use uuid::Uuid;

    use super::*;

    /// What is read of so much text.
    async fn read(len: u64, len_max: u64) -> Result<String, Error> {
        if len > len_max {
            return Err(Error::new(Code::StoryTooLarge, "too large"));
        }
        Ok("x".repeat(usize::try_from(len).unwrap()))
    }

    async fn answer(turns: &Turns, user: u128, len: u64) -> Result<Response, Code> {
        let user = UserId(Uuid::from_u128(user));
        let answer = turns.answer(user, StatusCode::OK, |len_max| read(len, len_max)).await;
        answer.map_err(|error| error.code())
    }

    #[tokio::test]
    async fn what_is_large_is_sent_in_whole_and_says_so() {
        for len in [0, SMALL_LEN_MAX, SMALL_LEN_MAX + 1, 2 * SMALL_LEN_MAX] {
            let response = answer(&Turns::default(), 1, len).await.unwrap();
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
            let body = response.into_body();
            assert_eq!(http_body::Body::size_hint(&body).exact(), Some(len + 2));
            let text = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            assert_eq!(text.len() as u64, len + 2);
        }
        let answered = answer(&Turns::default(), 1, LEN_MAX + 1).await;
        assert_eq!(answered.unwrap_err(), Code::StoryTooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_sent_at_once_and_small_ones_beside_them() {
        const LARGE: u64 = SMALL_LEN_MAX + 1;
        let turns = Turns::default();
        let mut sent = Vec::new();
        for user in 0..LARGE_SENT_MAX / LARGE_SENT_PER_USER_MAX {
            for _ in 0..LARGE_SENT_PER_USER_MAX {
                sent.push(answer(&turns, user as u128, LARGE).await.unwrap());
            }
            assert_eq!(answer(&turns, user as u128, LARGE).await.unwrap_err(), Code::Overloaded);
        }
        assert_eq!(answer(&turns, 100, LARGE).await.unwrap_err(), Code::Overloaded);
        answer(&turns, 100, SMALL_LEN_MAX).await.unwrap();
        sent.pop();
        let mut slow = pin!(answer(&turns, 100, LARGE).await.unwrap().into_body());
        poll_fn(|context| http_body::Body::poll_frame(slow.as_mut(), context))
            .await
            .unwrap()
            .unwrap();
        tokio::time::advance(SENDING_TIMEOUT).await;
        let next = poll_fn(|context| http_body::Body::poll_frame(slow.as_mut(), context)).await;
        assert!(next.unwrap().is_err(), "who takes too long is cut off");
    }

    #[tokio::test]
    async fn as_many_small_ones_are_sent_as_their_text_allows() {
        let turns = Turns::default();
        let mut sent = Vec::new();
        for _ in 0..HELD_LEN_PER_USER_MAX as u64 / SMALL_LEN_MAX {
            sent.push(answer(&turns, 1, SMALL_LEN_MAX - 2).await.unwrap());
        }
        assert_eq!(answer(&turns, 1, 1).await.unwrap_err(), Code::Overloaded);
        answer(&turns, 2, 1).await.unwrap();
        sent.truncate(sent.len() - 2);
        for _ in 0..1_000 {
            sent.push(answer(&turns, 1, 10).await.unwrap());
        }
    }

    #[tokio::test]
    async fn what_is_longer_as_json_counts_as_long_as_it_is() {
        let turns = Turns::default();
        let user = UserId(Uuid::nil());
        let mut sent = Vec::new();
        let answered = loop {
            // Six times as long.
            let read = async { Ok("\u{1}".repeat(1 << 20)) };
            match turns.bounded(user, read).await {
                Ok(response) => sent.push(response),
                Err(error) => break error.code(),
            }
        };
        assert_eq!(answered, Code::Overloaded);
        assert_eq!(sent.len(), HELD_LEN_PER_USER_MAX / ((6 << 20) + 2));
    }

    /// Who is told to try again must not find it done twice.
    #[tokio::test]
    async fn what_has_no_place_is_not_done() {
        let turns = Turns::default();
        let (user, done) = (UserId(Uuid::nil()), Cell::new(0));
        let mut sent = Vec::new();
        for _ in 0..=LARGE_SENT_PER_USER_MAX {
            let write = async |len_max| {
                let written = read(SMALL_LEN_MAX + 1, len_max).await;
                done.set(done.get() + usize::from(written.is_ok()));
                written
            };
            sent.push(turns.answer(user, StatusCode::CREATED, write).await);
        }
        assert!(sent.pop().unwrap().is_err());
        assert_eq!(done.get(), LARGE_SENT_PER_USER_MAX);
    }
}
