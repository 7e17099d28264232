//! Answers as large as what a user has written: whole stories, messages with all their variants, lists, and streams that are
//! over.
//!
//! Nearly all are small, and many of those are read at once. What they hold while they are sent has a limit for all, beyond which
//! there is still a little for each user, and one for each. The few that are not small take turns. So their memory has a bound,
//! whatever users have saved and however slowly they read it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use bytes::Buf;
use http::{HeaderValue, StatusCode, header};
use http_body::{Frame, SizeHint};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::shares::{Share, Shares};
use crate::error::{Code, Error};
use crate::id::UserId;
use crate::journal::{Log, TEXT_LEN_MAX};

/// How long the texts of a small answer are together, in bytes.
pub(super) const SMALL_LEN_MAX: u64 = 1 << 20;

/// How long it is as JSON: twice as long if all of it is quotation marks, six times if it is control characters, and some more.
const SMALL_JSON_LEN_MAX: usize = 8 << 20;

/// How many bytes of what is not large are read at once.
const READ_LEN_MAX: u64 = 128 << 20;

/// How long the texts of any answer are, in bytes, with what a store counts for each: some five million words.
const LEN_MAX: u64 = 32 << 20;

/// How many large answers are read at once; how many are being sent, and how many of those to one user.
const LARGE_READ_MAX: usize = 2;
const LARGE_SENT_MAX: usize = 8;
const LARGE_SENT_PER_USER_MAX: usize = 2;

/// How many bytes of what is not large may be held at once while it is sent, how many of them for one user, and how many of a
/// user's there is always room for.
const HELD_LEN_MAX: usize = 256 << 20;
const HELD_LEN_PER_USER_MAX: usize = 64 << 20;
const HELD_LEN_LITTLE: usize = SMALL_JSON_LEN_MAX;

/// How long a turn is waited for.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long what is held may take to be sent.
pub(super) const SENDING_TIMEOUT: Duration = Duration::from_secs(120);

/// A piece of an answer, in bytes.
const PIECE_LEN: usize = 16 << 10;

/// Whose turn it is.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    /// Kibibytes of what is not large.
    reading: Arc<Semaphore>,
    reading_large: Arc<Semaphore>,
    /// Large answers that are being sent.
    sending_large: Shares,
    /// The bytes of all else that is.
    held: Shares,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            reading: Arc::new(Semaphore::new((READ_LEN_MAX >> 10) as usize)),
            reading_large: Arc::new(Semaphore::new(LARGE_READ_MAX)),
            sending_large: Shares::new(LARGE_SENT_MAX, LARGE_SENT_PER_USER_MAX, 0),
            held: Shares::new(HELD_LEN_MAX, HELD_LEN_PER_USER_MAX, HELD_LEN_LITTLE),
        }
    }
}

