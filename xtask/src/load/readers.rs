//! The readers of a run: each a socket that asks once and reads to the end, as cheaply as can be, and notes how long each
//! token was under way.

use std::collections::VecDeque;
use std::io::{Read, Write, stdin, stdout};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::arrivals::Arrivals;
use super::servers;
use super::stamp::{self, Finder};
use crate::Failure;

/// How long a run may take at most.
const PATIENCE: Duration = Duration::from_secs(180);

/// Of how many readers tokens are timed. A token that is timed is read by itself; read ten at a time they take from what is
/// measured a quarter less of two processors.
const TIMED_MAX: usize = 100;

/// How long what comes to the others is left in their sockets.
const REST: Duration = Duration::from_millis(100);

/// How much of the end of a stream is kept, in bytes, to see whether it is one.
const TAIL_LEN: usize = 600;

/// What is asked, by how many.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) port: u16,
    /// For each reader: the request line's method and path, and the body.
    pub(crate) requests: Vec<(String, String)>,
    pub(crate) token: String,
    /// Over how much time the readers begin, in milliseconds.
    pub(crate) ramp_ms: u64,
    /// How many more follow the first one's stream, by this path, when it has begun.
    pub(crate) followers: usize,
    pub(crate) follow: String,
    /// A reader is done when it has read so many bytes; absent: at the end of its stream.
    pub(crate) enough: Option<usize>,
    /// Whether times of single tokens mean anything.
    pub(crate) is_paced: bool,
    /// How long what comes is left in the sockets at most before they are looked at, in milliseconds. Tokens and first
    /// tokens carry the time at which they came, and are no older for it; whole answers are.
    pub(crate) lull_ms: u64,
}

/// What was read.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Reading {
    pub(crate) tokens: u64,
    /// From the first request to the last end, in seconds.
    pub(crate) seconds: f64,
    /// How long tokens were under way, in milliseconds; absent where that means nothing. Of streams that begin at once those that
    /// came while all ran.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    /// From the request to its first token, in milliseconds.
    pub(crate) first_p50: Option<f64>,
    pub(crate) first_p99: Option<f64>,
    /// From before its connection to its good end, in milliseconds.
    pub(crate) whole_p50: Option<f64>,
    pub(crate) whole_p99: Option<f64>,
    /// Streams that did not come to a good end, and what one of them ended with.
    pub(crate) failed: usize,
    pub(crate) failure: Option<String>,
}

/// Readers at work, in a process of their own.
#[derive(Debug)]
pub(crate) struct Readers(Child);

impl Readers {
    pub(crate) fn start(job: &Job) -> Result<Self, Failure> {
        let mut readers =
            servers::own("readers")?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut input = readers.stdin.take().ok_or("no input")?;
        input.write_all(serde_json::to_string(job)?.as_bytes())?;
        Ok(Self(readers))
    }

    pub(crate) fn are_done(&mut self) -> Result<bool, Failure> {
        Ok(self.0.try_wait()?.is_some())
    }

    /// Waits for their end.
    pub(crate) fn reading(mut self) -> Result<Reading, Failure> {
        let mut reading = String::new();
        self.0.stdout.take().ok_or("no output")?.read_to_string(&mut reading)?;
        self.0.wait()?;
        Ok(serde_json::from_str(&reading).map_err(|_| "the readers did not come to an end")?)
    }
}

/// Reads a [`Job`] from standard input and prints its [`Reading`].
pub(crate) fn run() -> Result<(), Failure> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let mut job = String::new();
    stdin().read_to_string(&mut job)?;
    let job: Job = serde_json::from_str(&job)?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all();
    if job.lull_ms > 0 {
        let lull = Duration::from_millis(job.lull_ms);
        // Called when there is nothing to do, before it waits for some.
        runtime.on_thread_park(move || std::thread::sleep(lull));
    }
    let reading = runtime.build()?.block_on(async { timeout(PATIENCE, read_all(job)).await })?;
    writeln!(stdout(), "{}", serde_json::to_string(&reading)?)?;
    Ok(())
}

/// What one reader has noted.
#[derive(Debug, Default)]
struct Notes {
    tokens: u64,
    ages: Vec<Age>,
    first: Option<u32>,
    /// When the first token came, and the last, by [`stamp::now`].
    first_at: u64,
    last_at: u64,
    whole: Option<u32>,
    failure: Option<String>,
}

