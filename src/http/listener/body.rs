//! The bodies of requests and of responses, watched as they come and go.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep_until};

use super::connection::InFlight;
use super::stream;

/// How much of a body earns it another second, in bytes: half a megabit a second, which is a poor phone.
const LEN_PER_SECOND: u64 = 64 << 10;

/// How much of a response goes out at once, in bytes; the rest of a long one stays here, where it is dropped with its
/// stream, and does not pile up in hyper.
const PIECE_LEN_MAX: usize = 16 << 10;

/// Room for the bodies that are being read.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    /// Room for so many bytes of them.
    pub(super) fn new(len: usize) -> Self {
        Self(Arc::new(Semaphore::new(len)))
    }
}

/// Why a body could not be read to its end.
#[derive(Debug)]
pub(in crate::http) enum Unread {
    /// It took too long.
    TooSlow,
    /// There is no room for it beside the others.
    NoRoom,
    /// The client broke it off, or it is no proper body.
    Broken(hyper::Error),
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSlow => f.write_str("the body comes too slowly"),
            Self::NoRoom => f.write_str("there is no room for more bodies"),
            Self::Broken(error) => error.fmt(f),
        }
    }
}

impl StdError for Unread {}

/// The body of a request, which must come within a time.
#[derive(Debug)]
pub(super) struct RequestBody {
    incoming: Incoming,
    room: Room,
    received: usize,
    patience: Duration,
    /// When it was first asked for: only then does the client's time begin.
    began: Option<Instant>,
    /// Made when the body is first waited for, and set again only when it fires.
    timer: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, room: Room, patience: Duration) -> Self {
        Self { incoming, room, received: 0, patience, began: None, timer: None }
    }

    fn poll_is_late(&mut self, context: &mut Context<'_>) -> bool {
        let earned = Duration::from_secs(self.received as u64 / LEN_PER_SECOND);
        let due = *self.began.get_or_insert_with(Instant::now) + self.patience + earned;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        while timer.as_mut().poll(context).is_ready() {
            if due <= Instant::now() {
                return true;
            }
            timer.as_mut().reset(due);
        }
        false
    }

    /// Whether there is room for what has come.
    fn holds(&mut self, frame: &Frame<Bytes>) -> bool {
        let len = frame.data_ref().map_or(0, Bytes::len);
        let permit = u32::try_from(len).ok().and_then(|len| self.room.0.try_acquire_many(len).ok());
        let Some(permit) = permit else { return false };
        permit.forget();
        self.received += len;
        true
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.room.0.add_permits(self.received);
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Unread;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Unread>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.incoming).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) if this.holds(&frame) => Poll::Ready(Some(Ok(frame))),
            Poll::Ready(Some(Ok(_))) => Poll::Ready(Some(Err(Unread::NoRoom))),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Unread::Broken(error)))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if this.poll_is_late(context) => Poll::Ready(Some(Err(Unread::TooSlow))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// The body of a response, in pieces that are not too long. Its request is in flight as long as it exists.
#[derive(Debug)]
pub(super) struct ResponseBody {
    body: Body,
    rest: Bytes,
    _in_flight: InFlight,
}

impl ResponseBody {
    pub(super) fn new(body: Body, in_flight: InFlight) -> Self {
        Self { body, rest: Bytes::new(), _in_flight: in_flight }
    }

    fn poll_piece(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            let polled = Pin::new(&mut self.body).poll_frame(context);
            let Poll::Ready(Some(Ok(frame))) = polled else { return polled };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE_LEN_MAX));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = self.get_mut().poll_piece(context);
        stream::note(polled.is_ready());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        let mut with_rest = SizeHint::new();
        with_rest.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            with_rest.set_upper(upper + rest);
        }
        with_rest
    }
}
