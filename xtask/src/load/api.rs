//! Calls to a relay beside those that are measured.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use super::script::Script;
use crate::Failure;

/// How many calls are made at once where there are thousands to make: their writes share flushes of the disk.
const SIDE_BY_SIDE: usize = 32;

/// A relay, called as one user.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Api<'a> {
    pub(crate) port: u16,
    pub(crate) token: &'a str,
}

impl Api<'_> {
    /// Makes a bot that answers by that script; its id.
    pub(crate) fn bot(self, script: Script) -> Result<i64, Failure> {
        let bot = json!({"name": "Bench", "provider": "bench", "model": script.to_string()});
        self.made("/v1/bots", &bot)
    }

    /// Makes stories; their ids.
    pub(crate) fn stories(self, count: usize) -> Result<Vec<i64>, Failure> {
        let next = AtomicUsize::new(0);
        let make = || {
            let mut made = Vec::new();
            while next.fetch_add(1, Ordering::Relaxed) < count {
                made.push(self.made("/v1/conversations", &json!({}))?);
            }
            Ok::<_, Failure>(made)
        };
        thread::scope(|scope| {
            let makers: Vec<_> = (0..SIDE_BY_SIDE.min(count)).map(|_| scope.spawn(make)).collect();
            let mut stories = Vec::new();
            for maker in makers {
                stories.extend(maker.join().map_err(|_| "a thread panicked")??);
            }
            Ok(stories)
        })
    }

    fn made(self, path: &str, body: &Value) -> Result<i64, Failure> {
        let made = self.post(path, body)?;
        Ok(made["id"].as_i64().ok_or_else(|| made.to_string())?)
    }

    /// Asks for a stream, which has somebody who reads it from now on.
    pub(crate) fn stream(self, body: &Value) -> Result<Reader, Failure> {
        let mut socket = self.send("/v1/stream", body)?;
        let mut reading = socket.try_clone()?;
        // Its head has come, and the stream is there for others.
        let mut begun = [0; 12];
        socket.read_exact(&mut begun)?;
        if &begun != b"HTTP/1.1 200" {
            return Err(String::from_utf8_lossy(&begun).into());
        }
        let thread = thread::spawn(move || drop(std::io::copy(&mut reading, &mut std::io::sink())));
        Ok(Reader { socket, thread: Some(thread) })
    }

    fn send(self, path: &str, body: &Value) -> Result<TcpStream, Failure> {
        let body = body.to_string();
        let mut socket = TcpStream::connect(("127.0.0.1", self.port))?;
        write!(
            socket,
            "POST {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        )?;
        Ok(socket)
    }

    fn post(self, path: &str, body: &Value) -> Result<Value, Failure> {
        let mut socket = self.send(path, body)?;
        let mut response = String::new();
        socket.read_to_string(&mut response)?;
        let (_, body) = response.split_once("\r\n\r\n").ok_or("half an answer")?;
        Ok(serde_json::from_str(body).map_err(|_| response.clone())?)
    }
}

/// Somebody who reads a stream until this is dropped.
#[derive(Debug)]
pub(crate) struct Reader {
    socket: TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It may be at its end, which is as good.
        let _shut = self.socket.shutdown(Shutdown::Both);
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}
