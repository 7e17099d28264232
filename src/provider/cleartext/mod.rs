//! Providers without TLS, over HTTP/1.1 and nothing else: the model server next door.
//!
//! An answer takes as long as a model talks, and a relay has thousands of them open. The library's connection holds 25 KiB
//! for each, most of them empty buffers, and hands every piece over from a task of its own. Here the task that waits for the
//! answer reads its socket, into room that it has only while there is something to read.
//!
//! With TLS it is the library: there, one connection of HTTP/2 is for all. So it is for addresses that users typed, and for
//! checking an operator's key.

mod body;
mod framing;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod head;
mod pool;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::HeaderMap;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::trace;
use url::{Host, Url};

pub(super) use body::Body;
pub(super) use head::Head;
use pool::{Idle, Pool};

/// How long nothing comes before the other end is asked whether it is there, and between such questions; how many may go
/// unanswered, and how long what was sent may. As the library has it.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_TRIES: u32 = 3;
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(30);

/// What went wrong on the way to a provider and back.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("no connection: {0}")]
    NotConnected(io::Error),
    #[error("the connection broke off: {0}")]
    Broken(#[from] io::Error),
    #[error("it is no HTTP/1.1: {0}")]
    Malformed(&'static str),
}

/// Connections to such providers.
#[derive(Debug)]
pub(super) struct Cleartext {
    pool: Arc<Pool>,
    connect_timeout: Duration,
}

impl Cleartext {
    /// `connect_timeout` is for looking the name up and connecting together.
    pub(super) fn new(connect_timeout: Duration) -> Self {
        Self { pool: Arc::default(), connect_timeout }
    }

    /// Posts `body`, on a connection that was used before if there is one. When it returns, the provider has answered.
    /// Dropped, it closes the connection.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(super) async fn post(
        &self,
        url: &Url,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<(Head, Body), Fault> {
        let place = url.origin().ascii_serialization();
        let waiting = self.pool.take(&place);
        trace!(to = place, is_new = waiting.is_none(), "asks on a connection");
        let mut socket = match waiting {
            Some(socket) => socket,
            None => self.connect(url).await?,
        };
        let request = Bytes::from(head::encode(url, headers, body.len())).chain(body.clone());
        let mut rest = Vec::new();
        let (head, is_read) = exchange(&mut socket, request, &mut rest).await?;
        let idle = Idle { pool: Arc::clone(&self.pool), place };
        let body = Body::new(socket, rest, &head, Some(idle).filter(|_| is_read))?;
        Ok((head, body))
    }

    async fn connect(&self, url: &Url) -> Result<TcpStream, Fault> {
        let until = Instant::now() + self.connect_timeout;
        let connected = timeout_at(until, connect(url, until)).await;
        connected
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(Fault::NotConnected)
    }
}

/// Connects to the first address of the host that can be connected to. Each has its part of the time: one that is silent, of
/// a family that the network does not have, say, leaves some to the next.
async fn connect(url: &Url, until: Instant) -> io::Result<TcpStream> {
    let port = url.port_or_known_default().unwrap_or(80);
    let addresses: Vec<SocketAddr> = match url.host() {
        Some(Host::Ipv4(address)) => vec![(address, port).into()],
        Some(Host::Ipv6(address)) => vec![(address, port).into()],
        Some(Host::Domain(name)) => lookup_host((name, port)).await?.collect(),
        None => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for (left, address) in (1..=addresses.len()).rev().zip(addresses) {
        let part =
            until.saturating_duration_since(Instant::now()) / u32::try_from(left).unwrap_or(1);
        match timeout(part, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return prepare(socket),
            Ok(Err(error)) => failed = error,
            Err(_) => failed = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed)
}

/// Without delay, and given up if the other end is gone without a word.
fn prepare(socket: TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    let tcp = SockRef::from(&socket);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    tcp.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_TRIES))?;
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT))?;
    Ok(socket)
}

/// Writes the request and reads the head of the response; what has been read behind it is in `rest`. Returns, too, whether the
/// whole request was written: who refuses one need not read it to its end.
async fn exchange(
    socket: &mut TcpStream,
    mut request: impl Buf,
    rest: &mut Vec<u8>,
) -> Result<(Head, bool), Fault> {
    let (mut reading, mut writing) = socket.split();
    let mut head = pin!(head::read(&mut reading, rest));
    let written = tokio::select! {
        biased;
        head = &mut head => {
            let head = head?;
            // Who answers before it has read all wants the rest all the same.
            let is_written = head.status.is_success() && writing.write_all_buf(&mut request).await.is_ok();
            return Ok((head, is_written));
        }
        written = writing.write_all_buf(&mut request) => written,
    };
    match (head.await, written) {
        // What was said before the connection broke is worth more than that it did.
        (Ok(head), written) => Ok((head, written.is_ok())),
        (Err(_), Err(error)) => Err(error.into()),
        (Err(fault), Ok(())) => Err(fault),
    }
}

#[cfg(test)]
mod tests;