/// How long a token was under way, in microseconds, and when it came.
#[derive(Debug, Clone, Copy)]
struct Age {
    came_at: u64,
    micros: u32,
}

async fn read_all(job: Job) -> Reading {
    let began = Instant::now();
    let Job { port, token, ramp_ms, enough, is_paced, .. } = job;
    let count = job.requests.len() as u32;
    let timed_each = job.requests.len().div_ceil(TIMED_MAX);
    let mut readers = JoinSet::new();
    let (first_came, first_comes) = tokio::sync::oneshot::channel();
    let mut first_came = Some(first_came);
    for (at, (line, body)) in job.requests.into_iter().enumerate() {
        let starts = began + Duration::from_millis(ramp_ms) * at as u32 / count;
        let request = request(&line, &token, &body);
        let first_came = first_came.take();
        let is_timed = is_paced && at.is_multiple_of(timed_each);
        let rest = REST * u32::from(is_paced && !is_timed);
        readers.spawn(async move {
            sleep_until(starts).await;
            Reader { port, enough, is_timed, rest, first_came }.read(request).await
        });
    }
    if job.followers > 0 && first_comes.await.is_ok() {
        for _ in 0..job.followers {
            let request = request(&format!("GET {}", job.follow), &token, "");
            let reader =
                Reader { port, enough, is_timed: is_paced, rest: Duration::ZERO, first_came: None };
            readers.spawn(reader.read(request));
        }
    }
    let mut all = Notes::default();
    let (mut firsts, mut wholes, mut failed) = (Vec::new(), Vec::new(), 0);
    // Where all begin at once, what that costs is told by their first tokens. Where one begins after another, the others notice
    // it, and it counts.
    let (mut from, mut to) = (0, u64::MAX);
    while let Some(notes) = readers.join_next().await {
        let panicked = || Notes { failure: Some("it panicked".to_owned()), ..Notes::default() };
        let notes = notes.unwrap_or_else(|_| panicked());
        all.tokens += notes.tokens;
        all.ages.extend(notes.ages);
        if ramp_ms == 0 {
            (from, to) = (from.max(notes.first_at), to.min(notes.last_at));
        }
        firsts.extend(notes.first);
        wholes.extend(notes.whole);
        failed += usize::from(notes.failure.is_some());
        all.failure = all.failure.or(notes.failure);
    }
    let while_all_ran = all.ages.iter().filter(|age| (from..=to).contains(&age.came_at));
    let mut ages = while_all_ran.map(|age| age.micros).collect::<Vec<_>>();
    Reading {
        tokens: all.tokens,
        seconds: began.elapsed().as_secs_f64(),
        p50: percentile(&mut ages, 50),
        p99: percentile(&mut ages, 99),
        first_p50: percentile(&mut firsts, 50),
        first_p99: percentile(&mut firsts, 99),
        whole_p50: percentile(&mut wholes, 50),
        whole_p99: percentile(&mut wholes, 99),
        failed,
        failure: all.failure,
    }
}

