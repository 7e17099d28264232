//! The body of a response, read by whoever waits for it.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::ready;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use super::Fault;
use super::framing::Framing;
use super::head::Head;
use super::pool::Idle;

/// How much is read in one go, in bytes.
const READ_LEN: usize = 16 << 10;

/// After how many reads the kernel is told to acknowledge every second segment, as it does by itself on connections on which
/// both talk, and not each as soon as it is read, which is a sixth of what a token costs. A server that waits for it (Nagle's
/// algorithm) waits once for the 40 ms of the kernel's patience (`TCP_DELACK_MIN`), after which the kernel goes back to
/// acknowledging at once; by then its first words are long there.
#[cfg(target_os = "linux")]
const HASTY_READS: u32 = 32;

/// A body that is coming in. Dropped at its end, it leaves its connection for the next request; dropped before, it closes it.
pub(crate) struct Body {
    socket: Option<TcpStream>,
    framing: Framing,
    /// What came with the head.
    early: Vec<u8>,
    /// How often the socket has been read.
    reads: u32,
    /// Where the connection is kept for another request; absent if there is none to be made.
    idle: Option<Idle>,
}

impl Body {
    pub(super) fn new(
        socket: TcpStream,
        early: Vec<u8>,
        head: &Head,
        idle: Option<Idle>,
    ) -> Result<Self, Fault> {
        let framing = Framing::of(head)?;
        // What comes behind a body was not asked for.
        let is_clean = framing != Framing::Over || early.is_empty();
        let idle = idle.filter(|_| head.keeps_alive() && is_clean);
        // Room in which there is nothing is given back.
        let early = if early.is_empty() { Vec::new() } else { early };
        Ok(Self { socket: Some(socket), framing, early, reads: 0, idle })
    }

    /// Waits for more, and hands all that is there to `take`, in pieces. Returns whether there was anything: the body is over
    /// otherwise. Cancel safe.
    pub(crate) async fn read(&mut self, mut take: impl FnMut(&[u8])) -> Result<bool, Fault> {
        poll_fn(|context| {
            loop {
                if self.framing == Framing::Over {
                    return Ok(false).into();
                }
                let mut has_data = false;
                let mut take = |data: &[u8]| {
                    has_data = true;
                    take(data);
                };
                if self.early.is_empty() {
                    let Some(socket) = &mut self.socket else { return Ok(false).into() };
                    // Room for as long as this takes, and none while nothing comes.
                    let mut room = [MaybeUninit::uninit(); READ_LEN];
                    let mut buffer = ReadBuf::uninit(&mut room);
                    ready!(Pin::new(&mut *socket).poll_read(context, &mut buffer))?;
                    self.reads = self.reads.saturating_add(1);
                    #[cfg(target_os = "linux")]
                    if self.reads == HASTY_READS {
                        // It is for speed alone.
                        let _as_before = socket.set_quickack(false);
                    }
                    if buffer.filled().is_empty() {
                        self.socket = None;
                        if self.framing.ends_with_connection() {
                            return Ok(false).into();
                        }
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()).into();
                    }
                    let passed = self.framing.read(buffer.filled(), &mut take)?;
                    if passed < buffer.filled().len() {
                        // Whatever that is, it was not asked for.
                        self.idle = None;
                    }
                } else {
                    let early = std::mem::take(&mut self.early);
                    let passed = self.framing.read(&early, &mut take)?;
                    if passed < early.len() {
                        self.idle = None;
                    }
                }
                if has_data {
                    return Ok(true).into();
                }
            }
        })
        .await
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if self.framing == Framing::Over
            && let (Some(socket), Some(idle)) = (self.socket.take(), self.idle.take())
        {
            // The next answer has first words again.
            #[cfg(target_os = "linux")]
            let _as_before = socket.set_quickack(true);
            idle.put(socket);
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("framing", &self.framing).finish_non_exhaustive()
    }
}