impl Turns {
    /// What `read` returns to the user, as JSON, if its texts are no longer together than `len_max`, in bytes, which is up to
    /// `read`.
    ///
    /// # Errors
    /// Those of `read`; `Overloaded` if no turn comes, or if too much is held.
    pub(super) async fn bounded<T: Serialize + Send + 'static>(
        &self,
        user: UserId,
        len_max: u64,
        read: impl Future<Output = Result<T, Error>>,
    ) -> Result<Response, Error> {
        let turn = self.turn(len_max).await?;
        let answer = read.await?;
        let text = if len_max > SMALL_LEN_MAX {
            encode_aside(answer, turn).await?
        } else {
            encode(&answer)?
        };
        // What is longer than a user's share, if there is such a thing, must not be refused for ever.
        let share = self.held(user, text.len().min(HELD_LEN_PER_USER_MAX))?;
        Ok(respond(StatusCode::OK, text, share))
    }

    /// What `read` returns to the user, as JSON. It is told how long texts may be together, and asked once more, when there is
    /// a turn for a large answer, if it says that they are longer.
    ///
    /// # Errors
    /// Those of `read`; `Overloaded` if no turn comes, or if too much is held.
    pub(super) async fn read<T, F>(
        &self,
        user: UserId,
        read: impl Fn(u64) -> F,
    ) -> Result<Response, Error>
    where
        T: Serialize + Send + 'static,
        F: Future<Output = Result<T, Error>>,
    {
        match self.bounded(user, SMALL_LEN_MAX, read(SMALL_LEN_MAX)).await {
            Err(error) if error.code() == Code::StoryTooLarge => {
                self.large(user, StatusCode::OK, read).await
            }
            answered => answered,
        }
    }

    /// The same of what changes something. Nothing is refused that it has done.
    ///
    /// # Errors
    /// Those of `change`; `Overloaded` if no turn comes, or if so much is held that its answer may have no room.
    pub(super) async fn change<T, F>(
        &self,
        user: UserId,
        status: StatusCode,
        change: impl Fn(u64) -> F,
    ) -> Result<Response, Error>
    where
        T: Serialize + Send + 'static,
        F: Future<Output = Result<T, Error>>,
    {
        let turn = self.turn(SMALL_LEN_MAX).await?;
        let mut share = self.held(user, SMALL_JSON_LEN_MAX)?;
        match change(SMALL_LEN_MAX).await {
            Err(error) if error.code() == Code::StoryTooLarge => drop((turn, share)),
            changed => {
                let text = encode(&changed?)?;
                share.shrink_to(text.len());
                return Ok(respond(status, text, share));
            }
        }
        self.large(user, status, change).await
    }

    async fn large<T, F>(
        &self,
        user: UserId,
        status: StatusCode,
        answer: impl Fn(u64) -> F,
    ) -> Result<Response, Error>
    where
        T: Serialize + Send + 'static,
        F: Future<Output = Result<T, Error>>,
    {
        let place = self.sending_large.take(user, 1).ok_or_else(overloaded)?;
        let turn = turn_of(&self.reading_large, 1).await?;
        let text = encode_aside(answer(LEN_MAX).await?, turn).await?;
        Ok(respond(status, text, place))
    }

    /// The log of a stream that is over, as `read` puts it together, and its share of what is held.
    ///
    /// # Errors
    /// Those of `read`; `Overloaded` if no turn comes, or if too much is held.
    pub(super) async fn replay(
        &self,
        user: UserId,
        read: impl Future<Output = Result<Arc<Log>, Error>>,
    ) -> Result<(Arc<Log>, Share), Error> {
        let _turn = self.turn(TEXT_LEN_MAX as u64).await?;
        let log = read.await?;
        let share = self.held(user, log.text_len())?;
        Ok((log, share))
    }

    /// Room for that user.
    pub(super) fn room(&self, user: UserId) -> Room {
        Room { held: self.held.clone(), user }
    }

    /// A turn to read so much.
    async fn turn(&self, len: u64) -> Result<OwnedSemaphorePermit, Error> {
        turn_of(&self.reading, (len.min(READ_LEN_MAX) >> 10) as u32).await
    }

    fn held(&self, user: UserId, len: usize) -> Result<Share, Error> {
        self.held.take(user, len).ok_or_else(overloaded)
    }
}

fn encode(answer: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut text = serde_json::to_vec(answer).map_err(Error::internal)?;
    text.shrink_to_fit();
    Ok(text)
}

/// For what may be too long for a thread that streams. The turn ends with it, whoever waits for it.
async fn encode_aside<T: Serialize + Send + 'static>(
    answer: T,
    turn: OwnedSemaphorePermit,
) -> Result<Vec<u8>, Error> {
    let encoding = move || {
        let _turn = turn;
        encode(&answer)
    };
    tokio::task::spawn_blocking(encoding).await.map_err(Error::internal)?
}

fn respond(status: StatusCode, text: Vec<u8>, share: Share) -> Response {
    let body = Body::new(Answer::new(text, share));
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (status, json, body).into_response()
}

async fn turn_of(places: &Arc<Semaphore>, many: u32) -> Result<OwnedSemaphorePermit, Error> {
    let turn = timeout(TURN_TIMEOUT, Arc::clone(places).acquire_many_owned(many)).await;
    turn.map_err(|_| overloaded())?.map_err(Error::internal)
}

fn overloaded() -> Error {
    Error::new(Code::Overloaded, "Too much is being read. Try again in a moment.")
}

/// Where room is taken for what a user is sent that is not there yet.
#[derive(Debug)]
pub(super) struct Room {
    held: Shares,
    user: UserId,
}

