//! Answers as large as what a user has written: whole stories, and messages with all their variants.
//!
//! Nearly all are small, and many of those are read at once. The few that are not take turns, so that their memory has a
//! bound, whatever users have saved and however slowly they read it. How many small ones are being sent is bounded by users'
//! requests and connections alone.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use http_body::{Frame, SizeHint};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::error::{Code, Error};
use crate::id::UserId;

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

/// How long a turn is waited for.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a large answer may take to be sent.
const SENDING_TIMEOUT: Duration = Duration::from_secs(120);

/// A piece of a large answer, in bytes.
const PIECE_LEN: usize = 64 << 10;

/// Whose turn it is.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    sending: Arc<Mutex<Sending>>,
}

/// To whom large answers are being sent, and how many.
type Sending = HashMap<UserId, usize>;

/// A place among what is being sent.
#[derive(Debug)]
struct Place {
    user: UserId,
    sending: Arc<Mutex<Sending>>,
}

impl Place {
    fn take(user: UserId, sending: &Arc<Mutex<Sending>>) -> Option<Self> {
        let mut sent = lock(sending);
        let all: usize = sent.values().sum();
        let own = sent.entry(user).or_default();
        if all >= LARGE_SENT_MAX || *own >= LARGE_SENT_PER_USER_MAX {
            sent.retain(|_, own| *own > 0);
            return None;
        }
        *own += 1;
        Some(Self { user, sending: Arc::clone(sending) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sent = lock(&self.sending);
        if let Some(own) = sent.get_mut(&self.user) {
            *own -= 1;
        }
        sent.retain(|_, own| *own > 0);
    }
}

fn lock(sending: &Mutex<Sending>) -> MutexGuard<'_, Sending> {
    // Numbers, whatever a panic leaves.
    sending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Turns {
    fn default() -> Self {
        let semaphore = |places| Arc::new(Semaphore::new(places));
        Self {
            small: semaphore(SMALL_MAX),
            large: semaphore(LARGE_READ_MAX),
            sending: Arc::default(),
        }
    }
}

impl Turns {
    /// What `read` returns to the user, as JSON. It is told how long texts may be together, and asked once more, when there is
    /// a turn for a large answer, if it says that they are longer. Nothing is refused that it has done.
    ///
    /// # Errors
    /// Those of `read`; `Overloaded` if no turn comes.
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
        match read(SMALL_LEN_MAX).await {
            Err(error) if error.code() == Code::StoryTooLarge => drop(turn),
            read => return Ok((status, Json(read?)).into_response()),
        }
        let place = Place::take(user, &self.sending).ok_or_else(overloaded)?;
        let turn = turn_of(&self.large).await?;
        let whole = read(LEN_MAX).await?;
        // Too long for a thread that streams. Its turn ends with it.
        let encode = move || {
            let _turn = turn;
            serde_json::to_vec(&whole).map_err(Error::internal)
        };
        let text = tokio::task::spawn_blocking(encode).await.map_err(Error::internal)??;
        let until = Instant::now() + SENDING_TIMEOUT;
        let body = Body::new(Large { text: text.into(), until, _place: place });
        let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        Ok((status, json, body).into_response())
    }
}

async fn turn_of(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
    let turn = timeout(TURN_TIMEOUT, Arc::clone(places).acquire_owned()).await;
    turn.map_err(|_| overloaded())?.map_err(Error::internal)
}

fn overloaded() -> Error {
    Error::new(Code::Overloaded, "Too many stories are being read. Try again in a moment.")
}

/// A large answer. It has its place until it is sent, or given up.
struct Large {
    text: Bytes,
    until: Instant,
    _place: Place,
}

impl http_body::Body for Large {
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
        drop(sent);
        assert!(lock(&turns.sending).len() == 1, "who has nothing sent is forgotten");
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
