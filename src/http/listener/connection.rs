//! One connection: HTTP/1 or HTTP/2 on a socket, for as long as somebody asks for something on it.
//!
//! hyper has a time-out for the headers of HTTP/1 alone, and none for a connection of HTTP/2 that asks for nothing. Here one
//! rule holds for all, from the first byte on: a connection without a request is idle.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::debug;

use super::admission::Place;
use super::crowd::{Crowd, Member};
use super::events::{self, Handover};
use super::request_body::{self, Room};
use super::response_body::ResponseBody;
use super::socket::Socket;
use super::stream::StreamExecutor;
use super::{Limits, Peer};
use crate::beside::Beside;

/// Headers at most, in number and together in bytes: an access token of 16 KiB and as much again.
const HEADERS_MAX: usize = 64;
const HEADERS_LEN_MAX: usize = 32 << 10;

/// Requests at once on one HTTP/2 connection, and what is held for each if its reader does not read, in bytes.
const H2_STREAMS_MAX: u32 = 100;
const H2_SEND_BUFFER_LEN_MAX: usize = 16 << 10;

/// What one HTTP/2 request, and all of a connection together, may send before it is read, in bytes. A body of 4 MiB
/// takes 32 round trips.
const H2_STREAM_WINDOW: u32 = 128 << 10;
const H2_CONNECTION_WINDOW: u32 = 256 << 10;

/// Streams of one connection that were reset and not accepted yet, and those that the relay had to reset for the client's
/// faults: past these the connection is closed (CVE-2023-44487, CVE-2025-8671).
const H2_PENDING_RESETS_MAX: usize = 20;
const H2_FAULTS_MAX: usize = 100;

/// How long an idle connection may take to close once it was told: a request may have been on its way.
const LEAVING_TIME: Duration = Duration::from_secs(5);

/// Serves connections, each in a task.
pub(super) struct Server {
    protocols: Arc<Protocols>,
    router: Router,
    room: Room,
    crowd: Crowd,
    limits: Limits,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Server {
    pub(super) fn new(
        router: Router,
        limits: Limits,
        tasks: TaskTracker,
        closing: CancellationToken,
    ) -> Self {
        let executor = StreamExecutor { tasks: tasks.clone(), patience: limits.unread };
        Self {
            protocols: Arc::new(Protocols::new(executor, limits)),
            router,
            room: Room::new(limits.bodies_len),
            crowd: Crowd::default(),
            limits,
            tasks,
            closing,
        }
    }

    /// Starts to serve a connection, which keeps `place` until it ends.
    pub(super) fn serve(&self, socket: TcpStream, peer: Peer, place: Place) {
        let activity = Arc::new(Activity::new());
        let service = Service {
            router: self.router.clone(),
            peer,
            room: self.room.clone(),
            body_patience: self.limits.body,
            activity: Arc::clone(&activity),
            handover: Handover::default(),
        };
        let member = self.crowd.join(&activity);
        let socket = Socket::new(socket, self.limits.unread);
        let protocols = Arc::clone(&self.protocols);
        let idleness = Idleness { activity, member, place, limits: self.limits };
        // A token of its own, so that connections do not meet at one lock for each of their wake-ups.
        let closing = self.closing.child_token();
        self.tasks.spawn(async move {
            let ended = match run(socket, service, &protocols, &idleness, closing).await {
                Ok(Some((socket, response))) => {
                    events::write(socket, response).await.map_err(Fault::from)
                }
                Ok(None) => Ok(()),
                Err(fault) => Err(fault),
            };
            if let Err(error) = ended {
                // Readers come and go; that is no fault of anybody's.
                debug!(%error, "a connection broke");
            }
        });
    }

    /// Sends a connection away that asks for nothing, if there is one.
    pub(super) fn make_room(&self) {
        self.crowd.send_one_away(self.limits.idle_when_full);
    }
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// How connections are served, by what their clients speak.
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<StreamExecutor>,
}

impl Protocols {
    fn new(executor: StreamExecutor, limits: Limits) -> Self {
        let mut http1 = http1::Builder::new();
        http1.header_read_timeout(None).max_headers(HEADERS_MAX).max_buf_size(HEADERS_LEN_MAX);
        let mut http2 = http2::Builder::new(executor);
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(limits.idle)
            .keep_alive_timeout(limits.idle)
            .max_concurrent_streams(H2_STREAMS_MAX)
            .max_pending_accept_reset_streams(H2_PENDING_RESETS_MAX)
            .max_local_error_reset_streams(H2_FAULTS_MAX)
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_send_buf_size(H2_SEND_BUFFER_LEN_MAX)
            .max_header_list_size(HEADERS_LEN_MAX as u32);
        Self { http1, http2 }
    }