fn request(line: &str, token: &str, body: &str) -> String {
    format!(
        "{line} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\naccept: text/event-stream\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn percentile(micros: &mut [u32], percent: usize) -> Option<f64> {
    micros.sort_unstable();
    micros.get(micros.len() * percent / 100).map(|micros| f64::from(*micros) / 1e3)
}

struct Reader {
    port: u16,
    enough: Option<usize>,
    /// Whether the times of its tokens are noted.
    is_timed: bool,
    /// How long it leaves in its socket what comes after its first token.
    rest: Duration,
    /// To be told of the first token.
    first_came: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Reader {
    async fn read(mut self, request: String) -> Notes {
        let mut notes = Notes::default();
        let began = stamp::now();
        match self.read_into(&mut notes, request).await {
            Ok(()) => notes.whole = u32::try_from(stamp::now() - began).ok(),
            Err(failure) => notes.failure = Some(failure.to_string()),
        }
        notes
    }

    async fn read_into(&mut self, notes: &mut Notes, request: String) -> Result<(), Failure> {
        let mut socket = Arrivals::connect(self.port).await?;
        let asked = stamp::now();
        socket.send(request.as_bytes()).await?;
        let (mut body, mut finder) = (Body::default(), Finder::default());
        let (mut tail, mut len) = (VecDeque::new(), 0);
        loop {
            let read = socket.read(|bytes, came_at| {
                let is_over = body.take(bytes, |piece| {
                    len += piece.len();
                    tail.extend(&piece[piece.len().saturating_sub(TAIL_LEN)..]);
                    tail.drain(..tail.len().saturating_sub(TAIL_LEN));
                    finder.find(piece, came_at, |age| {
                        notes.tokens += 1;
                        if self.is_timed {
                            let micros = u32::try_from(age).unwrap_or(u32::MAX);
                            notes.ages.push(Age { came_at, micros });
                        }
                    });
                });
                if notes.first.is_none() && notes.tokens > 0 {
                    notes.first = u32::try_from(came_at - asked).ok();
                    notes.first_at = came_at;
                }
                notes.last_at = came_at;
                (is_over, bytes.is_empty())
            });
            let (is_over, is_cut_off) = read.await?;
            if is_cut_off {
                return Err(String::from_utf8_lossy(&Vec::from(tail)).into());
            }
            if notes.tokens > 0
                && let Some(first_came) = self.first_came.take()
            {
                // Nobody may want to know.
                let _told = first_came.send(());
            }
            if is_over || self.enough.is_some_and(|enough| len >= enough) {
                break;
            }
            if !self.rest.is_zero() && notes.tokens > 0 {
                sleep(self.rest).await;
            }
        }
        let tail = String::from_utf8_lossy(tail.make_contiguous()).into_owned();
        let has_end = ["[DONE]", "event: done"].iter().any(|end| tail.contains(end));
        let is_good = body.is_ok() && (body.is_in_one || has_end);
        if is_good || self.enough.is_some() { Ok(()) } else { Err(tail.into()) }
    }
}

/// The body of a chunked response, taken out of what is read. An answer without one is over at once.
#[derive(Debug, Default)]
struct Body {
    head: Vec<u8>,
    has_begun: bool,
    /// Whether it is no stream.
    is_in_one: bool,
    /// What is left of the present chunk, with the line end behind it.
    left: usize,
    /// A chunk's length, as far as it has come.
    line: Vec<u8>,
}

impl Body {
    fn is_ok(&self) -> bool {
        self.head.starts_with(b"HTTP/1.1 200 ")
    }

    /// Whether the end has come.
    fn take(&mut self, mut bytes: &[u8], mut on_piece: impl FnMut(&[u8])) -> bool {
        if !self.has_begun {
            self.head.extend_from_slice(bytes);
            let Some(end) = memchr::memmem::find(&self.head, b"\r\n\r\n") else { return false };
            self.has_begun = true;
            let rest = self.head.split_off(end + 4);
            if !self.head.to_ascii_lowercase().windows(7).any(|word| word == b"chunked") {
                self.is_in_one = true;
                on_piece(&self.head);
                on_piece(&rest);
                return true;
            }
            return self.take(&rest, on_piece);
        }
        while !bytes.is_empty() {
            if self.left == 0 {
                let Some(end) = memchr::memchr(b'\n', bytes) else {
                    self.line.extend_from_slice(bytes);
                    return false;
                };
                self.line.extend_from_slice(&bytes[..end]);
                bytes = &bytes[end + 1..];
                let line = std::str::from_utf8(&self.line).unwrap_or_default().trim();
                let len = usize::from_str_radix(line, 16).unwrap_or_default();
                self.line.clear();
                if len == 0 {
                    return true;
                }
                self.left = len + 2;
            }
            let taken = self.left.min(bytes.len());
            let text = taken.min(self.left.saturating_sub(2));
            if text > 0 {
                on_piece(&bytes[..text]);
            }
            self.left -= taken;
            bytes = &bytes[taken..];
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_taken_out_of_their_chunks_however_these_are_cut() {
        let response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nOnce\r\n11\r\n upon a time and \r\n0\r\n\r\n";
        for cut in 1..response.len() {
            let (mut body, mut text, mut is_over) = (Body::default(), Vec::new(), false);
            for piece in response.chunks(cut) {
                is_over |= body.take(piece, |piece| text.extend_from_slice(piece));
            }
            assert_eq!(
                (String::from_utf8(text).unwrap().as_str(), is_over),
                ("Once upon a time and ", true),
                "{cut}"
            );
        }
    }
}
