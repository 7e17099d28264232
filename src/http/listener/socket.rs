//! A socket that gives up on a reader who reads nothing.
//!
//! hyper knows no time-out for writing. A reader that leaves what it asked for in the socket would hold its connection,
//! its place in the journal and what waits to be written for as long as it likes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::debug;

use crate::http::timer::Timer;

/// What the kernel keeps of what is not sent yet, in bytes; it would be up to 4 MiB for each reader who reads nothing.
/// What is on its way to a reader is not counted, so it slows nobody.
const UNSENT_LEN_MAX: u32 = 64 << 10;

/// What a client of HTTP/2 sends first (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A TCP connection on which writing fails once nothing could be written for a while.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    stall: Stall,
    /// What was read to see which protocol it is, and is still to be handed over.
    begun: Bytes,
}

impl Socket {
    /// Fails with [`io::ErrorKind::TimedOut`] when it has something to write and none of it is taken for `patience`.
    /// Silence is no fault.
    pub(super) fn new(stream: TcpStream, patience: Duration) -> Self {
        if let Err(error) = set_options(&stream, patience) {
            debug!(%error, "setting a socket's options failed");
        }
        let stall = Stall { patience, since: None, timer: Timer::default() };
        Self { stream, stall, begun: Bytes::new() }
    }

    /// Whether the client speaks HTTP/2. Known with its first bytes as a rule: no request of HTTP/1 begins as those do.
    pub(super) async fn speaks_http2(&mut self) -> io::Result<bool> {
        let mut begun = BytesMut::with_capacity(HTTP2_PREFACE.len());
        let is_http2 = loop {
            let missing = HTTP2_PREFACE.len() - begun.len();
            if missing == 0 {
                break true;
            }
            let read = self.stream.read_buf(&mut (&mut begun).limit(missing)).await?;
            if read == 0 || !HTTP2_PREFACE.starts_with(&begun) {
                break false;
            }
        };
        self.begun = begun.freeze();
        Ok(is_http2)
    }

    /// Whether something was to be written that was not taken.
    pub(super) fn is_stalled(&self) -> bool {
        self.stall.since.is_some()
    }

    /// Fails when the client has closed the connection. What it sends is left where it is; once there is something, its
    /// leaving is noticed by what is written to it.
    pub(super) fn poll_left(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut byte = [0];
        match ready!(self.stream.poll_peek(context, &mut ReadBuf::new(&mut byte)))? {
            0 => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            _ => Poll::Pending,
        }
    }

    /// What became of writing, or that it has taken too long.
    fn written(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stall.since = None;
            return written;
        }
        ready!(self.stall.poll_is_over(context));
        // What is in the socket has been waiting for as long, and would be kept for minutes more.
        if let Err(error) = self.stream.set_zero_linger() {
            debug!(%error, "a socket could not be told to forget what it holds");
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

fn set_options(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    // Tokens are small and must not wait for the next one.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_notsent_lowat(UNSENT_LEN_MAX)?;
    // What was written may wait in the kernel for a reader who is gone without a word, a few pings of 20 bytes for a
    // quarter of an hour; it counts as following until then. Twice the time, for those who are in a tunnel.
    socket.set_tcp_user_timeout(Some(patience * 2))
}

/// Since when nothing could be written.
#[derive(Debug)]
struct Stall {
    patience: Duration,
    since: Option<Instant>,
    timer: Timer,
}

impl Stall {
    fn poll_is_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.timer.poll(since + self.patience, context)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.begun.is_empty() {
            let len = this.begun.len().min(buffer.remaining());
            buffer.put_slice(&this.begun.split_to(len));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.written(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;

    use tokio::net::TcpListener;
    use tokio::task::yield_now;
    use tokio::time::advance;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A socket, and the reader at its other end.
    async fn pair() -> (Socket, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let reader = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        reader.set_nonblocking(true).unwrap();
        (Socket::new(listener.accept().await.unwrap().0, PATIENCE), reader)
    }

    fn write(socket: &mut Socket) -> Poll<io::Result<usize>> {
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(socket).poll_write(&mut context, &[b'x'; 64 << 10])
    }

    /// Writes until nothing more is taken; how much was.
    async fn fill(socket: &mut Socket) -> usize {
        let mut len = 0;
        // Room may become known of a moment later, and with time standing still nobody may wait for it.
        for _ in 0..10_000 {
            while let Poll::Ready(written) = write(socket) {
                len += written.unwrap();
            }
            yield_now().await;
        }
        len
    }

    fn drain(reader: &mut std::net::TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        while io::Read::read(reader, &mut buffer).is_ok() {}
    }

    #[tokio::test(start_paused = true)]
    async fn writing_fails_when_nothing_is_taken_for_that_time() {
        let (mut socket, _reader) = pair().await;
        assert!(fill(&mut socket).await > 0);
        advance(PATIENCE - Duration::from_millis(10)).await;
        assert!(write(&mut socket).is_pending());
        advance(Duration::from_millis(20)).await;
        let Poll::Ready(Err(error)) = write(&mut socket) else { panic!("it goes on waiting") };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_something_has_as_long_again() {
        let (mut socket, mut reader) = pair().await;
        for _ in 0..5 {
            assert!(fill(&mut socket).await > 0);
            advance(PATIENCE - Duration::from_millis(10)).await;
            drain(&mut reader);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_no_fault() {
        let (mut socket, mut reader) = pair().await;
        fill(&mut socket).await;
        drain(&mut reader);
        fill(&mut socket).await;
        drain(&mut reader);
        while !matches!(poll_fn(|_| Poll::Ready(write(&mut socket))).await, Poll::Ready(Ok(_))) {
            yield_now().await;
        }
        advance(10 * PATIENCE).await;
        assert!(matches!(write(&mut socket), Poll::Ready(Ok(_))));
    }
}
