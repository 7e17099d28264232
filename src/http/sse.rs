//! The native event stream: a follower of a log, written as server-sent events.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, header};
use http_body::Frame;
use serde::Serialize;
use tokio::time::Instant;

use super::shares::Share;
use super::timer::Timer;
use super::whole::{Room, SENDING_TIMEOUT};
use crate::event::{Cursor, End, Failed};
use crate::id::{MessageId, StreamId};
use crate::journal::{Follower, Log, View};

/// The header that names the stream.
pub(super) const X_STREAM_ID: HeaderName = HeaderName::from_static("x-stream-id");

/// The header in which a client names the last event that it has.
pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// After so much silence a `ping` tells client and proxies that the stream is alive; proxies give up after 30 s at
/// the earliest.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// How much is written in one go, in bytes, before it must have gone out: what a slow reader costs.
const FRAME_LEN_MAX: usize = 16 << 10;

/// What an event of one line has beside its text, in bytes, if its id is no longer than most.
const TEXT_FRAMING_LEN: usize = 40;

/// How long what is to be written may be, in bytes, and not count: an event of text of the longest, with its line ends.
const UNCOUNTED_LEN_MAX: usize = 128 << 10;

/// The events of `log` from its first, as a response.
pub(super) fn respond(log: &Arc<Log>) -> Response {
    response(log, EventStream::new(Follower::new(log, None)))
}

/// The events of `log` after `after`, as a response. What repeats a long text takes its share of `room` while it is sent, and
/// the stream is broken off if there is none, or after [`SENDING_TIMEOUT`]. So it is, wherever it is then, with a share of its
/// own, which it has as long as the log.
pub(super) fn resume(
    log: &Arc<Log>,
    after: Option<Cursor>,
    room: Room,
    share: Option<Share>,
) -> Response {
    let log_share = share.map(Lent::new);
    let counted = Counted { room, log_share, frame_share: None };
    let follower = Follower::new(log, after);
    response(log, EventStream { counted: Some(Box::new(counted)), ..EventStream::new(follower) })
}