impl Room {
    /// A share of what is held, if there is so much.
    pub(super) fn take(&self, len: usize) -> Option<Share> {
        self.held.take(self.user, len)
    }
}

/// The body of an answer. It has its share until it is sent, or given up.
struct Answer {
    text: Bytes,
    until: Instant,
    _share: Share,
}

impl Answer {
    fn new(text: impl Into<Bytes>, share: Share) -> Self {
        Self { text: text.into(), until: Instant::now() + SENDING_TIMEOUT, _share: share }
    }
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
        // A copy: whoever is to send the last slice of a text would keep all of it, and nobody would count it.
        let len = self.text.len().min(PIECE_LEN);
        let piece = Bytes::copy_from_slice(&self.text[..len]);
        self.text.advance(len);
        Poll::Ready(Some(Ok(Frame::data(piece))))
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
        let answer = turns.read(user, |len_max| read(len, len_max)).await;
        answer.map_err(|error| error.code())
    }

    /// Answers of so much text in control characters, six times as long as JSON, as often as there is room for them.
    async fn escaped(turns: &Turns, user: u128, len: u64) -> (Vec<Response>, Code) {
        let user = UserId(Uuid::from_u128(user));
        let mut sent = Vec::new();
        loop {
            let read = async { Ok("\u{1}".repeat(usize::try_from(len).unwrap())) };
            match turns.bounded(user, len, read).await {
                Ok(response) => sent.push(response),
                Err(error) => return (sent, error.code()),
            }
        }
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
        for len in [SMALL_LEN_MAX, 2 * SMALL_LEN_MAX] {
            let (sent, refused) = escaped(&Turns::default(), 1, len).await;
            assert_eq!(refused, Code::Overloaded);
            assert_eq!(sent.len() as u64, HELD_LEN_PER_USER_MAX as u64 / (6 * len + 2));
        }
    }

    #[tokio::test]
    async fn where_all_is_held_there_is_a_little_for_each() {
        let turns = Turns::default();
        let mut sent = Vec::new();
        for user in 0..=HELD_LEN_MAX / HELD_LEN_PER_USER_MAX {
            sent.push(escaped(&turns, user as u128, SMALL_LEN_MAX).await);
        }
        let little = escaped(&turns, 100, SMALL_LEN_MAX).await.0;
        assert_eq!(little.len(), 1, "no more than there is for each");
        assert!(escaped(&turns, 101, 2 * SMALL_LEN_MAX).await.0.is_empty());
    }

    /// Notes when it is gone.
    struct Held {
        _while_there: Arc<()>,
    }

    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &[0; 4 * PIECE_LEN + 1]
        }
    }

    /// Whoever sends its last piece, or is to, has no share.
    #[tokio::test]
    async fn no_piece_of_an_answer_keeps_all_of_it() {
        let (held, turns) = (Arc::new(()), Turns::default());
        let share = turns.held(UserId(Uuid::nil()), 1).unwrap();
        let mut answer =
            Answer::new(Bytes::from_owner(Held { _while_there: Arc::clone(&held) }), share);
        let mut pieces = Vec::new();
        while let Some(piece) =
            poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut answer), context)).await
        {
            pieces.push(piece.unwrap().into_data().unwrap());
        }
        drop(answer);
        assert_eq!(pieces.concat().len(), 4 * PIECE_LEN + 1);
        assert_eq!(Arc::strong_count(&held), 1);
    }

    /// Who is told to try again must not find it done twice.
    #[tokio::test]
    async fn what_has_no_place_is_not_done() {
        for (len, places) in [
            (SMALL_LEN_MAX, HELD_LEN_PER_USER_MAX / SMALL_LEN_MAX as usize - 7),
            (SMALL_LEN_MAX + 3, LARGE_SENT_PER_USER_MAX),
        ] {
            let turns = Turns::default();
            let (user, done) = (UserId(Uuid::nil()), Cell::new(0));
            let mut sent = Vec::new();
            for _ in 0..=places {
                let write = async |len_max| {
                    let written = read(len - 2, len_max).await;
                    done.set(done.get() + usize::from(written.is_ok()));
                    written
                };
                sent.push(turns.change(user, StatusCode::CREATED, write).await);
            }
            assert!(sent.pop().unwrap().is_err());
            assert_eq!(done.get(), places);
        }
    }
}
