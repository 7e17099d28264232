//! A scripted provider: a real HTTP server that sends what a test tells it, down to the byte, and records what it was
//! asked.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

/// How long a test waits for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the provider does with one request.
#[derive(Clone)]
pub(crate) struct Script {
    head: String,
    steps: Vec<Step>,
    line_end: &'static str,
    piece_len: Option<usize>,
}

#[derive(Clone)]
enum Step {
    Bytes(Vec<u8>),
    Pause(Duration),
    /// Waits until the test opens the gate.
    Gate(Gate),
    /// The proper end of the body.
    End,
    /// Breaks the connection off with a reset.
    Reset,
    /// Sends the same bytes again and again with that much time in between.
    Repeat(Vec<u8>, Duration),
}

/// Holds a script back until it is opened.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets every script pass, now and later.
    pub(crate) fn open(&self) {
        self.0.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Lets one script pass once.
    pub(crate) fn step(&self) {
        self.0.add_permits(1);
    }
}

impl Script {
    /// An event stream with nothing in it yet.
    pub(crate) fn new() -> Self {
        Self::answer(200, "content-type: text/event-stream\r\n")
    }

    /// An answer with that status and those header lines.
    pub(crate) fn answer(status: u16, headers: &str) -> Self {
        let head =
            format!("HTTP/1.1 {status} Scripted\r\n{headers}transfer-encoding: chunked\r\n\r\n");
        Self { head, steps: Vec::new(), line_end: "\n", piece_len: None }
    }

    /// The tokens, a finish reason and `[DONE]`.
    pub(crate) fn telling(tokens: &[&str]) -> Self {
        tokens.iter().fold(Self::new(), |script, token| script.token(token)).finish("stop").done()
    }

    pub(crate) fn token(self, text: &str) -> Self {
        self.chunk(&json!({"choices": [{"index": 0, "delta": {"content": text}}]}))
    }

    pub(crate) fn reasoning(self, text: &str) -> Self {
        self.chunk(&json!({"choices": [{"index": 0, "delta": {"reasoning_content": text}}]}))
    }

    pub(crate) fn finish(self, reason: &str) -> Self {
        self.chunk(&json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}))
    }

    /// What the answer cost, as providers tell it at the end.
    pub(crate) fn usage(self, prompt: u64, answer: u64) -> Self {
        let usage = json!({"prompt_tokens": prompt, "completion_tokens": answer});
        self.chunk(&json!({"choices": [], "usage": usage}))
    }

    pub(crate) fn chunk(self, chunk: &Value) -> Self {
        let event = format!("data: {chunk}{0}{0}", self.line_end);
        self.raw(event.as_bytes())
    }

    pub(crate) fn done(self) -> Self {
        let event = format!("data: [DONE]{0}{0}", self.line_end);
        self.raw(event.as_bytes()).end()
    }

    pub(crate) fn raw(self, bytes: &[u8]) -> Self {
        self.step(Step::Bytes(bytes.to_vec()))
    }

    pub(crate) fn repeat(self, bytes: &[u8], interval: Duration) -> Self {
        self.step(Step::Repeat(bytes.to_vec(), interval))
    }

    /// The same token again and again, as fast as it is taken.
    pub(crate) fn flood(self, text: &str) -> Self {
        let chunk = json!({"choices": [{"index": 0, "delta": {"content": text}}]});
        self.repeat(format!("data: {chunk}\n\n").as_bytes(), Duration::ZERO)
    }

    pub(crate) fn pause(self, time: Duration) -> Self {
        self.step(Step::Pause(time))
    }

    pub(crate) fn gate(self, gate: &Gate) -> Self {
        self.step(Step::Gate(gate.clone()))
    }

    /// Nothing more, until the relay hangs up.
    pub(crate) fn stall(self) -> Self {
        self.gate(&Gate::new())
    }

    pub(crate) fn end(self) -> Self {
        self.step(Step::End)
    }

    pub(crate) fn reset(self) -> Self {
        self.step(Step::Reset)
    }

    /// Lines end with this from here on.
    pub(crate) fn line_ends(mut self, line_end: &'static str) -> Self {
        self.line_end = line_end;
        self
    }

    /// The body is sent in pieces of that many bytes.
    pub(crate) fn cut(mut self, piece_len: usize) -> Self {
        self.piece_len = Some(piece_len);
        self
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

/// One request as the provider got it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl Request {
    /// The prompt as `role: content`, for comparing.
    pub(crate) fn prompt(&self) -> Vec<String> {
        let messages = self.body["messages"].as_array().unwrap().iter();
        messages
            .map(|message| {
                format!(
                    "{}: {}",
                    message["role"].as_str().unwrap(),
                    message["content"].as_str().unwrap()
                )
            })
            .collect()
    }
}

