//! Nobody ties the relay up: who holds a connection and asks for nothing, sends for ever, reads nothing or takes all the
//! room there is costs himself his connection, and others nothing.
//!
//! Times are short here, which only a relay in the test's own process has; it listens on a real socket all the same. Where
//! a test waits for something not to happen, it waits several times as long as it would take.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use serde_json::json;
use storytellr_relay::config::{Config, Mode};
use storytellr_relay::http::Proxies;
use storytellr_relay::http::listener::{self, Limits};
use storytellr_relay::{app, http as face};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::provider::{Gate, PATIENCE, Provider, Script};
use crate::relay::{Answer, ISSUER, PROVIDER_KEY, SECRET, TestRelay, User};

/// A time that is over soon.
const SOON: Duration = Duration::from_millis(300);

/// A time in which a reader that reads has read something, however busy the machine is.
const A_WHILE: Duration = Duration::from_secs(5);

/// Limits that no test reaches.
const FAR: Limits = Limits {
    connections: 10_000,
    idle: Duration::from_secs(3_600),
    idle_when_short: Duration::from_secs(3_600),
    idle_when_full: Duration::from_secs(3_600),
    unread: Duration::from_secs(3_600),
    body: Duration::from_secs(3_600),
    bodies_len: 1 << 30,
};

/// A relay in this process.
struct Here {
    address: SocketAddr,
    closing: CancellationToken,
    served: JoinHandle<()>,
}

