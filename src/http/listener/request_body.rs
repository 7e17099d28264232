//! The body of a request, which must come within a time, and is handed on when it is whole or there is much of it.
//!
//! Between a connection and the handler that reads a body are a dozen layers, and each is polled for whatever the handler
//! waits for. Thousands of bodies that come in pieces of a few bytes would keep the relay busy with that alone. So pieces are
//! gathered outside of the layers, and the handler is woken when there is nothing to wait for any more.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::http::timer::Timer;

/// How much of a body earns it another second, in bytes: half a megabit a second, which is a poor phone.
const LEN_PER_SECOND: u64 = 64 << 10;

/// With how much, in bytes, a reader need not wait for more: so that a body that is too long is not read to its end. What the
/// connection hands over at once comes on top, 32 KiB at most.
const GATHERED_LEN: usize = 64 << 10;

type Fault = Box<dyn StdError + Send + Sync>;

/// Room for the bodies that are being read.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    /// Room for so many bytes of them.
    pub(super) fn new(len: usize) -> Self {
        Self(Arc::new(Semaphore::new(len)))
    }
}

/// Why a body could not be read to its end.
#[derive(Debug)]
pub(in crate::http) enum Unread {
    /// It took too long.
    TooSlow,
    /// There is no room for it beside the others.
    NoRoom,
    /// The client broke it off, or it is no proper body.
    Broken(Fault),
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSlow => f.write_str("the body comes too slowly"),
            Self::NoRoom => f.write_str("there is no room for more bodies"),
            Self::Broken(error) => error.fmt(f),
        }
    }
}

impl StdError for Unread {}

/// The body of a request as its handler reads it, and what gathers it meanwhile. The time and the room that it may take begin
/// when it is first read.
pub(super) fn receive<B>(
    incoming: B,
    room: Room,
    patience: Duration,
) -> (RequestBody<B>, Receiver<B>) {
    let gathering = Arc::new(Mutex::new(Gathering {
        incoming: Some(incoming),
        gathered: BytesMut::new(),
        fault: None,
        reader: None,
        room,
        received: 0,
        patience,
        began: None,
        timer: Timer::default(),
    }));
    (RequestBody(Arc::clone(&gathering)), Receiver(gathering))
}

/// What has come of a body.
struct Gathering<B> {
    /// Nothing once no more of it will come.
    incoming: Option<B>,
    gathered: BytesMut,
    /// Why it ended before its end, until its reader knows.
    fault: Option<Unread>,
    /// Who waits for it.
    reader: Option<Waker>,
    room: Room,
    received: usize,
    patience: Duration,
    /// When it was first asked for: only then does the client's time begin.
    began: Option<Instant>,
    timer: Timer,
}

impl<B: Body<Data = Bytes, Error: Into<Fault>> + Unpin> Gathering<B> {
    /// Gathers what there is, until there is something for the reader: all that will come, or much.
    fn poll_gather(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.gathered.len() < GATHERED_LEN {
            let Some(incoming) = &mut self.incoming else { break };
            match Pin::new(incoming).poll_frame(context) {
                // Trailers are nothing to anybody here.
                Poll::Ready(Some(Ok(frame))) => {
                    if frame.data_ref().is_some_and(|data| !self.hold(data)) {
                        self.end(Some(Unread::NoRoom));
                    }
                }
                Poll::Ready(Some(Err(error))) => self.end(Some(Unread::Broken(error.into()))),
                Poll::Ready(None) => self.end(None),
                Poll::Pending => {
                    ready!(self.poll_is_late(context));
                    self.end(Some(Unread::TooSlow));
                }
            }
        }
        Poll::Ready(())
    }
}

impl<B> Gathering<B> {
    /// Keeps what has come. Returns whether there is room for it.
    fn hold(&mut self, data: &Bytes) -> bool {
        let permit =
            u32::try_from(data.len()).ok().and_then(|len| self.room.0.try_acquire_many(len).ok());
        let Some(permit) = permit else { return false };
        permit.forget();
        self.received += data.len();
        self.gathered.extend_from_slice(data);
        true
    }

    fn poll_is_late(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let earned = Duration::from_secs(self.received as u64 / LEN_PER_SECOND);
        let began = *self.began.get_or_insert_with(Instant::now);
        self.timer.poll(began + self.patience + earned, context)
    }

    fn end(&mut self, fault: Option<Unread>) {
        self.incoming = None;
        self.timer = Timer::default();
        self.fault = fault;
    }
}