fn response(log: &Log, events: EventStream) -> Response {
    let mut response = Response::new(Body::new(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // nginx and what descends from it would hold events back.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    if let Ok(stream_id) = HeaderValue::from_str(log.stream_id().as_str()) {
        headers.insert(X_STREAM_ID, stream_id);
    }
    response
}

/// A body that is written as its follower gets events, and no faster than its socket takes them.
struct EventStream {
    follower: Follower,
    frame: BytesMut,
    /// Whether something of the frame has been sent.
    is_cut: bool,
    silent_since: Instant,
    ping: Timer,
    /// Absent where there is nothing to repeat.
    counted: Option<Box<Counted>>,
}

/// What is held for the reader alone.
struct Counted {
    room: Room,
    /// For a log that nobody else has.
    log_share: Option<Lent>,
    /// For a frame that is long.
    frame_share: Option<Lent>,
}

/// A share, until when it may be had.
struct Lent {
    _share: Share,
    until: Instant,
}

impl Lent {
    fn new(share: Share) -> Self {
        Self { _share: share, until: Instant::now() + SENDING_TIMEOUT }
    }
}

impl Counted {
    /// Whether a frame of that length may be held now.
    fn holds(&mut self, frame_len: usize) -> io::Result<()> {
        if frame_len > UNCOUNTED_LEN_MAX && self.frame_share.is_none() {
            let share = self.room.take(frame_len);
            self.frame_share = Some(Lent::new(share.ok_or(io::ErrorKind::OutOfMemory)?));
        }
        // Whoever is so slow comes again, and goes on from there.
        let mut lent = self.log_share.iter().chain(&self.frame_share);
        if lent.any(|lent| lent.until <= Instant::now()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl EventStream {
    fn new(follower: Follower) -> Self {
        Self {
            follower,
            frame: BytesMut::new(),
            is_cut: false,
            silent_since: Instant::now(),
            ping: Timer::default(),
            counted: None,
        }
    }

    /// As much of the frame as is written in one go.
    fn piece(&mut self) -> Bytes {
        if self.frame.len() <= FRAME_LEN_MAX && !self.is_cut {
            // All of it: room that is kept for the next event is room that every open stream holds.
            return std::mem::take(&mut self.frame).freeze();
        }
        // Copies: whoever is to send the last slice of a frame would keep all of it, and nobody would count it.
        let len = self.frame.len().min(FRAME_LEN_MAX);
        let piece = Bytes::copy_from_slice(&self.frame[..len]);
        self.frame.advance(len);
        self.is_cut = !self.frame.is_empty();
        if !self.is_cut {
            self.frame = BytesMut::new();
            if let Some(counted) = &mut self.counted {
                counted.frame_share = None;
            }
        }
        piece
    }
}

impl http_body::Body for EventStream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let mut is_over = false;
        // Behind a long frame nothing is put: it is to come to its end, and to give its room back.
        while !this.is_cut && this.frame.len() < FRAME_LEN_MAX && !is_over {
            let frame = &mut this.frame;
            match this.follower.poll(context, |after, view| encode(frame, after.id(), &view)) {
                Poll::Ready(has_event) => is_over = !has_event,
                Poll::Pending => break,
            }
        }
        if let Some(counted) = &mut this.counted
            && let Err(error) = counted.holds(this.frame.len())
        {
            return Poll::Ready(Some(Err(error)));
        }
        if this.frame.is_empty() {
            if is_over {
                return Poll::Ready(None);
            }
            ready!(this.ping.poll(this.silent_since + PING_INTERVAL, context));
            this.frame.put_slice(b"event: ping\ndata: \n\n");
        }
        this.silent_since = Instant::now();
        Poll::Ready(Some(Ok(Frame::data(this.piece()))))
    }
}

/// Appends one event to `frame`. Text goes as it is, line by line; it holds no carriage return, which would end a line too.
pub fn encode(frame: &mut BytesMut, id: u64, view: &View<'_>) {
    match view {
        View::Start(start) => encode_json(frame, id, "start", start),
        View::Text(kind, text) => {
            frame.reserve(text.len() + TEXT_FRAMING_LEN);
            begin(frame, id, kind.as_str());
            for line in text.split('\n') {
                frame.put_slice(b"data: ");
                frame.put_slice(line.as_bytes());
                frame.put_u8(b'\n');
            }
            frame.put_u8(b'\n');
        }
        View::Sync { content, reasoning } => {
            encode_json(frame, id, "sync", &Sync { content, reasoning });
        }
        View::End(End::Done(done)) => encode_json(frame, id, "done", done),
        View::End(End::Failed(failed)) => {
            encode_json(frame, id, "error", &WireFailed::from(failed));
        }
    }
}

fn begin(frame: &mut BytesMut, id: u64, name: &str) {
    // Writing into memory does not fail.
    let _infallible = write!(frame.writer(), "id: {id}\nevent: {name}\n");
}

fn encode_json(frame: &mut BytesMut, id: u64, name: &str, value: &impl Serialize) {
    begin(frame, id, name);
    frame.put_slice(b"data: ");
    // JSON of strings and numbers into memory does not fail, and has no line breaks.
    let _infallible = serde_json::to_writer(frame.writer(), value);
    frame.put_slice(b"\n\n");
}

#[derive(Serialize)]
struct Sync<'a> {
    content: &'a str,
    reasoning: &'a str,
}

#[derive(Serialize)]
struct WireFailed<'a> {
    error: &'a str,
    code: &'a str,
    stream_id: &'a StreamId,
    message_id: Option<MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    saved: Option<bool>,
    retryable: bool,
}

