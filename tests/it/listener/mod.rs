//! Nobody ties the relay up: who holds a connection and asks for nothing, sends for ever, reads nothing or takes all the
//! room there is costs himself his connection, and others nothing.
//!
//! Times are short here, which only a relay in the test's own process has; it listens on a real socket all the same. Where
//! a test waits for something not to happen, it waits several times as long as it would take.

mod places;
mod readers;
mod slow;

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use serde_json::json;
use storytellr_relay::config::{Config, Mode};
use storytellr_relay::http::Proxies;
use storytellr_relay::http::listener::{self, Limits};
use storytellr_relay::{app, http as face};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
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

/// The head of a request whose body has that length.
fn post(user: &User, len: usize) -> String {
    let token = &user.token;
    format!(
        "POST /v1/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {len}\r\n\r\n"
    )
}

/// A frame of stream 1.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}
