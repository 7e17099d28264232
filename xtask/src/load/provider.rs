//! A provider that does as the model's name says: HTTP/1.1 and OpenAI's chunks over SSE, each in a chunk of the transfer
//! as providers send them, and as little work as it can be.

use std::io::{Write, stdout};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::pacer::Pacer;
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
        let pacer = Pacer::start();
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            let pacer = pacer.clone();
            // A reader that is gone is nothing to tell.
            connections.spawn(async move { drop(serve(socket, pacer).await) });
            while connections.try_join_next().is_some() {}
        }
    })
}

async fn serve(socket: TcpStream, pacer: Pacer) -> Result<(), Failure> {
    let (mut reader, mut writer) = socket.into_split();
    let mut buffer = Vec::new();
    while let Some(script) = read_request(&mut reader, &mut buffer).await? {
        writer = answer(writer, script, &pacer).await?;
    }
    Ok(())
}

async fn read_request(
    reader: &mut OwnedReadHalf,
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
        if reader.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn answer(
    mut writer: OwnedWriteHalf,
    script: Script,
    pacer: &Pacer,
) -> Result<OwnedWriteHalf, Failure> {
    sleep(script.thinking).await;
    writer.write_all(HEAD).await?;
    let words = "word after word ".repeat(PRELUDE_PIECE_LEN / 16);
    for begin in (0..script.prelude).step_by(PRELUDE_PIECE_LEN) {
        let len = PRELUDE_PIECE_LEN.min(script.prelude - begin);
        writer.write_all(&chunk(&words[..len])).await?;
    }
    match script.rate {
        0 => pour(&mut writer, script.tokens).await?,
        rate => {
            let mut template = Template::new();
            // The first at once.
            writer.write_all(template.stamped(stamp::now())).await?;
            let interval = Duration::from_secs(1) / u32::try_from(rate)?;
            writer =
                pacer.pace(writer, template, script.tokens.saturating_sub(1), interval).await?;
        }
    }
    let end = format!(
        "{}{}",
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":100}}"#,
        "\n\ndata: [DONE]\n\n"
    );
    writer.write_all(format!("{:x}\r\n{end}\r\n0\r\n\r\n", end.len()).as_bytes()).await?;
    Ok(writer)
}

async fn pour(writer: &mut OwnedWriteHalf, tokens: usize) -> Result<(), Failure> {
    let mut template = Template::new();
    // One by one, as a model makes them.
    for _ in 0..tokens {
        writer.write_all(template.stamped(stamp::now())).await?;
    }
    Ok(())
}

/// One chunk of an answer as it goes over the wire, whose token is filled in.
pub(super) struct Template {
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

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// With a token of that time.
    pub(super) fn stamped(&mut self, time: u64) -> &[u8] {
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