/// Nothing under this lock can panic half-way, so a poisoned one is as good as any.
fn lock<B>(gathering: &Mutex<Gathering<B>>) -> MutexGuard<'_, Gathering<B>> {
    gathering.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The side of a body that is polled for each of its pieces.
pub(super) struct Receiver<B>(Arc<Mutex<Gathering<B>>>);

impl<B: Body<Data = Bytes, Error: Into<Fault>> + Unpin> Receiver<B> {
    /// Ready once whoever reads the body was woken. Pending as long as nobody does: only who reads, reads on.
    pub(super) fn poll_wake(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut gathering = lock(&self.0);
        if gathering.reader.is_none() {
            return Poll::Pending;
        }
        ready!(gathering.poll_gather(context));
        let reader = gathering.reader.take();
        drop(gathering);
        wake(reader);
        Poll::Ready(())
    }
}

impl<B> Drop for Receiver<B> {
    /// Whoever reads on is the one that is woken for each piece from now on.
    fn drop(&mut self) {
        let reader = lock(&self.0).reader.take();
        wake(reader);
    }
}

fn wake(reader: Option<Waker>) {
    if let Some(reader) = reader {
        reader.wake();
    }
}

/// The side of a body that its handler reads.
pub(super) struct RequestBody<B>(Arc<Mutex<Gathering<B>>>);

impl<B: Body<Data = Bytes, Error: Into<Fault>> + Unpin> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = Unread;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Unread>>> {
        let mut gathering = lock(&self.0);
        if gathering.poll_gather(context).is_pending() {
            gathering.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        gathering.reader = None;
        if !gathering.gathered.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(gathering.gathered.split().freeze()))));
        }
        Poll::Ready(gathering.fault.take().map(Err))
    }
}

impl<B> Drop for RequestBody<B> {
    /// Nobody reads on: what comes of it is not taken, and what has come takes no room.
    fn drop(&mut self) {
        let mut gathering = lock(&self.0);
        gathering.end(None);
        gathering.reader = None;
        gathering.gathered = BytesMut::new();
        let received = std::mem::take(&mut gathering.received);
        gathering.room.0.add_permits(received);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use tokio::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    const ROOM: usize = 1 << 20;
    const CAPACITY: usize = 32;

    /// A body that comes as a test sends it.
    #[derive(Debug)]
    struct Sent(mpsc::Receiver<Bytes>);

    impl Body for Sent {
        type Data = Bytes;
        type Error = Fault;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
            self.0.poll_recv(context).map(|data| data.map(|data| Ok(Frame::data(data))))
        }
    }

    #[derive(Debug, Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A body under way, its reader, and who gathers.
    struct Exchange {
        sender: Option<mpsc::Sender<Bytes>>,
        body: RequestBody<Sent>,
        receiver: Receiver<Sent>,
        room: Room,
        /// How often the reader, and who gathers, was woken.
        reader: Arc<Count>,
        task: Arc<Count>,
    }

    impl Exchange {
        fn begin() -> Self {
            let (sender, incoming) = mpsc::channel(CAPACITY);
            let room = Room::new(ROOM);
            let (body, receiver) = receive(Sent(incoming), room.clone(), PATIENCE);
            let (reader, task) = (Arc::default(), Arc::default());
            Self { sender: Some(sender), body, receiver, room, reader, task }
        }

        fn send(&mut self, data: &[u8]) {
            let data = Bytes::copy_from_slice(data);
            self.sender.as_ref().unwrap().try_send(data).unwrap();
        }

        /// What the reader is given: `None` if it has to wait, an empty text at the end.
        fn read(&mut self) -> Option<Result<Bytes, Unread>> {
            let waker = Waker::from(Arc::clone(&self.reader));
            match Pin::new(&mut self.body).poll_frame(&mut Context::from_waker(&waker)) {
                Poll::Pending => None,
                Poll::Ready(None) => Some(Ok(Bytes::new())),
                Poll::Ready(Some(frame)) => Some(frame.map(|frame| frame.into_data().unwrap())),
            }
        }

        /// Lets be gathered what there is. Returns whether the reader was woken.
        fn gather(&mut self) -> bool {
            let waker = Waker::from(Arc::clone(&self.task));
            self.receiver.poll_wake(&mut Context::from_waker(&waker)).is_ready()
        }
    }

