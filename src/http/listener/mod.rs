//! The accept loop: sockets in, requests to the router, and nobody who can tie it up.
//!
//! It is our own rather than `axum::serve`, which sets no timer and knows no limit on connections. What a client may not
//! do is in [`Limits`]: hold a connection without asking for anything, send its request for ever, read nothing, or take
//! the connections of others. A client that does costs itself its connection, or its stream of it, and nobody anything.

mod admission;
mod connection;
mod crowd;
mod events;
mod request_body;
mod response_body;
mod seldom;
mod socket;
mod stream;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, sink};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use admission::Admission;
pub(super) use admission::customer;
use connection::Server;
pub(super) use request_body::Unread;
use seldom::Seldom;

/// Connections at once. Each generation needs one for its reader; the rest is for everything else.
const CONNECTIONS_MAX: usize = 16_000;

/// Connections that may wait to be accepted. The kernel drops more without a word, and whoever was dropped tries again after a
/// second.
const BACKLOG: u32 = 4_096;

/// What all bodies that are being read may hold together, in bytes: a hundred of the longest, tens of thousands of the
/// usual.
const BODIES_LEN_MAX: usize = 512 << 20;

/// Open files for [`CONNECTIONS_MAX`], for as many generations' providers as there can be, and for the database.
const FILES_WANTED: u64 = 30_000;

/// How long connections may take to end after their last response. A follower's last event is on its way by then.
const CLOSING_TIME: Duration = Duration::from_secs(5);

/// How long to wait after accepting failed, for want of file descriptors usually: trying at once would only spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How many connections too many are told so at once, and how long each of them gets to read it. The others are closed
/// without a word: a flood must not become one of tasks.
const TURNED_AWAY_MAX: usize = 256;
const TURNING_AWAY_TIME: Duration = Duration::from_secs(1);

/// Who is at the other end of the connection that a request came by, as each request says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// What a client may do before it costs it its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once. One address may hold as many as it leaves free to others; see `admission.rs`.
    pub connections: usize,
    /// How long a connection may be without a request: silent from the start, sending headers, or between two requests.
    /// An HTTP/2 client that is silent during its requests is asked after as long whether it is there, and must answer
    /// within as long.
    pub idle: Duration,
    /// The same while more than three quarters of the connections are taken.
    pub idle_when_short: Duration,
    /// The same while more than fifteen sixteenths are, for one connection for each that comes.
    pub idle_when_full: Duration,
    /// How long nothing may be taken of what there is to read: by a connection, or by one stream of it.
    pub unread: Duration,
    /// How long a request's body may take, however short it is; every 64 KiB of it add a second.
    pub body: Duration,
    /// What may have come of all bodies that are being read together, in bytes. Their buffers may have twice the room.
    pub bodies_len: usize,
}

impl Default for Limits {
    /// For clients anywhere: phones come back from a tunnel within these times or come back anew, and proxies give up
    /// after as long.
    fn default() -> Self {
        Self {
            connections: CONNECTIONS_MAX,
            idle: Duration::from_secs(30),
            idle_when_short: Duration::from_secs(5),
            // A request that is sent at once is there within half of this from anywhere.
            idle_when_full: Duration::from_secs(1),
            unread: Duration::from_secs(30),
            body: Duration::from_secs(30),
            bodies_len: BODIES_LEN_MAX,
        }
    }
}

impl Limits {
    /// The usual limits, for a process that may have so many files open. A quarter of them is kept for what is no
    /// connection, so that no flood of these keeps answers from their providers and their database.
    #[must_use]
    pub fn within(files: u64) -> Self {
        let connections = usize::try_from(files - files / 4)
            .map_or(CONNECTIONS_MAX, |max| max.min(CONNECTIONS_MAX));
        if files < FILES_WANTED {
            warn!(
                files,
                connections,
                "the limit of open files is low: raise it to {FILES_WANTED} (LimitNOFILE=, or ulimit -Hn) for as many readers and answers as the relay takes"
            );
        }
        Self { connections, ..Self::default() }
    }
}

/// Listens there.
///
/// # Errors
/// What the system says of the address.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // So that a relay that is started again need not wait for connections of the last one to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves connections until `closing`, then lets those that exist finish what they are at.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    closing: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let door = Door {
        admission: Admission::new(limits.connections),
        server: Server::new(router, limits, tasks.clone(), closing.clone()),
        turning_away: Arc::new(Semaphore::new(TURNED_AWAY_MAX)),
        refusals: Seldom::default(),
        tasks: tasks.clone(),
    };
    closing.run_until_cancelled(accept(&listener, door)).await;
    drop(listener);
    tasks.close();
    if timeout(CLOSING_TIME, tasks.wait()).await.is_err() {
        warn!("some connections were cut off");
    }
}

async fn accept(listener: &TcpListener, mut door: Door) {
    let mut failures = Seldom::default();
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => door.take(socket, peer),
            // The client has gone again.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if let Some(times) = failures.tell() {
                    warn!(%error, times, "accepting connections fails");
                }
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Who comes in, and what the others are told.
struct Door {
    admission: Admission,
    server: Server,
    turning_away: Arc<Semaphore>,
    refusals: Seldom,
    tasks: TaskTracker,
}

impl Door {
    fn take(&mut self, socket: TcpStream, peer: SocketAddr) {
        let place = self.admission.admit(peer.ip());
        if self.admission.is_nearly_full() {
            self.server.make_room();
        }
        if let Some(place) = place {
            self.server.serve(socket, Peer(peer.ip()), place);
            return;
        }
        if let Some(times) = self.refusals.tell() {
            let taken = self.admission.taken();
            warn!(%peer, times, taken, "connections are refused: there are too many");
        }
        if let Ok(permit) = Arc::clone(&self.turning_away).try_acquire_owned() {
            self.tasks.spawn(async move {
                if !matches!(timeout(TURNING_AWAY_TIME, turn_away(socket)).await, Ok(Ok(()))) {
                    debug!("a connection too many did not wait for its answer");
                }
                drop(permit);
            });
        }
    }
}

/// What one connection too many is told. It has the headers of every other answer, which a test compares.
const TOO_MANY: &str = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-type: application/json\r\n\
    content-length: 88\r\nconnection: close\r\ncache-control: no-store\r\n\
    content-security-policy: default-src 'none'; frame-ancestors 'none'\r\nreferrer-policy: no-referrer\r\n\
    x-content-type-options: nosniff\r\nx-frame-options: DENY\r\n\r\n\
    {\"error\":{\"code\":\"overloaded\",\"message\":\"Too many connections. Try again in a moment.\"}}";

/// Tells one connection too many to come back.
async fn turn_away(mut socket: TcpStream) -> io::Result<()> {
    socket.write_all(TOO_MANY.as_bytes()).await?;
    socket.shutdown().await?;
    // A socket that is closed with something unread in it is reset, and its answer with it.
    copy(&mut socket.take(64 << 10), &mut sink()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_turned_away_is_told_as_everybody_is() {
        let (head, body) = TOO_MANY.split_once("\r\n\r\n").unwrap();
        for (name, value) in crate::http::security::HEADERS {
            assert!(
                head.lines().any(|line| line == format!("{name}: {value}")),
                "{name} in {head}"
            );
        }
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    }

    #[test]
    fn a_quarter_of_the_files_is_for_what_is_no_connection() {
        assert_eq!(Limits::within(1_024).connections, 768);
        assert_eq!(Limits::within(20_000).connections, 15_000);
        assert_eq!(Limits::within(1 << 20), Limits::default());
        assert_eq!(Limits::within(u64::MAX), Limits::default());
    }
}
