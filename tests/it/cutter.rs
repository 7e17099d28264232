//! What stands between the relay and its database, and breaks connections when a test asks for it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::database::Database;
use crate::provider::Provider;
use crate::relay::{TestRelay, User};

/// A relay whose way to Postgres can be cut, with a user and their story.
pub(crate) struct Cuttable {
    pub(crate) cutter: Cutter,
    pub(crate) relay: TestRelay,
    pub(crate) user: User,
    pub(crate) story: i64,
}

impl Cuttable {
    pub(crate) async fn start(provider: &Provider) -> Self {
        let (cutter, url) = Cutter::before_postgres().await;
        let relay = TestRelay::with(provider).env("RELAY_DATABASE_URL", url).start().await;
        let user = relay.user().await;
        let story = user.conversation().await;
        Self { cutter, relay, user, story }
    }
}

/// A proxy that passes bytes on until it is told otherwise.
pub(crate) struct Cutter {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: u16,
    loss: Mutex<Option<Loss>>,
    cut: Mutex<Option<Cut>>,
    cuts: AtomicUsize,
    is_shut: watch::Sender<bool>,
}

/// Answers that are to be lost.
struct Loss {
    /// Asked by a request with this word in it.
    request: &'static str,
    /// Lost once this word has come.
    answer: &'static str,
    times: usize,
}

/// A request that is to be cut off.
struct Cut {
    /// It has this word in it.
    request: &'static str,
    /// So many bytes of it are let through.
    len: usize,
}

impl Cutter {
    /// One before what listens on that port of this machine.
    pub(crate) async fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let is_shut = watch::Sender::new(false);
        let shared = Arc::new(Shared {
            server,
            loss: Mutex::default(),
            cut: Mutex::default(),
            cuts: AtomicUsize::new(0),
            is_shut,
        });
        let cutter = Self { address, shared: Arc::clone(&shared) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, Arc::clone(&shared)));
            }
        });
        cutter
    }

    /// One before the database that tests share, and the address that a relay has to go by.
    pub(crate) async fn before_postgres() -> (Self, String) {
        let database = Database::shared().await;
        let cutter = Self::before(database.port()).await;
        let url = database.url_at("relay", cutter.port());
        (cutter, url)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Lets the next requests that have `request` in them through, waits until their answers have come as far as `answer`,
    /// and breaks their connections then.
    pub(crate) fn lose_answers(&self, request: &'static str, answer: &'static str, times: usize) {
        *self.shared.loss.lock().unwrap() = Some(Loss { request, answer, times });
    }

    /// How many answers are still to be lost.
    pub(crate) fn to_be_lost(&self) -> usize {
        self.shared.loss.lock().unwrap().as_ref().map_or(0, |loss| loss.times)
    }

    /// Lets only so many bytes of the next request that has `request` in it through, and breaks its connection then. A
    /// request that is not longer is let through.
    pub(crate) fn cut_request(&self, request: &'static str, len: usize) {
        *self.shared.cut.lock().unwrap() = Some(Cut { request, len });
    }

    /// How many requests were cut off.
    pub(crate) fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::Relaxed)
    }

    /// Breaks every connection, and every new one at once.
    pub(crate) fn shut(&self) {
        self.shared.is_shut.send_replace(true);
    }

    /// Passes bytes on again.
    pub(crate) fn open(&self) {
        self.shared.is_shut.send_replace(false);
    }
}

impl Shared {
    /// The word after which the answer to this request is to be lost.
    fn loss_of(&self, request: &[u8]) -> Option<&'static str> {
        let mut loss = self.loss.lock().unwrap();
        let loss =
            loss.as_mut().filter(|loss| loss.times > 0 && contains(request, loss.request))?;
        loss.times -= 1;
        Some(loss.answer)
    }
}

impl Shared {
    /// How much of this request is to be let through.
    fn cut_of(&self, request: &[u8]) -> Option<usize> {
        let mut cut = self.cut.lock().unwrap();
        let cut = cut.take_if(|cut| contains(request, cut.request))?;
        let is_cut = cut.len < request.len();
        self.cuts.fetch_add(usize::from(is_cut), Ordering::Relaxed);
        is_cut.then_some(cut.len)
    }
}

async fn pass(mut client: TcpStream, shared: Arc<Shared>) {
    let mut is_shut = shared.is_shut.subscribe();
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", shared.server)).await else { return };
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    let mut lost_after = None;
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            () = async { drop(is_shut.wait_for(|is_shut| *is_shut).await) } => return,
            read = client.read(&mut up) => {
                let Some(len) = read.ok().filter(|len| *len > 0) else { return };
                sent.extend_from_slice(&up[..len]);
                if let Some(cut) = shared.cut_of(&up[..len]) {
                    drop(server.write_all(&up[..cut]).await);
                    return;
                }
                if lost_after.is_none() {
                    lost_after = shared.loss_of(&sent);
                    received.clear();
                }
                if server.write_all(&up[..len]).await.is_err() { return }
            }
            read = server.read(&mut down) => {
                let Some(len) = read.ok().filter(|len| *len > 0) else { return };
                received.extend_from_slice(&down[..len]);
                if lost_after.is_some_and(|word| contains(&received, word)) { return }
                sent.clear();
                if lost_after.is_none() && client.write_all(&down[..len]).await.is_err() { return }
            }
        }
    }
}

fn contains(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}
