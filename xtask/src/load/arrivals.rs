//! A socket of which what is read says when it came, as the kernel noted it: whoever reads need not be awake then.
//!
//! A reader that is woken for each token costs as much as what is measured, and takes the processors from it where they are
//! few. One that looks every other millisecond finds a hundred tokens at a time, and knows of each when it came.

use std::cell::RefCell;
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd as _;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;

use super::stamp;

/// How much is read in one go, in bytes.
const READ_LEN: usize = 16 << 10;

thread_local! {
    /// For all sockets: ten thousand of them wait at a time, and one is read.
    static ROOM: RefCell<Room> =
        RefCell::new(Room { bytes: vec![0; READ_LEN], control: cmsg_space!(TimeSpec) });
}

/// Where something is read into.
struct Room {
    bytes: Vec<u8>,
    control: Vec<u8>,
}

/// A connection to a server of this machine.
#[derive(Debug)]
pub(crate) struct Arrivals(TcpStream);

impl Arrivals {
    pub(crate) async fn connect(port: u16) -> io::Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket.set_nodelay(true)?;
        socket.set_quickack(false)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        Ok(Self(socket))
    }

    pub(crate) async fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.0.write_all(request).await
    }

    /// Waits for something to read. `take` is handed it, nothing at the end, and the time at which the last of it came, by
    /// [`stamp::now`].
    pub(crate) async fn read<T>(&self, take: impl FnOnce(&[u8], u64) -> T) -> io::Result<T> {
        let mut read = None;
        while read.is_none() {
            self.0.readable().await?;
            let tried = self.0.try_io(Interest::READABLE, || {
                let (len, came_at) = ROOM.with_borrow_mut(|room| receive(&self.0, room))?;
                read = Some((len, came_at));
                // What leaves room has left nothing behind. To say so saves a look at the socket for each token.
                if len < READ_LEN { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            tried.or_else(|error| match error.kind() {
                io::ErrorKind::WouldBlock => Ok(()),
                _ => Err(error),
            })?;
        }
        let (len, came_at) = read.unwrap_or_default();
        Ok(ROOM.with_borrow(|room| take(&room.bytes[..len], came_at)))
    }
}

/// Reads once. Returns how much, and when the last of it came: now, if the kernel does not say.
fn receive(socket: &TcpStream, room: &mut Room) -> io::Result<(usize, u64)> {
    let Room { bytes, control } = room;
    let mut bytes = [IoSliceMut::new(bytes)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut bytes, Some(control), MsgFlags::empty())?;
    let came_at = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(time) => Some(stamp::micros(time.into())),
        _ => None,
    });
    Ok((message.bytes, came_at.unwrap_or_else(stamp::now)))
}
