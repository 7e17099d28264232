//! The accept loop: sockets in, requests to the router, and a limit on how many there are.
//!
//! It is our own rather than `axum::serve`, which sets no timer, so that hyper's time-out for headers never fires, and
//! which knows no limit on connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// Connections at once. Each generation needs one for its reader; the rest is for everything else.
const CONNECTIONS_MAX: usize = 16_000;

/// How long the headers of a request may take, and how long a connection may wait for its next request.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(30);

/// Headers at most, in number and together in bytes: an access token of 16 KiB and as much again.
const HEADERS_MAX: usize = 64;
const HEADERS_LEN_MAX: usize = 32 << 10;

/// Requests at once on one HTTP/2 connection, and what is held for each if its reader does not read, in bytes.
const H2_STREAMS_MAX: u32 = 100;
const H2_SEND_BUFFER_LEN_MAX: usize = 32 << 10;

/// How long connections may take to end after their last response. A follower's last event is on its way by then.
const CLOSING_TIME: Duration = Duration::from_secs(5);

/// How long to wait after accepting failed, for want of file descriptors usually: trying at once would only spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves connections until `closing`, then lets those that exist finish what they are at.
pub async fn serve(listener: TcpListener, router: Router, closing: CancellationToken) {
    let server = Server {
        protocol: protocol(),
        router,
        connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        tasks: TaskTracker::new(),
    };
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing.cancelled() => break,
        };
        match accepted {
            Ok((socket, _)) => server.take(socket, graceful.watcher()),
            Err(error) => {
                warn!(%error, "accepting a connection failed");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    if timeout(CLOSING_TIME, graceful.shutdown()).await.is_err() {
        warn!("some connections were cut off");
    }
}

struct Server {
    protocol: auto::Builder<TokioExecutor>,
    router: Router,
    connections: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Server {
    fn take(&self, socket: TcpStream, watcher: Watcher) {
        // Tokens are small and must not wait for the next one.
        if let Err(error) = socket.set_nodelay(true) {
            debug!(%error, "setting TCP_NODELAY failed");
        }
        match Arc::clone(&self.connections).try_acquire_owned() {
            Ok(permit) => self.serve(socket, watcher, permit),
            Err(_) => {
                self.tasks.spawn(turn_away(socket));
            }
        }
    }

    fn serve(&self, socket: TcpStream, watcher: Watcher, permit: OwnedSemaphorePermit) {
        let service = TowerToHyperService::new(self.router.clone());
        let connection = self.protocol.serve_connection(TokioIo::new(socket), service).into_owned();
        let connection = watcher.watch(connection);
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                // Readers come and go; that is no fault of anybody's.
                debug!(%error, "a connection broke");
            }
            drop(permit);
        });
    }
}

fn protocol() -> auto::Builder<TokioExecutor> {
    let mut protocol = auto::Builder::new(TokioExecutor::new());
    protocol
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADERS_LEN_MAX);
    protocol
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_send_buf_size(H2_SEND_BUFFER_LEN_MAX)
        .max_header_list_size(HEADERS_LEN_MAX as u32);
    protocol
}

/// Tells one connection too many to come back. It holds no permit, so it gets no time either.
async fn turn_away(mut socket: TcpStream) {
    const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-type: application/json\r\ncontent-length: 88\r\nconnection: close\r\n\r\n{\"error\":{\"code\":\"overloaded\",\"message\":\"Too many connections. Try again in a moment.\"}}";
    let written = async {
        socket.write_all(ANSWER).await?;
        socket.shutdown().await
    };
    let written: Result<io::Result<()>, _> = timeout(Duration::from_secs(1), written).await;
    if !matches!(written, Ok(Ok(()))) {
        debug!("a connection too many did not wait for its answer");
    }
}
