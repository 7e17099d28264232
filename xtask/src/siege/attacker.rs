//! Who attacks, in a process of his own, where slowhttptest has no mode for it. What he is closed he opens again.

use std::collections::BTreeMap;
use std::io::{self, Read, Write, stdin, stdout};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::attack::LONG;
use crate::Failure;

/// How long somebody waits before he opens again what was closed.
const PAUSE: Duration = Duration::from_secs(1);

/// How many requests a flood sends in one go.
const BATCH: u32 = 64;

/// What each connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Doing {
    Nothing,
    NotReading,
    Resetting,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) doing: Doing,
    pub(crate) port: u16,
    /// From how many addresses of the loopback network.
    pub(crate) addresses: u8,
    pub(crate) connections: usize,
    /// How many begin in a second.
    pub(crate) rate: usize,
    pub(crate) token: String,
    /// How long it goes on, in milliseconds.
    pub(crate) time_ms: u64,
}

/// What became of the connections.
#[derive(Debug, Default)]
struct Tally {
    /// What could not be opened at all.
    refused: AtomicU64,
    opened: AtomicU64,
    /// Told that there are too many.
    turned_away: AtomicU64,
    closed: AtomicU64,
    requests: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Reads a [`Job`] from standard input and prints what became of its connections.
pub(crate) fn run() -> Result<(), Failure> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let mut job = String::new();
    stdin().read_to_string(&mut job)?;
    let job: Job = serde_json::from_str(&job)?;
    let tally = Arc::new(Tally::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let time = Duration::from_millis(job.time_ms);
        // It never ends by itself.
        let _over = timeout(time, attack(&job, &tally)).await;
    });
    let counts = [
        ("refused", &tally.refused),
        ("opened", &tally.opened),
        ("turned away", &tally.turned_away),
        ("closed", &tally.closed),
        ("requests", &tally.requests),
    ]
    .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)));
    let counts = BTreeMap::from(counts);
    writeln!(stdout(), "{}", serde_json::to_string(&counts)?)?;
    Ok(())
}

async fn attack(job: &Job, tally: &Arc<Tally>) {
    let began = Instant::now();
    let mut connections = JoinSet::new();
    for at in 0..job.connections {
        let starts = began + Duration::from_secs_f64(at as f64 / job.rate as f64);
        let from = Ipv4Addr::new(127, 0, 1, (at % usize::from(job.addresses)) as u8);
        let (job, tally) = (job.clone(), Arc::clone(tally));
        connections.spawn(async move {
            sleep_until(starts).await;
            keep_at_it(&job, from, &tally).await;
        });
    }
    while connections.join_next().await.is_some() {}
}

async fn keep_at_it(job: &Job, from: Ipv4Addr, tally: &Tally) {
    loop {
        let Ok(mut socket) = connect(job, from).await else {
            count(&tally.refused);
            sleep(PAUSE).await;
            continue;
        };
        count(&tally.opened);
        match job.doing {
            Doing::Nothing => {
                let mut answer = Vec::new();
                // However it is closed.
                let _closed = socket.read_to_end(&mut answer).await;
                let was_told = answer.starts_with(b"HTTP/1.1 503 ");
                count(if was_told { &tally.turned_away } else { &tally.closed });
                sleep(PAUSE).await;
            }
            Doing::NotReading => {
                let request = format!(
                    "GET {LONG} HTTP/1.1\r\nhost: siege\r\nauthorization: Bearer {}\r\n\r\n",
                    job.token
                );
                if socket.write_all(request.as_bytes()).await.is_ok() {
                    count(&tally.requests);
                    let _broken = socket.ready(Interest::ERROR).await;
                }
                count(&tally.closed);
                sleep(PAUSE).await;
            }
            Doing::Resetting => {
                let _closed = flood(&mut socket, &job.token, tally).await;
                count(&tally.closed);
            }
        }
    }
}

async fn connect(job: &Job, from: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if job.doing == Doing::NotReading {
        socket.set_recv_buffer_size(4 << 10)?;
    }
    // To be given a port with the address is to have it alone, and slow where thousands of others were used a moment ago.
    if job.addresses > 1 {
        socket.bind(SocketAddr::from((from, 0)))?;
    }
    socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, job.port))).await
}

/// Opens streams and resets them at once, until it is closed.
async fn flood(socket: &mut TcpStream, token: &str, tally: &Tally) -> io::Result<()> {
    let headers = headers(token);
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    socket.write_all(&frame(4, 0, 0, b"")).await?;
    let mut next = 1;
    while next < 1 << 30 {
        let mut batch = Vec::new();
        for _ in 0..BATCH {
            // END_STREAM and END_HEADERS; CANCEL.
            batch.extend_from_slice(&frame(1, 5, next, &headers));
            batch.extend_from_slice(&frame(3, 0, next, &8_u32.to_be_bytes()));
            next += 2;
        }
        socket.write_all(&batch).await?;
        tally.requests.fetch_add(BATCH.into(), Ordering::Relaxed);
    }
    Ok(())
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET /v1/bots` in HPACK, with literals that no table keeps.
fn headers(token: &str) -> Vec<u8> {
    let token = format!("Bearer {token}");
    // `:method GET` and `:scheme http` are in the static table; so are the names `:authority`, `:path` and, behind the
    // fifteen that fit into the first byte, `authorization`.
    let mut headers = vec![0x82, 0x86];
    for (name, value) in [(&[0x01][..], "siege"), (&[0x04], "/v1/bots"), (&[0x0f, 0x08], &token)] {
        headers.extend_from_slice(name);
        headers.extend_from_slice(&string_len(value.len()));
        headers.extend_from_slice(value.as_bytes());
    }
    headers
}

/// The length of a string, as RFC 7541 section 5.1 has it.
fn string_len(len: usize) -> Vec<u8> {
    let Some(mut rest) = len.checked_sub(127) else { return vec![len as u8] };
    let mut bytes = vec![127];
    while rest >= 128 {
        bytes.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    bytes.push(rest as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_written_as_hpack_has_it() {
        let headers = headers(&"t".repeat(200));
        assert!(
            headers.starts_with(b"\x82\x86\x01\x05siege\x04\x08/v1/bots\x0f\x08\x7f\x50Bearer t")
        );
        assert_eq!(headers.len(), 2 + 7 + 10 + 4 + 207);
        assert_eq!(string_len(126), [126]);
        assert_eq!(string_len(1337), [127, 0xba, 0x09]);
        assert_eq!(frame(3, 0, 5, &[1]), [0, 0, 1, 3, 0, 0, 0, 0, 5, 1]);
    }
}
