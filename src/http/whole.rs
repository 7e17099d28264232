//! Answers as large as what a user has written: whole stories, and messages with all their variants.
//!
//! Nearly all are small, and many of those are read at once. The few that are not take turns, so that the memory of all has a
//! bound, whatever users have saved and however slowly they read it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
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

/// How long the texts of a small answer are together, in bytes, and how many of those are read at once.
const SMALL_LEN_MAX: u64 = 1 << 20;
const SMALL_MAX: usize = 64;

/// How long the texts of any answer are, in bytes: some ten million words. What is sent is up to twice that.
const LEN_MAX: u64 = 64 << 20;

/// How many large answers are read at once, and how many are being sent.
const LARGE_READ_MAX: usize = 2;
const LARGE_SENT_MAX: usize = 8;

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
    sending: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        let semaphore = |places| Arc::new(Semaphore::new(places));
        Self {
            small: semaphore(SMALL_MAX),
            large: semaphore(LARGE_READ_MAX),
            sending: semaphore(LARGE_SENT_MAX),
        }
    }
}

impl Turns {
    /// What `read` returns, as JSON. It is told how long texts may be together, and asked once more, when there is a turn for
    /// a large answer, if it says that they are longer.
    ///
    /// # Errors
    /// Those of `read`; `Overloaded` if no turn comes.
    pub(super) async fn answer<T: Serialize, F: Future<Output = Result<T, Error>>>(
        &self,
        status: StatusCode,
        read: impl Fn(u64) -> F,
    ) -> Result<Response, Error> {
        let turn = turn(&self.small).await?;
        match read(SMALL_LEN_MAX).await {
            Err(error) if error.code() == Code::StoryTooLarge => drop(turn),
            read => return Ok((status, Json(read?)).into_response()),
        }
        let turn = self::turn(&self.large).await?;
        let text = serde_json::to_vec(&read(LEN_MAX).await?).map_err(Error::internal)?;
        // Who reads slowly keeps others from sending what is large, and not from reading.
        let sending = Arc::clone(&self.sending).try_acquire_owned().map_err(|_| overloaded())?;
        drop(turn);
        let until = Instant::now() + SENDING_TIMEOUT;
        let body = Body::new(Large { text: text.into(), until, _sending: sending });
        let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        Ok((status, json, body).into_response())
    }
}

async fn turn(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
    let turn = timeout(TURN_TIMEOUT, Arc::clone(places).acquire_owned()).await;
    turn.map_err(|_| overloaded())?.map_err(Error::internal)
}

fn overloaded() -> Error {
    Error::new(Code::Overloaded, "Too many long stories are being read. Try again in a moment.")
}

/// A large answer. It has its place until it is sent, or given up.
struct Large {
    text: Bytes,
    until: Instant,
    _sending: OwnedSemaphorePermit,
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
    use std::future::poll_fn;
    use std::pin::pin;

    use super::*;

    /// What is read of so much text.
    async fn read(len: u64, len_max: u64) -> Result<String, Error> {
        if len > len_max {
            return Err(Error::new(Code::StoryTooLarge, "too large"));
        }
        Ok("x".repeat(usize::try_from(len).unwrap()))
    }

    async fn answer(turns: &Turns, len: u64) -> Result<Response, Code> {
        let answer = turns.answer(StatusCode::OK, |len_max| read(len, len_max)).await;
        answer.map_err(|error| error.code())
    }

    #[tokio::test]
    async fn what_is_large_is_sent_in_whole_and_says_so() {
        for len in [0, SMALL_LEN_MAX, SMALL_LEN_MAX + 1, 2 * SMALL_LEN_MAX] {
            let response = answer(&Turns::default(), len).await.unwrap();
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
            let body = response.into_body();
            assert_eq!(http_body::Body::size_hint(&body).exact(), Some(len + 2));
            let text = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            assert_eq!(text.len() as u64, len + 2);
        }
        assert_eq!(answer(&Turns::default(), LEN_MAX + 1).await.unwrap_err(), Code::StoryTooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_sent_at_once_and_small_ones_beside_them() {
        let turns = Turns::default();
        let mut sent = Vec::new();
        for _ in 0..LARGE_SENT_MAX {
            sent.push(answer(&turns, SMALL_LEN_MAX + 1).await.unwrap());
        }
        assert_eq!(answer(&turns, SMALL_LEN_MAX + 1).await.unwrap_err(), Code::Overloaded);
        answer(&turns, SMALL_LEN_MAX).await.unwrap();
        sent.pop();
        let mut slow = pin!(answer(&turns, SMALL_LEN_MAX + 1).await.unwrap().into_body());
        poll_fn(|context| http_body::Body::poll_frame(slow.as_mut(), context))
            .await
            .unwrap()
            .unwrap();
        tokio::time::advance(SENDING_TIMEOUT).await;
        let next =
            poll_fn(|context| http_body::Body::poll_frame(slow.as_mut(), context)).await.unwrap();
        assert!(next.is_err(), "who takes too long is cut off");
    }
}