    #[tokio::test]
    async fn a_reader_is_woken_once_for_all_pieces() {
        let mut exchange = Exchange::begin();
        assert!(exchange.read().is_none());
        assert!(!exchange.gather());
        for _ in 0..100 {
            exchange.send(b"piece ");
            assert!(!exchange.gather());
        }
        assert_eq!(exchange.task.0.load(Ordering::Relaxed), 100);
        assert_eq!(exchange.reader.0.load(Ordering::Relaxed), 0);
        exchange.sender = None;
        assert!(exchange.gather());
        assert!(!exchange.gather(), "the reader was woken, and is the next");
        assert_eq!(exchange.reader.0.load(Ordering::Relaxed), 1);
        assert_eq!(exchange.read().unwrap().unwrap(), "piece ".repeat(100));
        assert_eq!(exchange.read().unwrap().unwrap(), "");
    }

    #[tokio::test]
    async fn a_long_body_comes_in_long_pieces() {
        let mut exchange = Exchange::begin();
        assert!(exchange.read().is_none());
        let piece = vec![b'x'; GATHERED_LEN - 1];
        exchange.send(&piece);
        assert!(!exchange.gather());
        exchange.send(b"y");
        exchange.send(b"z");
        assert!(exchange.gather());
        assert_eq!(exchange.read().unwrap().unwrap().len(), GATHERED_LEN);
        assert!(exchange.read().is_none());
        exchange.sender = None;
        assert!(exchange.gather());
        assert_eq!(exchange.read().unwrap().unwrap(), "z");
    }

    #[tokio::test]
    async fn nothing_is_taken_of_what_nobody_reads() {
        let mut exchange = Exchange::begin();
        exchange.send(b"once");
        assert!(!exchange.gather());
        assert_eq!(exchange.sender.as_ref().unwrap().capacity(), CAPACITY - 1);
        assert_eq!(exchange.task.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn who_reads_no_further_gives_the_room_back_and_has_no_more_come() {
        let mut exchange = Exchange::begin();
        assert!(exchange.read().is_none());
        exchange.send(b"once");
        assert!(!exchange.gather());
        assert_eq!(exchange.room.0.available_permits(), ROOM - 4);
        let Exchange { sender, body, receiver, room, .. } = exchange;
        drop(body);
        assert_eq!(room.0.available_permits(), ROOM);
        assert!(sender.unwrap().is_closed());
        assert!(receiver.poll_wake(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    #[tokio::test]
    async fn a_reader_who_has_what_it_waited_for_is_not_read_ahead_of() {
        let mut exchange = Exchange::begin();
        assert!(exchange.read().is_none());
        exchange.send(&[b'x'; GATHERED_LEN]);
        assert_eq!(exchange.read().unwrap().unwrap().len(), GATHERED_LEN);
        exchange.send(b"once");
        assert!(!exchange.gather());
        assert_eq!(exchange.sender.as_ref().unwrap().capacity(), CAPACITY - 1);
    }

    #[tokio::test]
    async fn a_reader_goes_on_alone_when_nobody_gathers_any_more() {
        let mut exchange = Exchange::begin();
        assert!(exchange.read().is_none());
        assert!(!exchange.gather());
        let Exchange { sender, mut body, receiver, reader, .. } = exchange;
        drop(receiver);
        assert_eq!(reader.0.load(Ordering::Relaxed), 1);
        let waker = Waker::from(Arc::clone(&reader));
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut body).poll_frame(&mut context).is_pending());
        drop(sender);
        assert_eq!(reader.0.load(Ordering::Relaxed), 2);
        assert!(matches!(Pin::new(&mut body).poll_frame(&mut context), Poll::Ready(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_learns_why_no_more_comes() {
        let mut exchange = Exchange::begin();
        assert!(exchange.read().is_none());
        for _ in 0..=ROOM / GATHERED_LEN {
            exchange.send(&[b'x'; GATHERED_LEN]);
        }
        let fault = std::iter::from_fn(|| exchange.read()).find_map(Result::err);
        assert!(matches!(fault, Some(Unread::NoRoom)), "{fault:?}");

        let mut exchange = Exchange::begin();
        assert!(exchange.read().is_none());
        assert!(!exchange.gather());
        tokio::time::advance(PATIENCE).await;
        assert!(exchange.gather());
        assert!(matches!(exchange.read(), Some(Err(Unread::TooSlow))));
    }
}
