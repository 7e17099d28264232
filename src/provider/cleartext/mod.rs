//! Providers without TLS, over HTTP/1.1 and nothing else: the model server next door.
//!
//! An answer takes as long as a model talks, and a relay has thousands of them open. The library's connection holds 25 KiB
//! for each, most of them empty buffers, and hands every piece over from a task of its own. Here the task that waits for the
//! answer reads its socket, into room that it has only while there is something to read.
//!
//! With TLS it is the library: there, one connection of HTTP/2 is for all.

mod body;
mod framing;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod head;
mod pool;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tracing::trace;
use url::{Host, Url};

pub(super) use body::Body;
pub(super) use head::Head;
use pool::{Idle, Pool};

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
        let mut request = head::encode(url, headers, body.len());
        request.extend_from_slice(body);
        let mut rest = Vec::new();
        let (head, is_read) = exchange(&mut socket, &request, &mut rest).await?;
        let idle = Idle { pool: Arc::clone(&self.pool), place };
        let body = Body::new(socket, rest, &head, Some(idle).filter(|_| is_read))?;
        Ok((head, body))
    }

    async fn connect(&self, url: &Url) -> Result<TcpStream, Fault> {
        let connect = async {
            let port = url.port_or_known_default().unwrap_or(80);
            let socket = match url.host() {
                Some(Host::Ipv4(address)) => TcpStream::connect((address, port)).await,
                Some(Host::Ipv6(address)) => TcpStream::connect((address, port)).await,
                Some(Host::Domain(name)) => {
                    let addresses: Vec<_> = lookup_host((name, port)).await?.collect();
                    TcpStream::connect(addresses.as_slice()).await
                }
                None => Err(io::ErrorKind::InvalidInput.into()),
            }?;
            socket.set_nodelay(true)?;
            Ok(socket)
        };
        let connected = timeout(self.connect_timeout, connect).await;
        connected
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(Fault::NotConnected)
    }
}

/// Writes the request and reads the head of the response; what has been read behind it is in `rest`. Returns, too, whether the
/// whole request was written: who refuses one need not read it to its end.
async fn exchange(
    socket: &mut TcpStream,
    request: &[u8],
    rest: &mut Vec<u8>,
) -> Result<(Head, bool), Fault> {
    let (mut reading, mut writing) = socket.split();
    let mut head = pin!(head::read(&mut reading, rest));
    let written = tokio::select! {
        biased;
        head = &mut head => return Ok((head?, false)),
        written = writing.write_all(request) => written,
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
