//! An event stream on HTTP/1.1, written without hyper.
//!
//! A connection of hyper's holds two buffers of 8 KiB and what it takes to read the next request, for as long as it is open.
//! Most are open for a moment; an event stream is as long as a model talks, and there are thousands. So once its response is
//! known, its socket is taken from hyper, which is dropped. The connection ends with the stream: what a client sends behind
//! its request is never read, and cannot be taken for another one.

use std::future::poll_fn;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use http::{HeaderName, Method, Request, Response, Version, header, response};
use http_body::Body as _;
use jiff::fmt::rfc2822::DateTimePrinter;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink};
use tokio::time::timeout;

use super::response_body::ResponseBody;
use super::socket::Socket;
use crate::clock;

/// What a chunk has beside its data, in bytes: its length, of no more than four digits, and two line ends.
const CHUNK_FRAMING_LEN: usize = 8;

/// How much is read, in bytes, and for how long, of what a client sends behind its request, when its stream is over.
const UNREAD_LEN_MAX: u64 = 64 << 10;
const LINGER_TIME: Duration = Duration::from_secs(1);

/// Where the response of a connection's request is put that hyper is not to write.
#[derive(Debug, Clone, Default)]
pub(super) struct Handover(Arc<Mutex<Option<Response<ResponseBody>>>>);

impl Handover {
    /// Whether the response to such a request may be an event stream that is written here.
    pub(super) fn is_for<B>(request: &Request<B>) -> bool {
        request.version() == Version::HTTP_11 && request.method() != Method::HEAD
    }

    /// Returns a response that is not an event stream. Of one that is, the rest is up to whoever takes it.
    pub(super) async fn pass(&self, response: Response<ResponseBody>) -> Response<ResponseBody> {
        let content_type = response.headers().get(header::CONTENT_TYPE);
        if content_type.is_none_or(|content_type| content_type != "text/event-stream") {
            return response;
        }
        *self.lock() = Some(response);
        std::future::pending().await
    }

    /// The event stream, if there is one now.
    pub(super) fn take(&self) -> Option<Response<ResponseBody>> {
        self.lock().take()
    }

    /// Every change under this lock is one assignment, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Option<Response<ResponseBody>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the response to `socket`, and ends the connection behind it.
///
/// # Errors
/// If the client leaves, or reads nothing for too long.
pub(super) async fn write(mut socket: Socket, response: Response<ResponseBody>) -> io::Result<()> {
    if socket.is_stalled() {
        // Something that came before is not written yet and is lost, and nobody would know where the rest begins.
        return Err(io::Error::other("a client asked for more and did not read what it had"));
    }
    let (head, body) = response.into_parts();
    let mut stream = EventStream { body, unsent: encode_head(&head), is_over: false };
    drop(head);
    poll_fn(|context| stream.poll_write(&mut socket, context)).await?;
    socket.shutdown().await?;
    // A socket that is closed with something unread in it is reset, and the end of the stream with it.
    let unread = async { copy(&mut socket.take(UNREAD_LEN_MAX), &mut sink()).await };
    // Who sends for longer, or does not close the connection, has had the time to read.
    let _closed = timeout(LINGER_TIME, unread).await;
    Ok(())
}

struct EventStream {
    body: ResponseBody,
    /// What is to be written next. It has no room while there is nothing.
    unsent: BytesMut,
    is_over: bool,
}

impl EventStream {
    fn poll_write(
        &mut self,
        socket: &mut Socket,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            while !self.unsent.is_empty() {
                match ready!(Pin::new(&mut *socket).poll_write(context, &self.unsent))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => self.unsent.advance(written),
                }
            }
            if self.is_over {
                return Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.unsent =
                        frame.into_data().map_or_else(|_| BytesMut::new(), |data| chunk(&data));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(io::Error::other(error))),
                Poll::Ready(None) => {
                    self.unsent = BytesMut::from("0\r\n\r\n");
                    self.is_over = true;
                }
                Poll::Pending => {
                    self.unsent = BytesMut::new();
                    return socket.poll_left(context);
                }
            }
        }
    }
}

/// One chunk of the transfer. Of no data there is none: it would be the end.
fn chunk(data: &[u8]) -> BytesMut {
    if data.is_empty() {
        return BytesMut::new();
    }
    let mut chunk = BytesMut::with_capacity(data.len() + CHUNK_FRAMING_LEN);
    // Writing into memory does not fail.
    let _infallible = write!((&mut chunk).writer(), "{:x}\r\n", data.len());
    chunk.put_slice(data);
    chunk.put_slice(b"\r\n");
    chunk
}

fn encode_head(head: &response::Parts) -> BytesMut {
    let mut bytes = BytesMut::from(format!("HTTP/1.1 {}\r\n", head.status).as_bytes());
    let mut put = |name: HeaderName, value: &[u8]| {
        for part in [name.as_str().as_bytes(), b": ", value, b"\r\n"] {
            bytes.put_slice(part);
        }
    };
    for (name, value) in &head.headers {
        put(name.clone(), value.as_bytes());
    }
    // Of a clock that is thousands of years off there is none.
    if let Ok(date) = DateTimePrinter::new().timestamp_to_rfc9110_string(&clock::now()) {
        put(header::DATE, date.as_bytes());
    }
    put(header::TRANSFER_ENCODING, b"chunked");
    put(header::CONNECTION, b"close");
    bytes.put_slice(b"\r\n");
    bytes
}
