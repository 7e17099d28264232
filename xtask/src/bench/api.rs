//! Calls to a relay before it is measured.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::script::Script;
use crate::Failure;

/// How many calls are made at once where there are thousands to make: their writes share flushes of the disk.
const SIDE_BY_SIDE: usize = 32;

/// A relay, called as one user.
#[derive(Debug, Clone, Copy)]
pub(super) struct Api<'a> {
    pub(super) port: u16,
    pub(super) token: &'a str,
}

impl Api<'_> {
    /// Makes a bot that answers by that script; its id.
    pub(super) fn bot(self, script: Script) -> Result<i64, Failure> {
        let bot = json!({"name": "Bench", "provider": "bench", "model": script.to_string()});
        self.made("/v1/bots", &bot)
    }

    /// Makes stories; their ids.
    pub(super) fn stories(self, count: usize) -> Result<Vec<i64>, Failure> {
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

    fn post(self, path: &str, body: &Value) -> Result<Value, Failure> {
        let body = body.to_string();
        let mut socket = TcpStream::connect(("127.0.0.1", self.port))?;
        write!(
            socket,
            "POST {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        )?;
        let mut response = String::new();
        socket.read_to_string(&mut response)?;
        let (_, body) = response.split_once("\r\n\r\n").ok_or("half an answer")?;
        Ok(serde_json::from_str(body).map_err(|_| response.clone())?)
    }
}
