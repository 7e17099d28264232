//! Tokens at a pace, of all streams together, from threads of their own.
//!
//! A runtime's timers fire at whole milliseconds, and what is due in one of them would come at once, which tokens of different
//! models do not. A timer for each token would also cost as much as sending it, on the machine that is measured.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::oneshot;

use super::provider::Template;
use super::stamp;
use crate::Failure;

/// How many streams may wait to be taken over: more than there can be.
const WAITING_MAX: usize = 20_000;

/// How long a thread rests at least. What is due meanwhile goes out together: to wake for each token would cost half as much
/// again as to send it.
const REST_MIN: Duration = Duration::from_micros(250);

/// The ways to the threads that write. There is one for each processor: a single one would take half of one of them from what
/// is measured, and nothing of the others.
#[derive(Debug, Clone)]
pub(super) struct Pacer(Arc<[SyncSender<(Stream, Back)>]>);

/// Where a stream goes that is over, or that has to wait for its reader.
type Back = oneshot::Sender<Stream>;

struct Stream {
    writer: OwnedWriteHalf,
    template: Template,
    /// How much of the template is to be written before the next token, at its end.
    unsent: usize,
    tokens: usize,
    interval: Duration,
    due: Instant,
}

impl Pacer {
    /// Its threads end with the process.
    pub(super) fn start() -> Self {
        let thread = |_| {
            let (sender, streams) = mpsc::sync_channel(WAITING_MAX);
            std::thread::spawn(move || run(&streams));
            sender
        };
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        Self((0..count).map(thread).collect())
    }

    /// Writes so many tokens, one each `interval`. The writer is given back behind the last.
    pub(super) async fn pace(
        &self,
        writer: OwnedWriteHalf,
        template: Template,
        tokens: usize,
        interval: Duration,
    ) -> Result<OwnedWriteHalf, Failure> {
        // Those of all streams are spread over the time between two.
        let due = Instant::now() + interval + interval.mul_f64(fastrand::f64());
        let thread = &self.0[fastrand::usize(..self.0.len())];
        let mut stream = Stream { writer, template, unsent: 0, tokens, interval, due };
        while stream.tokens > 0 {
            let (back, comes_back) = oneshot::channel();
            thread.try_send((stream, back)).map_err(|error| error.to_string())?;
            stream = comes_back.await?;
            let unsent = stream.template.len() - stream.unsent..;
            stream.writer.write_all(&stream.template.bytes()[unsent]).await?;
            stream.unsent = 0;
        }
        Ok(stream.writer)
    }
}

impl Stream {
    /// Writes the next token. Returns whether there is another, and room for it.
    fn write(&mut self) -> bool {
        let token = self.template.stamped(stamp::now());
        // An error is found again by whoever writes the rest.
        let written = self.writer.try_write(token).unwrap_or_default();
        self.unsent = token.len() - written;
        self.tokens -= 1;
        self.due += self.interval;
        self.tokens > 0 && self.unsent == 0
    }
}

fn run(streams: &Receiver<(Stream, Back)>) {
    let mut waiting = BinaryHeap::new();
    loop {
        let due = waiting.peek().map(|Waiting(stream, _)| stream.due);
        let rest = due.map_or(Duration::MAX, |due| {
            due.saturating_duration_since(Instant::now()).max(REST_MIN)
        });
        match streams.recv_timeout(rest) {
            Ok((stream, back)) => waiting.push(Waiting(Box::new(stream), back)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        while let Some(mut first) = waiting.peek_mut().filter(|first| first.0.due <= now) {
            if !first.0.write() {
                let Waiting(stream, back) = PeekMut::pop(first);
                // Whoever does not wait for it any more needs no tokens.
                let _unwanted = back.send(*stream);
            }
        }
    }
}

/// Ordered so that the one that is due first is the greatest.
struct Waiting(Box<Stream>, Back);

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.due.cmp(&self.0.due)
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Waiting {}
