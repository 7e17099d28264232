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
use super::whole::SENDING_TIMEOUT;
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

/// The events of `log` after `after`, as a response. With a share, which it has as long as the log, it is broken off
/// after [`SENDING_TIMEOUT`], wherever it is.
pub(super) fn respond(log: &Arc<Log>, after: Option<Cursor>, share: Option<Share>) -> Response {
    let events = EventStream::new(Follower::new(log, after), share);
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
    silent_since: Instant,
    ping: Timer,
    /// Its share of what is held for those who follow what is over, and until when it may have it.
    share: Option<(Share, Instant)>,
}

impl EventStream {
    fn new(follower: Follower, share: Option<Share>) -> Self {
        let now = Instant::now();
        Self {
            follower,
            frame: BytesMut::new(),
            silent_since: now,
            ping: Timer::default(),
            share: share.map(|share| (share, now + SENDING_TIMEOUT)),
        }
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
        // Whoever is so slow comes again, and goes on from there.
        if this.share.as_ref().is_some_and(|(_, until)| *until <= Instant::now()) {
            return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
        }
        let mut is_over = false;
        while this.frame.len() < FRAME_LEN_MAX && !is_over {
            let frame = &mut this.frame;
            match this.follower.poll(context, |after, view| encode(frame, after.id(), &view)) {
                Poll::Ready(has_event) => is_over = !has_event,
                Poll::Pending => break,
            }
        }
        if this.frame.is_empty() {
            if is_over {
                return Poll::Ready(None);
            }
            ready!(this.ping.poll(this.silent_since + PING_INTERVAL, context));
            this.frame.put_slice(b"event: ping\ndata: \n\n");
        }
        this.silent_since = Instant::now();
        let piece = if this.frame.len() <= FRAME_LEN_MAX {
            // All of it: room that is kept for the next event is room that every open stream holds.
            std::mem::take(&mut this.frame).freeze()
        } else {
            let piece = Bytes::copy_from_slice(&this.frame[..FRAME_LEN_MAX]);
            this.frame.advance(FRAME_LEN_MAX);
            piece
        };
        Poll::Ready(Some(Ok(Frame::data(piece))))
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
        let mut stream = EventStream::new(Follower::new(writer.log(), None), None);
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
            let whole = EventStream::new(Follower::new(&log, after), None);
            let whole = axum::body::to_bytes(Body::new(whole), usize::MAX).await.unwrap();
            let share = Shares::new(1, 1, 0).take(log.owner(), 1);
            let mut stream = EventStream::new(Follower::new(&log, after), share);
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
}