impl<'a> From<&'a Failed> for WireFailed<'a> {
    fn from(failed: &'a Failed) -> Self {
        Self {
            error: &failed.failure.message,
            code: &failed.failure.code,
            stream_id: &failed.stream_id,
            message_id: failed.message_id,
            saved: failed.saved,
            retryable: failed.failure.retryable,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body::Body as _;

    use super::*;
    use crate::event::{Kind, Start};
    use crate::http::shares::Shares;
    use crate::http::whole::Turns;
    use crate::journal::memory::MemoryJournal;
    use crate::journal::{Claim, Ended, Journal, Opening};

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let mut frame = BytesMut::new();
        encode(&mut frame, 7, &View::Text(Kind::Token, text));
        assert_eq!(std::str::from_utf8(&frame).unwrap(), expected);
    }

    #[test]
    fn text_is_written_line_by_line_and_cannot_end_its_event() {
        check("once", "id: 7\nevent: token\ndata: once\n\n");
        check(" two\nlines", "id: 7\nevent: token\ndata:  two\ndata: lines\n\n");
        check("\n", "id: 7\nevent: token\ndata: \ndata: \n\n");
        check(
            "x\n\nevent: done\n",
            "id: 7\nevent: token\ndata: x\ndata: \ndata: event: done\ndata: \n\n",
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_broken_by_a_ping_every_fifteen_seconds() {
        let claim = MemoryJournal::default().claim(Opening::for_tests()).await;
        let Ok(Claim::New(writer)) = claim else { panic!("a new name is taken") };
        let began = Instant::now();
        let mut stream = EventStream::new(Follower::new(writer.log(), None));
        let mut next = async || {
            let frame = poll_fn(|context| Pin::new(&mut stream).poll_frame(context)).await;
            (began.elapsed().as_secs(), frame.unwrap().unwrap().into_data().unwrap())
        };
        assert_eq!(next().await, (15, Bytes::from_static(b"event: ping\ndata: \n\n")));
        assert_eq!(next().await, (30, Bytes::from_static(b"event: ping\ndata: \n\n")));
        tokio::time::advance(Duration::from_secs(10)).await;
        writer.open(Start::for_tests());
        assert!(next().await.1.starts_with(b"id: 1\nevent: start\n"));
        assert_eq!(next().await.0, 55, "fifteen seconds after the last event");
    }
    #[tokio::test(start_paused = true)]
    async fn what_is_over_is_sent_in_pieces_and_broken_off_where_it_takes_too_long() {
        let ended = Ended {
            start: Start::for_tests(),
            reasoning: String::new(),
            content: "once ".repeat(100_000),
            end: End::for_tests(),
        };
        let log = Log::rebuilt(Opening::for_tests(), ended);
        // All of it in one event, because there is none that had this number.
        for after in [None, Some(Cursor::from_id(999_999))] {
            let whole = EventStream::new(Follower::new(&log, after));
            let whole = axum::body::to_bytes(Body::new(whole), usize::MAX).await.unwrap();
            let share = Shares::new(1, 1, 0).take(log.owner(), 1).unwrap();
            let room = Turns::default().room(log.owner());
            let counted = Counted { room, log_share: Some(Lent::new(share)), frame_share: None };
            let mut stream = EventStream::new(Follower::new(&log, after));
            stream.counted = Some(Box::new(counted));
            let mut next =
                async || poll_fn(|context| Pin::new(&mut stream).poll_frame(context)).await;
            let mut sent = BytesMut::new();
            while sent.len() < whole.len() / 2 {
                let piece = next().await.unwrap().unwrap().into_data().unwrap();
                assert!(piece.len() <= FRAME_LEN_MAX);
                sent.extend_from_slice(&piece);
            }
            assert!(whole.starts_with(&sent));
            tokio::time::advance(SENDING_TIMEOUT).await;
            assert_eq!(next().await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
    }

    #[tokio::test]
    async fn what_repeats_a_long_text_counts_while_it_is_sent() {
        let ended = Ended {
            start: Start::for_tests(),
            reasoning: String::new(),
            content: "once ".repeat(500_000),
            end: End::for_tests(),
        };
        let log = Log::rebuilt(Opening::for_tests(), ended);
        let turns = Turns::default();
        let resume =
            || resume(&log, Some(Cursor::from_id(9_999_999)), turns.room(log.owner()), None);
        let first = async || {
            let mut body = resume().into_body();
            let piece = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await.unwrap();
            piece.map(|_| body)
        };
        let mut reading = Vec::new();
        let refused = loop {
            match first().await {
                Ok(body) => reading.push(body),
                Err(refused) => break refused,
            }
        };
        assert_eq!(reading.len(), (64 << 20) / 2_500_100, "{refused}");
        let body = reading.pop().unwrap();
        let rest = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        assert!(rest.ends_with(b"\n\n"));
        assert!(first().await.is_ok());
    }
}