    /// On the heap: a future holds what is moved into it once for each that it is moved through.
    fn serve(&self, is_http2: bool, socket: Socket, service: Service) -> Connection {
        let (io, handover) = (TokioIo::new(socket), service.handover.clone());
        if is_http2 {
            Connection::Http2(Box::new(self.http2.serve_connection(io, service)))
        } else {
            Connection::Http1(Some(Box::new(self.http1.serve_connection(io, service))), handover)
        }
    }
}

/// What hyper serves. Ends with the socket and the response, if that is an event stream which is for others to write.
enum Connection {
    Http1(Option<Box<http1::Connection<TokioIo<Socket>, Service>>>, Handover),
    Http2(Box<http2::Connection<TokioIo<Socket>, Service, StreamExecutor>>),
}

type Rest = Option<(Socket, Response<ResponseBody>)>;

impl Connection {
    fn graceful_shutdown(&mut self) {
        match self {
            Self::Http1(Some(connection), _) => Pin::new(&mut **connection).graceful_shutdown(),
            Self::Http1(None, _) => {}
            Self::Http2(connection) => Pin::new(&mut **connection).graceful_shutdown(),
        }
    }
}

impl Future for Connection {
    type Output = Result<Rest, Fault>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let served = match &mut *self {
            Self::Http2(connection) => Pin::new(connection).poll(context),
            Self::Http1(connection, handover) => {
                let served = connection
                    .as_mut()
                    .map_or(Poll::Ready(Ok(())), |connection| Pin::new(connection).poll(context));
                if served.is_pending()
                    && let Some(response) = handover.take()
                    && let Some(connection) = connection.take()
                {
                    let socket = connection.into_parts().io.into_inner();
                    return Poll::Ready(Ok(Some((socket, response))));
                }
                served
            }
        };
        served.map_ok(|()| None).map_err(Fault::from)
    }
}

/// Serves until the client leaves, or is idle for too long or where others want its place, or the relay closes, or only an
/// event stream is left to write.
async fn run(
    mut socket: Socket,
    service: Service,
    protocols: &Protocols,
    idleness: &Idleness,
    closing: CancellationToken,
) -> Result<Rest, Fault> {
    let mut is_to_end = Beside::new(async {
        tokio::select! {
            biased;
            () = closing.cancelled() => End::Closing,
            () = idleness.member.is_sent_away() => End::Crowded,
            () = idleness.is_over() => End::Idle,
        }
    });
    let is_http2 = tokio::select! {
        biased;
        is_http2 = socket.speaks_http2() => is_http2?,
        _ = &mut is_to_end => return Ok(None),
    };
    let mut connection = protocols.serve(is_http2, socket, service);
    let end = tokio::select! {
        biased;
        served = &mut connection => return served,
        end = &mut is_to_end => end,
    };
    connection.graceful_shutdown();
    let time = match end {
        End::Closing => return connection.await,
        // Somebody waits for the place.
        End::Crowded => Duration::ZERO,
        End::Idle => LEAVING_TIME,
    };
    tokio::select! {
        biased;
        served = &mut connection => served,
        () = idleness.has_left(time) => Ok(None),
    }
}

/// Why a connection is told to end.
#[derive(Debug, Clone, Copy)]
enum End {
    Closing,
    Crowded,
    Idle,
}

/// Whether a connection has been without a request for too long.
struct Idleness {
    activity: Arc<Activity>,
    member: Member,
    place: Place,
    limits: Limits,
}