impl Here {
    async fn start(provider: &Provider, limits: Limits) -> Self {
        let settings = [
            ("RELAY_DATA", "memory".to_owned()),
            ("RELAY_RATE_LIMIT", "1000000/min".to_owned()),
            ("RELAY_MAX_STREAMS_PER_USER", "10000".to_owned()),
            ("SUPABASE_JWT_SECRET", SECRET.to_owned()),
            ("RELAY_JWT_ISSUERS", ISSUER.to_owned()),
            ("RELAY_PROVIDERS", format!("scripted={}", provider.base_url())),
            ("SCRIPTED_API_KEY", PROVIDER_KEY.to_owned()),
        ];
        let setting = |name: &str| {
            settings.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
        };
        let config = Config::from_env(Mode::Serve, setting).unwrap();
        let origins = config.origins.clone();
        let router = face::router(app::build(config).await.unwrap(), origins, Proxies::default());
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let closing = CancellationToken::new();
        let served = tokio::spawn(listener::serve(socket, router, limits, closing.clone()));
        Self { address, closing, served }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// A connection on which that was sent.
    async fn sent(&self, bytes: &[u8]) -> TcpStream {
        let mut socket = self.connect().await;
        socket.write_all(bytes).await.unwrap();
        socket
    }

    /// A user with a bot, whose client is that one.
    async fn user_with(&self, client: reqwest::ClientBuilder) -> User {
        let user = User::of_relay_at(self.address, client.no_proxy().build().unwrap());
        user.bot(json!({})).await;
        user
    }

    async fn user(&self) -> User {
        self.user_with(reqwest::Client::builder()).await
    }

    async fn finish(self) {
        self.closing.cancel();
        timeout(PATIENCE, self.served).await.expect("it does not close").unwrap();
    }
}

/// What comes until the relay closes the connection.
async fn until_closed(mut socket: TcpStream) -> String {
    let mut bytes = Vec::new();
    let closed = timeout(PATIENCE, socket.read_to_end(&mut bytes)).await;
    // A connection may be reset, which closes it too.
    let _ended = closed.expect("the relay does not close the connection");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads on until the connection has brought that.
async fn until(socket: &mut TcpStream, word: &str) {
    let mut bytes = Vec::new();
    while !String::from_utf8_lossy(&bytes).contains(word) {
        let read = timeout(PATIENCE, socket.read_buf(&mut bytes)).await;
        assert!(read.expect("nothing more comes").unwrap() > 0, "the relay has closed");
    }
}

fn get(user: &User, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n", user.token)
        .into_bytes()
}

/// Text that no socket holds.
fn long_text() -> String {
    (0..300_000).map(|at| format!("{at:09}\n")).collect()
}

/// The beginning of an answer of that text.
fn chunks(text: &str) -> Script {
    let chunks = text.as_bytes().chunks(10_000).map(|chunk| std::str::from_utf8(chunk).unwrap());
    chunks.fold(Script::new(), Script::token)
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

#[tokio::test]
async fn a_connection_that_asks_for_nothing_is_closed() {
    let provider = Provider::start().await;
    let here = Here::start(&provider, Limits { idle: SOON, ..FAR }).await;
    let connections = [
        here.connect().await,
        here.sent(b"P").await,
        here.sent(&PREFACE[..20]).await,
        here.sent(b"GET /healthz HT").await,
        here.sent(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ").await,
        here.sent(PREFACE).await,
        here.sent(&[PREFACE, EMPTY_SETTINGS].concat()).await,
    ];
    for answer in join_all(connections.map(until_closed)).await {
        assert!(!answer.contains("HTTP/1.1 200"), "{answer}");
    }
    let mut kept = here.sent(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    until(&mut kept, "ok\n").await;
    assert_eq!(until_closed(kept).await, "");
    here.finish().await;
}

#[tokio::test]
async fn headers_that_come_byte_by_byte_come_too_slowly() {
    let provider = Provider::start().await;
    let here = Here::start(&provider, Limits { idle: SOON, ..FAR }).await;
    let (mut reader, mut writer) = here.connect().await.into_split();
    let sent = async {
        writer.write_all(b"GET /healthz HTTP/1.1\r\n").await?;
        loop {
            writer.write_all(b"x: y\r\n").await?;
            sleep(SOON / 10).await;
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        sent = sent => { let _broken: Result<(), std::io::Error> = sent; }
        read = timeout(PATIENCE, reader.read_to_end(&mut answer)) => drop(read.unwrap()),
    }
    assert_eq!(answer, b"");
    here.finish().await;
}

#[tokio::test]
async fn a_stream_that_is_merely_silent_goes_on() {
    let limits = Limits { idle: SOON, unread: SOON, body: SOON, ..FAR };
    for client in [reqwest::Client::builder(), reqwest::Client::builder().http2_prior_knowledge()] {
        let provider = Provider::start().await;
        let gate = Gate::new();
        provider.once(Script::new().token("Once").gate(&gate).token(" upon").finish("stop").done());
        let here = Here::start(&provider, limits).await;
        let user = here.user_with(client).await;
        let mut reading = user.stream(json!({"input": "Go."})).await;
        reading.until("token").await;
        sleep(4 * SOON).await;
        gate.open();
        reading.done().await;
        assert_eq!(reading.text(), "Once upon");
        here.finish().await;
    }
}

/// The head of a request whose body has that length.
fn post(user: &User, len: usize) -> String {
    let token = &user.token;
    format!(
        "POST /v1/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {len}\r\n\r\n"
    )
}

#[tokio::test]
async fn an_event_stream_is_the_last_answer_of_its_connection() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["Once", " upon"]));
    let here = Here::start(&provider, FAR).await;
    let user = here.user().await;
    let body = json!({"input": "Go.", "stream_id": "told"}).to_string();
    let mut requests = format!("{}{body}", post(&user, body.len())).into_bytes();
    requests.extend(get(&user, "/healthz"));
    let answer = until_closed(here.sent(&requests).await).await;
    let (head, events) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for field in [
        "content-type: text/event-stream",
        "x-stream-id: told",
        "transfer-encoding: chunked",
        "connection: close",
    ] {
        assert!(head.lines().any(|line| line == field), "{field}: {head}");
    }
    let date = head.lines().find_map(|line| line.strip_prefix("date: ")).expect("no date");
    assert!(date.ends_with(" GMT"), "{date}");
    assert!(events.contains("event: done\n"), "{events}");
    assert!(events.ends_with("\r\n0\r\n\r\n"), "{events}");
    assert!(!events.contains("HTTP/1.1"), "what came behind the request was not asked: {events}");

    // What hyper goes on writing itself: no chunks for who knows of none, and no body where none was asked for.
    let token = &user.token;
    let fields = format!("host: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n");
    let old = format!("GET /v1/streams/told HTTP/1.0\r\n{fields}");
    let answer = until_closed(here.sent(old.as_bytes()).await).await;
    assert!(answer.contains("event: done\n") && answer.ends_with("\n\n"), "{answer}");
    assert!(!answer.contains("transfer-encoding"), "{answer}");
    let head = format!("HEAD /v1/streams/told HTTP/1.1\r\n{fields}");
    let answer = until_closed(here.sent(head.as_bytes()).await).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(!answer.contains("event: "), "{answer}");
    here.finish().await;
}

/// What is unread when a socket is closed resets the connection, and a reset can take the end of the stream with it.
#[tokio::test]
async fn a_client_that_says_more_gets_the_end_of_its_stream_all_the_same() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.always(Script::new().token("Once").gate(&gate).finish("stop").done());
    let here = Here::start(&provider, FAR).await;
    let user = here.user().await;
    let body = json!({"input": "Go."}).to_string();
    let mut socket = here.sent(format!("{}{body}", post(&user, body.len())).as_bytes()).await;
    until(&mut socket, "Once").await;
    socket.write_all(&get(&user, "/healthz")).await.unwrap();
    gate.open();
    let mut rest = Vec::new();
    let read = timeout(PATIENCE, socket.read_to_end(&mut rest)).await.expect("it is not closed");
    read.expect("the connection was reset");
    assert!(String::from_utf8_lossy(&rest).ends_with("\r\n0\r\n\r\n"));
    here.finish().await;
}

#[tokio::test]
async fn a_client_is_understood_however_its_first_bytes_come() {
    let provider = Provider::start().await;
    let here = Here::start(&provider, FAR).await;
    let user = here.user().await;
    let posted = post(&user, 0).into_bytes();
    let preface = [PREFACE, EMPTY_SETTINGS].concat();
    for (sent, answer) in [(&posted, &b"HTTP/1.1 "[..]), (&preface, b"\0\0")] {
        for cut in [1, 2, 10] {
            let mut socket = here.sent(&sent[..cut]).await;
            sleep(SOON / 10).await;
            socket.write_all(&sent[cut..]).await.unwrap();
            let mut bytes = vec![0; answer.len()];
            let read = timeout(PATIENCE, socket.read_exact(&mut bytes)).await;
            read.expect("there is no answer").unwrap();
            assert_eq!(bytes, answer, "cut at {cut}");
        }
    }
    here.finish().await;
}

/// A body of a bit over that length.
fn padded(len: usize) -> String {
    json!({"input": "Go.", "padding": "x".repeat(len)}).to_string()
}

#[tokio::test]
async fn a_body_that_comes_byte_by_byte_comes_too_slowly() {
    let provider = Provider::start().await;
    let here = Here::start(&provider, Limits { body: SOON, ..FAR }).await;
    let user = here.user().await;
    let (mut reader, mut writer) = here.sent(post(&user, 100_000).as_bytes()).await.into_split();
    let dripping = tokio::spawn(async move {
        while writer.write_all(b" ").await.is_ok() {
            sleep(SOON / 10).await;
        }
    });
    let mut answer = Vec::new();
    // It is closed with something unread in it, so it may be reset behind its answer.
    let _ended =
        timeout(PATIENCE, reader.read_to_end(&mut answer)).await.expect("it is not closed");
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"code\":\"request_timeout\""), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    dripping.await.unwrap();
    assert!(provider.requests().is_empty());
    here.finish().await;
}

/// A body that is never ready twice in a row.
struct Pieces {
    left: Vec<u8>,
    is_ready: bool,
}

impl http_body::Body for Pieces {
    type Data = bytes::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, std::io::Error>>> {
        self.is_ready = !self.is_ready;
        if self.is_ready {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let len = self.left.len().min(7);
        let piece = bytes::Bytes::from_iter(self.left.drain(..len));
        Poll::Ready((len > 0).then(|| Ok(http_body::Frame::data(piece))))
    }
}

#[tokio::test]
async fn a_body_in_many_pieces_is_read_to_its_end() {
    for client in [reqwest::Client::builder(), reqwest::Client::builder().http2_prior_knowledge()] {
        let provider = Provider::start().await;
        provider.once(Script::telling(&["fine"]));
        let here = Here::start(&provider, FAR).await;
        let user = here.user_with(client).await;
        let pieces = Pieces { left: padded(100_000).into(), is_ready: false };
        let sent =
            user.request(Method::POST, "/v1/stream").body(reqwest::Body::wrap(pieces)).send();
        let answer = timeout(PATIENCE, sent).await.expect("it is not read").unwrap();
        assert_eq!(answer.status(), 200);
        let text = timeout(PATIENCE, answer.text()).await.unwrap().unwrap();
        assert!(text.contains("event: done"), "{text}");
        here.finish().await;
    }
}

#[tokio::test]
async fn a_long_body_that_keeps_coming_earns_its_time() {
    let provider = Provider::start().await;
    provider.once(Script::telling(&["fine"]));
    let here = Here::start(&provider, Limits { body: SOON, ..FAR }).await;
    let user = here.user().await;
    let body = padded(1 << 20);
    let mut socket = here.sent(post(&user, body.len()).as_bytes()).await;
    let (first, last) = body.as_bytes().split_at(body.len() - 1);
    socket.write_all(first).await.unwrap();
    // By now it has earned sixteen seconds.
    sleep(4 * SOON).await;
    socket.write_all(last).await.unwrap();
    until(&mut socket, "event: ").await;
    here.finish().await;
}

#[tokio::test]
async fn bodies_that_find_no_room_are_told_to_come_back() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let here = Here::start(&provider, Limits { bodies_len: 1 << 20, ..FAR }).await;
    let user = here.user().await;
    let mut slow = here.sent(post(&user, 700 << 10).as_bytes()).await;
    slow.write_all(&vec![b' '; 600 << 10]).await.unwrap();
    // So much is left of it that it finds no room for its last bytes.
    let body = padded(430 << 10);
    let send = || user.request(Method::POST, "/v1/stream").body(body.clone()).send();
    let since = Instant::now();
    // What is sent first need not have come first.
    let refused = loop {
        let response = send().await.unwrap();
        if response.status() != 200 {
            break Answer::of(response).await;
        }
        assert!(since.elapsed() < PATIENCE, "there is room for everything");
    };
    refused.refused(503, "overloaded");
    assert_eq!(refused.headers["retry-after"], "5");
    drop(slow);
    while send().await.unwrap().status() != 200 {
        assert!(since.elapsed() < PATIENCE, "no room is given back");
    }
    here.finish().await;
}

/// A reader on HTTP/1 that asks for a stream and reads nothing, ever.
async fn reads_nothing(address: SocketAddr, user: &User, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut socket = socket.connect(address).await.unwrap();
    socket.write_all(&get(user, path)).await.unwrap();
    socket
}

/// Returns when the relay has broken the connection off, without reading anything of it.
async fn dropped(socket: &TcpStream) {
    timeout(Duration::from_secs(60), socket.ready(Interest::ERROR))
        .await
        .expect("the reader is not dropped")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_reads_nothing_is_dropped_and_changes_nothing_else() {
    let provider = Provider::start().await;
    let text = long_text();
    let gate = Gate::new();
    let (first, last) = text.split_at(text.len() - 10);
    provider.once(chunks(first).gate(&gate).token(last).finish("stop").done());
    let here = Here::start(&provider, Limits { unread: A_WHILE, ..FAR }).await;
    let user = here.user().await;
    let story = user.conversation().await;
    let body = json!({"conversation_id": story, "input": "Go.", "stream_id": "long"});
    let mut other = user.stream(body).await;
    let stuck = reads_nothing(here.address, &user, "/v1/streams/long").await;
    let other = tokio::spawn(async move {
        other.done().await;
        other
    });
    dropped(&stuck).await;

    gate.open();
    let other = other.await.unwrap();
    assert!(other.text() == text, "another reader has all of it");
    let mut back = user.follow("long", other.seen[1].id).await;
    back.done().await;
    assert!(other.seen[1].data.clone() + &back.text() == text, "it can come back and go on");
    here.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_one_stream_of_a_connection_that_reads_nothing_is_dropped_alone() {
    let provider = Provider::start().await;
    let text = long_text();
    provider.once(chunks(&text).finish("stop").done());
    let gate = Gate::new();
    provider.once(Script::new().token("Once").gate(&gate).token(" upon").finish("stop").done());
    let here = Here::start(&provider, Limits { unread: A_WHILE, ..FAR }).await;
    // One connection; what is not read of a stream holds back that stream alone.
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .http2_initial_stream_window_size(64 << 10)
        .http2_initial_connection_window_size(16 << 20);
    let user = here.user_with(client).await;
    let long = json!({"input": "Go.", "stream_id": "long"}).to_string();
    let request = user.request(Method::POST, "/v1/stream").body(long);
    let mut stuck = request.send().await.unwrap();
    provider.asked(1).await;
    let mut other = user.stream(json!({"input": "Go."})).await;
    other.until("token").await;
    // Another connection reads all of it meanwhile: from then on the first reader is behind.
    let mut quick = user.elsewhere().follow("long", None).await;
    quick.done().await;
    assert!(quick.text() == text);
    sleep(2 * A_WHILE).await;

    let mut read = 0;
    let is_broken = loop {
        match timeout(PATIENCE, stuck.chunk()).await.expect("it is not dropped") {
            Ok(Some(bytes)) => read += bytes.len(),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(is_broken && read < text.len(), "{read} bytes were read of the stream");
    gate.open();
    other.done().await;
    assert_eq!(other.text(), "Once upon");
    here.finish().await;
}

#[tokio::test]
async fn a_client_that_does_not_answer_whether_it_is_there_is_closed() {
    let provider = Provider::start().await;
    provider.always(Script::new().repeat(b": still there\n\n", SOON / 10));
    let here = Here::start(&provider, Limits { idle: SOON, ..FAR }).await;
    let user = here.user().await;
    // A request that is answered for minutes, in literal headers without an index, and then not a word.
    let mut headers = Vec::new();
    let token = format!("Bearer {}", user.token);
    let body = json!({"input": "Go."}).to_string();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/v1/stream"),
        (":authority", "x"),
        ("authorization", token.as_str()),
    ] {
        headers.push(0);
        headers.push(u8::try_from(name.len()).unwrap());
        headers.extend_from_slice(name.as_bytes());
        headers.extend_from_slice(&string_len(value.len()));
        headers.extend_from_slice(value.as_bytes());
    }
    let request = [PREFACE, EMPTY_SETTINGS, &frame(1, 4, &headers), &frame(0, 1, body.as_bytes())];
    let socket = here.sent(&request.concat()).await;
    assert!(until_closed(socket).await.contains("event: start"));
    here.finish().await;
}

/// A frame of stream 1.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}

/// The length of a string, as RFC 7541 section 5.1 has it.
fn string_len(len: usize) -> Vec<u8> {
    let Some(mut rest) = len.checked_sub(127) else { return vec![u8::try_from(len).unwrap()] };
    let mut bytes = vec![127];
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

#[tokio::test]
async fn one_connection_too_many_is_told_to_come_back() {
    let provider = Provider::start().await;
    let here = Here::start(&provider, Limits { connections: 8, ..FAR }).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut socket = here.sent(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        until(&mut socket, "ok\n").await;
        held.push(socket);
    }
    let refused = here.sent(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let answer = until_closed(refused).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains("retry-after: 5"), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["error"]["code"], "overloaded");

    drop(held.pop());
    let since = Instant::now();
    loop {
        let again =
            here.sent(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        if until_closed(again).await.starts_with("HTTP/1.1 200 ") {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "no place is given back");
    }
    here.finish().await;
}

#[tokio::test]
async fn where_places_are_short_nobody_keeps_one_for_nothing() {
    let provider = Provider::start().await;
    let limits = Limits { connections: 8, idle_when_short: SOON, ..FAR };
    let here = Here::start(&provider, limits).await;
    let mut few = Vec::new();
    for _ in 0..4 {
        few.push(here.connect().await);
    }
    sleep(4 * SOON).await;
    for socket in &few {
        let read = socket.try_read(&mut [0; 1]);
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
    let more = [here.connect().await, here.connect().await, here.connect().await];
    let closed: Vec<_> = few.into_iter().chain(more).map(until_closed).collect();
    let (first, _, _) = futures_util::future::select_all(closed.into_iter().map(Box::pin)).await;
    assert_eq!(first, "");
    here.finish().await;
}

#[tokio::test]
async fn whoever_comes_when_all_places_are_taken_gets_that_of_one_who_asks_for_nothing() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.once(Script::new().token("Once").gate(&gate).token(" upon").finish("stop").done());
    let limits = Limits { connections: 8, idle_when_full: SOON, ..FAR };
    let here = Here::start(&provider, limits).await;
    let user = here.user().await;
    let mut reading = user.stream(json!({"input": "Go."})).await;
    reading.until("token").await;
    let beginnings: [&[u8]; 4] = [b"", b"GET /healthz HTTP/1.1\r\nx-slow: ", PREFACE, b"P"];
    let mut silent = Vec::new();
    for at in 0..7 {
        silent.push(here.sent(beginnings[at % 4]).await);
    }
    let since = Instant::now();
    // More than there are places, one after the other, which all stay.
    let mut served = 0;
    while served < 12 {
        let mut socket = here.sent(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut answer = vec![0; 12];
        // One too many may be closed without a word.
        if socket.read_exact(&mut answer).await.is_ok() && answer == b"HTTP/1.1 200" {
            served += 1;
            silent.push(socket);
        }
        assert!(since.elapsed() < PATIENCE, "{served} got a place");
    }
    gate.open();
    reading.done().await;
    assert_eq!(reading.text(), "Once upon");
    here.finish().await;
}

#[tokio::test]
async fn headers_without_end_are_refused() {
    let provider = Provider::start().await;
    let here = Here::start(&provider, FAR).await;
    let many = "x: y\r\n".repeat(65);
    let long = format!("x: {}\r\n", "y".repeat(40 << 10));
    for headers in [many, long] {
        let request = format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        let answer = until_closed(here.sent(request.as_bytes()).await).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    here.finish().await;
}

#[tokio::test]
async fn a_flood_of_streams_that_are_reset_at_once_harms_nobody() {
    let provider = Provider::start().await;
    provider.once(Script::telling(&["fine"]));
    let relay = TestRelay::with(&provider)
        .env("RELAY_LOG", "warn,storytellr_relay::cli=info")
        .start()
        .await;
    let user = relay.user().await;
    let address = relay.url("").replace("http://", "");
    let headers = frame(1, 5, b"\x82\x86\x84\x41\x01x");
    let mut flood = [PREFACE, EMPTY_SETTINGS].concat();
    for stream in 0..50_000_u32 {
        let id = (2 * stream + 1).to_be_bytes();
        for mut frame in [headers.clone(), frame(3, 0, &8_u32.to_be_bytes())] {
            frame[5..9].copy_from_slice(&id);
            flood.extend_from_slice(&frame);
        }
    }
    let floods = (0..4).map(|_| {
        let (address, flood) = (address.clone(), flood.clone());
        tokio::spawn(async move {
            let mut socket = TcpStream::connect(address).await.unwrap();
            // The relay closes it in the middle.
            drop(socket.write_all(&flood).await);
            until_closed(socket).await;
        })
    });
    let floods = tokio::spawn(join_all(floods));
    user.stream(json!({"input": "Go."})).await.done().await;
    for flood in timeout(PATIENCE, floods).await.expect("a flood goes on").unwrap() {
        flood.unwrap();
    }
    Answer::of(relay.client().get(relay.url("/healthz")).send().await.unwrap()).await.ok(200);
    relay.finish().await;
}

#[tokio::test]
async fn without_file_descriptors_the_relay_waits_and_says_so_once() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    user.get("/v1/bots").await.ok(200);
    let pid = relay.pid().to_string();
    let prlimit = std::process::Command::new("prlimit")
        .args(["--pid", &pid, "--nofile=64:64"])
        .status()
        .unwrap();
    assert!(prlimit.success());
    let address = relay.url("").replace("http://", "");
    let mut sockets = Vec::new();
    for _ in 0..100 {
        sockets.push(TcpStream::connect(&address).await.unwrap());
    }
    let failing = |log: &str| log.matches("accepting connections fails").count();
    let since = Instant::now();
    while failing(&relay.log()) == 0 {
        assert!(since.elapsed() < PATIENCE, "{}", relay.log());
        sleep(Duration::from_millis(20)).await;
    }
    // It fails ten times a second.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(failing(&relay.log()), 1);
    drop(sockets);
    user.get("/v1/bots").await.ok(200);
    relay.finish().await;
}

/// The process's memory in KiB, of a field of its status.
fn memory(relay: &TestRelay, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_piles_up_for_readers_that_read_nothing_is_bounded_and_comes_back() {
    const READERS: u64 = 1_000;
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let provider = Provider::start().await;
    let text = long_text();
    provider.once(chunks(&text).finish("stop").done());
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let body = json!({"conversation_id": story, "input": "Go.", "stream_id": "long"});
    user.stream(body).await.done().await;
    let address: SocketAddr = relay.url("").replace("http://", "").parse().unwrap();
    let before = memory(&relay, "VmRSS:");
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(reads_nothing(address, &user, "/v1/streams/long").await);
    }
    let since = Instant::now();
    join_all(readers.iter().map(dropped)).await;
    assert!(since.elapsed() >= Duration::from_secs(25), "it is told from one who reads slowly");
    let most = memory(&relay, "VmHWM:");
    assert!(most < before + READERS * 256, "from {before} to {most} KiB");
    let since = Instant::now();
    while memory(&relay, "VmRSS:") > before + READERS * 32 {
        let kept = memory(&relay, "VmRSS:");
        assert!(since.elapsed() < 4 * PATIENCE, "from {before} to {most}, and {kept} KiB are kept");
        sleep(Duration::from_millis(100)).await;
    }
    let mut back = user.follow("long", None).await;
    back.done().await;
    assert!(back.text() == text);
    relay.finish().await;
}