/// The running server.
pub(crate) struct Provider {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// What makes an answer of a request.
type Answers = dyn Fn(&Request) -> Script + Send + Sync;

struct Shared {
    next: Mutex<VecDeque<Script>>,
    always: Mutex<Option<Script>>,
    answers: Mutex<Option<Arc<Answers>>>,
    seen: watch::Sender<Seen>,
}

#[derive(Debug, Default, Clone)]
struct Seen {
    requests: Vec<Request>,
    /// For each request whether its connection is closed.
    closed: Vec<bool>,
    connections: usize,
}

impl Provider {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            next: Mutex::default(),
            always: Mutex::default(),
            answers: Mutex::default(),
            seen: watch::Sender::new(Seen::default()),
        });
        let server = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&server)));
            }
        });
        Self { address, shared }
    }

    /// What bots' providers are configured with.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Answers the next request that has no answer yet.
    pub(crate) fn once(&self, script: Script) {
        self.shared.next.lock().unwrap().push_back(script);
    }

    /// Answers every request that has no answer of its own.
    pub(crate) fn always(&self, script: Script) {
        *self.shared.always.lock().unwrap() = Some(script);
    }

    /// Answers every request with what that makes of it.
    pub(crate) fn answers(&self, answers: impl Fn(&Request) -> Script + Send + Sync + 'static) {
        *self.shared.answers.lock().unwrap() = Some(Arc::new(answers));
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.seen.borrow().requests.clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.seen.borrow().connections
    }

    pub(crate) fn last_request(&self) -> Request {
        self.requests().pop().expect("the provider was not asked")
    }

    /// Returns when that many requests have come.
    pub(crate) async fn asked(&self, count: usize) {
        let mut seen = self.shared.seen.subscribe();
        let waited = timeout(PATIENCE, seen.wait_for(|seen| seen.requests.len() >= count)).await;
        assert!(waited.is_ok(), "the provider was not asked {count} times");
    }

    /// Returns when the relay has closed the connection of request number `at` (from 0).
    pub(crate) async fn closed(&self, at: usize) {
        let mut seen = self.shared.seen.subscribe();
        let waited =
            timeout(PATIENCE, seen.wait_for(|seen| seen.closed.get(at) == Some(&true))).await;
        assert!(waited.is_ok(), "the relay did not close the connection");
    }
}

async fn serve(socket: TcpStream, shared: Arc<Shared>) {
    socket.set_nodelay(true).unwrap();
    shared.seen.send_modify(|seen| seen.connections += 1);
    let (mut reader, mut writer) = socket.into_split();
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut reader, &mut buffer).await {
        let script = {
            let next = shared.next.lock().unwrap().pop_front();
            let answers = shared.answers.lock().unwrap().clone();
            next.or_else(|| answers.map(|answers| answers(&request)))
                .or_else(|| shared.always.lock().unwrap().clone())
                .expect("the provider has no script for a request")
        };
        let mut at = 0;
        shared.seen.send_modify(|seen| {
            at = seen.requests.len();
            seen.requests.push(request);
            seen.closed.push(false);
        });
        let is_whole = tokio::select! {
            is_whole = play(&script, &mut writer) => is_whole,
            // The relay sends nothing while it is answered, so this is its end of the connection.
            _ = reader.read_u8() => false,
        };
        if !is_whole {
            shared.seen.send_modify(|seen| seen.closed[at] = true);
            return;
        }
    }
}

/// Whether the body came to its proper end, so that the connection can go on.
async fn play(script: &Script, writer: &mut tokio::net::tcp::OwnedWriteHalf) -> bool {
    if writer.write_all(script.head.as_bytes()).await.is_err() {
        return false;
    }
    for step in &script.steps {
        let sent = match step {
            Step::Bytes(bytes) => send(writer, bytes, script.piece_len).await,
            Step::Repeat(bytes, interval) => loop {
                if let Err(error) = send(writer, bytes, None).await {
                    break Err(error);
                }
                if interval.is_zero() {
                    tokio::task::yield_now().await;
                } else {
                    tokio::time::sleep(*interval).await;
                }
            },
            Step::Pause(time) => {
                tokio::time::sleep(*time).await;
                Ok(())
            }
            Step::Gate(gate) => {
                gate.0.acquire().await.unwrap().forget();
                Ok(())
            }
            Step::End => return writer.write_all(b"0\r\n\r\n").await.is_ok(),
            Step::Reset => {
                let socket: &TcpStream = writer.as_ref();
                socket.set_zero_linger().unwrap();
                return false;
            }
        };
        if sent.is_err() {
            return false;
        }
    }
    // The connection is dropped without an end of the body.
    false
}

async fn send(
    writer: &mut tokio::net::tcp::OwnedWriteHalf,
    bytes: &[u8],
    piece_len: Option<usize>,
) -> std::io::Result<()> {
    for piece in bytes.chunks(piece_len.unwrap_or(usize::MAX).min(bytes.len().max(1))) {
        let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
        chunk.extend_from_slice(piece);
        chunk.extend_from_slice(b"\r\n");
        writer.write_all(&chunk).await?;
        if piece_len.is_some() {
            // Let the relay read each piece by itself as often as not.
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

async fn read_request(
    reader: &mut tokio::net::tcp::OwnedReadHalf,
    buffer: &mut Vec<u8>,
) -> Option<Request> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().unwrap())
            });
            let whole = end + 4 + length.unwrap_or(0);
            if buffer.len() >= whole {
                let body = serde_json::from_slice(&buffer[end + 4..whole]).unwrap_or(Value::Null);
                buffer.drain(..whole);
                return Some(Request { head, body });
            }
        }
        if reader.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}