impl Idleness {
    /// Returns when the connection has been idle for so long that it has to go.
    async fn is_over(&self) {
        let Limits { idle, idle_when_short, .. } = self.limits;
        loop {
            let Some(since) = self.activity.idle_since() else {
                sleep(idle).await;
                continue;
            };
            let patience = if self.place.is_short() { idle_when_short } else { idle };
            if since.elapsed() >= patience {
                return;
            }
            sleep_until((since + patience).min(Instant::now() + idle_when_short)).await;
        }
    }

    /// Returns when a connection that was told to close has had `time` to, and asks for nothing.
    async fn has_left(&self, mut time: Duration) {
        loop {
            sleep(time).await;
            if self.activity.idle_since().is_some() {
                return;
            }
            time = LEAVING_TIME;
        }
    }
}

/// How many requests of a connection are in flight, and since when there is none.
#[derive(Debug)]
pub(super) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    requests: usize,
    idle_since: Instant,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { requests: 0, idle_since: Instant::now() }))
    }

    /// Since when there has been no request; `None` while there is one.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.requests == 0).then_some(state.idle_since)
    }

    /// Nothing under this lock can panic half-way, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request, from when its headers have come until its response has gone.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Activity>);

impl InFlight {
    pub(super) fn begin(activity: &Arc<Activity>) -> Self {
        activity.lock().requests += 1;
        Self(Arc::clone(activity))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.requests -= 1;
        state.idle_since = Instant::now();
    }
}

/// Hands the requests of one connection to the router.
struct Service {
    router: Router,
    peer: Peer,
    room: Room,
    body_patience: Duration,
    activity: Arc<Activity>,
    handover: Handover,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let in_flight = InFlight::begin(&self.activity);
        let handover = Handover::is_for(&request).then(|| self.handover.clone());
        let (parts, incoming) = request.into_parts();
        let (body, receiver) =
            request_body::receive(incoming, self.room.clone(), self.body_patience);
        let mut request = Request::from_parts(parts, Body::new(body));
        request.extensions_mut().insert(self.peer);
        let mut response = Beside::new(self.router.clone().oneshot(request));
        Box::pin(async move {
            let response = poll_fn(|context| {
                loop {
                    if let Poll::Ready(response) = Pin::new(&mut response).poll(context) {
                        return Poll::Ready(response);
                    }
                    ready!(receiver.poll_wake(context));
                }
            });
            let response = response.await?.map(|body| ResponseBody::new(body, in_flight));
            Ok(match handover {
                Some(handover) => handover.pass(response).await,
                None => response,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::middleware::{Next, from_fn};
    use axum::routing::post;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::{JoinSet, yield_now};

    use super::super::{bind, serve};
    use super::*;

    /// Whether all has been read that came from a port of this machine, by the kernel's account.
    fn is_read(from: SocketAddr) -> bool {
        let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
        let from = format!(":{:04X}", from.port());
        let mut rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row[2].ends_with(&from)).expect("no connection");
        row[4].ends_with(":00000000")
    }

    #[tokio::test]
    async fn a_handler_does_not_notice_in_how_many_pieces_a_body_comes() {
        const PIECES: usize = 50;
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&polls);
        let layer = from_fn(move |request, next: Next| {
            let polls = Arc::clone(&counted);
            async move {
                let mut response = pin!(next.run(request));
                poll_fn(|context| {
                    polls.fetch_add(1, Ordering::Relaxed);
                    response.as_mut().poll(context)
                })
                .await
            }
        });
        let router = Router::new().route("/", post(|body: String| async { body })).layer(layer);
        let listener = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, router, Limits::default(), CancellationToken::new()));

        let head = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 6 * PIECES);
        client.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..PIECES {
            client.write_all(b"piece ").await.unwrap();
            // What serves runs on this thread too, so it is between two polls here.
            while !is_read(client.local_addr().unwrap()) {
                yield_now().await;
            }
        }
        let mut answer = String::new();
        while !answer.ends_with(&"piece ".repeat(PIECES)) {
            let mut bytes = [0; 1024];
            let read = client.read(&mut bytes).await.unwrap();
            assert!(read > 0, "{answer}");
            answer.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let polls = polls.load(Ordering::Relaxed);
        assert!(polls <= 3, "{polls}");
    }
}
