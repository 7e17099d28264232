//! A provider that does as the model's name says: HTTP/1.1 and OpenAI's chunks over SSE, each in a chunk of the transfer
//! as providers send them, and as little work as it can be.

use std::io::{Write, stdout};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::script::Script;
use super::stamp;
use crate::Failure;

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";

/// How long the pieces of a prelude are, in bytes: tokens fit into it without a rest.
const PRELUDE_PIECE_LEN: usize = 4 << 10;

/// Serves until the process is ended. The first line that it prints is its port.
pub(crate) fn run() -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        writeln!(stdout(), "{}", listener.local_addr()?.port())?;
        let mut connections = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            // A reader that is gone is nothing to tell.
            connections.spawn(async move { drop(serve(socket).await) });
            while connections.try_join_next().is_some() {}
        }
    })
}

async fn serve(mut socket: TcpStream) -> Result<(), Failure> {
    let mut buffer = Vec::new();
    while let Some(script) = read_request(&mut socket, &mut buffer).await? {
        answer(&mut socket, script).await?;
    }
    Ok(())
}

async fn read_request(
    socket: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> Result<Option<Script>, Failure> {
    loop {
        if let Some(end) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            let head = std::str::from_utf8(&buffer[..end])?.to_ascii_lowercase();
            let len = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .map_or(Ok(0), |len| len.trim().parse::<usize>())?;
            if buffer.len() >= end + 4 + len {
                let body: serde_json::Value = serde_json::from_slice(&buffer[end + 4..][..len])?;
                buffer.drain(..end + 4 + len);
                return Ok(Some(body["model"].as_str().unwrap_or_default().parse()?));
            }
        }
        if socket.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn answer(socket: &mut TcpStream, script: Script) -> Result<(), Failure> {
    sleep(script.thinking).await;
    socket.write_all(HEAD).await?;
    let words = "word after word ".repeat(PRELUDE_PIECE_LEN / 16);
    for begin in (0..script.prelude).step_by(PRELUDE_PIECE_LEN) {
        let len = PRELUDE_PIECE_LEN.min(script.prelude - begin);
        socket.write_all(&chunk(&words[..len])).await?;
    }
    match script.rate {
        0 => pour(socket, script.tokens).await?,
        rate => pace(socket, script.tokens, rate).await?,
    }
    let end = format!(
        "{}{}",
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":100}}"#,
        "\n\ndata: [DONE]\n\n"
    );
    socket.write_all(format!("{:x}\r\n{end}\r\n0\r\n\r\n", end.len()).as_bytes()).await?;
    Ok(())
}

async fn pace(socket: &mut TcpStream, tokens: usize, rate: usize) -> Result<(), Failure> {
    let interval = Duration::from_secs(1) / u32::try_from(rate)?;
    let mut template = Template::new();
    // The first at once; the others of all streams spread over the time between two.
    socket.write_all(template.stamped(stamp::now())).await?;
    let mut next = Instant::now() + interval + interval.mul_f64(fastrand::f64());
    for _ in 1..tokens {
        sleep_until(next).await;
        next += interval;
        socket.write_all(template.stamped(stamp::now())).await?;
    }
    Ok(())
}

async fn pour(socket: &mut TcpStream, tokens: usize) -> Result<(), Failure> {
    let mut template = Template::new();
    // One by one, as a model makes them.
    for _ in 0..tokens {
        socket.write_all(template.stamped(stamp::now())).await?;
    }
    Ok(())
}

/// One chunk of an answer as it goes over the wire, whose token is filled in.
struct Template {
    bytes: Vec<u8>,
    token_at: usize,
}

impl Template {
    fn new() -> Self {
        let token = stamp::token(0);
        let bytes = chunk(&String::from_utf8_lossy(&token));
        let token_at = memchr::memmem::find(&bytes, &token).unwrap_or_default();
        Self { bytes, token_at }
    }

    fn stamped(&mut self, time: u64) -> &[u8] {
        self.bytes[self.token_at..][..stamp::LEN].copy_from_slice(&stamp::token(time));
        &self.bytes
    }
}

fn chunk(text: &str) -> Vec<u8> {
    let event = format!(
        "data: {}{text}{}\n\n",
        r#"{"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1700000000,"model":"bench","choices":[{"index":0,"delta":{"content":""#,
        r#""},"finish_reason":null}]}"#
    );
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}
