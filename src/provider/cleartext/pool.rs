//! Connections that wait for their next request.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::provider::client::POOL_IDLE_TIMEOUT;

/// Connections that wait, in all. More are closed: it is as many answers as end in a moment.
const LEN_MAX: usize = 1_024;

/// Connections that wait, by whom they are to. Those that have waited too long are closed when the next one comes or goes.
#[derive(Debug, Default)]
pub(super) struct Pool {
    waiting: Mutex<HashMap<String, Vec<(TcpStream, Instant)>>>,
}

/// The place in a pool that a connection goes back to.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) pool: Arc<Pool>,
    pub(super) place: String,
}

impl Pool {
    /// A connection that has not been closed, the one that was used last.
    pub(super) fn take(&self, place: &str) -> Option<TcpStream> {
        let mut waiting = self.lock();
        Self::forget(&mut waiting);
        let sockets = waiting.get_mut(place)?;
        while let Some((socket, _)) = sockets.pop() {
            if is_quiet(&socket) {
                return Some(socket);
            }
        }
        waiting.remove(place);
        None
    }

    /// Closes what has waited for too long.
    fn forget(waiting: &mut HashMap<String, Vec<(TcpStream, Instant)>>) {
        waiting.retain(|_, sockets| {
            sockets.retain(|(_, since)| since.elapsed() < POOL_IDLE_TIMEOUT);
            !sockets.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<(TcpStream, Instant)>>> {
        // Whatever a panic leaves is a set of connections.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    pub(super) fn put(self, socket: TcpStream) {
        let mut waiting = self.pool.lock();
        Pool::forget(&mut waiting);
        if waiting.values().map(Vec::len).sum::<usize>() < LEN_MAX {
            waiting.entry(self.place).or_default().push((socket, Instant::now()));
        }
    }
}

/// Whether the other end has neither closed nor said anything.
fn is_quiet(socket: &TcpStream) -> bool {
    // The kernel is asked, and not what the runtime has heard of it so far.
    let peeked = SockRef::from(socket).peek(&mut [MaybeUninit::uninit()]);
    matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
}
