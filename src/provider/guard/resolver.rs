//! From a name to the addresses that are connected to, each of them checked: the HTTP client knows no other way.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use async_trait::async_trait;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use super::allow::UpstreamAllow;

/// How many names are looked up at once. A look-up holds a thread until the system gives up, half a minute if a name
/// server does not answer, and the same threads count tokens and assemble prompts.
const LOOKUPS_MAX: usize = 64;

/// How many of a name's addresses are tried: a name with a thousand must not make the relay knock a thousand times.
const ADDRESSES_TRIED_MAX: usize = 8;

/// Who knows what names resolve to.
#[async_trait]
pub(super) trait Lookup: Send + Sync + 'static {
    /// All addresses of the name, in the order in which they are to be tried.
    ///
    /// # Errors
    /// If there is none, or nobody answers.
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// As the system does it: its hosts file, its name servers.
pub(super) struct SystemLookup(Arc<Semaphore>);

impl Default for SystemLookup {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LOOKUPS_MAX)))
    }
}

#[async_trait]
impl Lookup for SystemLookup {
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let running = Arc::clone(&self.0).acquire_owned().await.map_err(io::Error::other)?;
        let name = name.to_owned();
        let look_up = move || {
            // Nobody may be waiting any more when the system gives up.
            let _running = running;
            let addresses = (name.as_str(), 0).to_socket_addrs()?;
            Ok(addresses.map(|address| address.ip()).collect())
        };
        tokio::task::spawn_blocking(look_up).await.map_err(io::Error::other)?
    }
}

/// Gives out a name's addresses if all of them may be connected to, and none otherwise.
pub(super) struct CheckedResolver {
    pub(super) allow: Arc<UpstreamAllow>,
    pub(super) lookup: Arc<dyn Lookup>,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (allow, lookup) = (Arc::clone(&self.allow), Arc::clone(&self.lookup));
        Box::pin(async move {
            let addresses = lookup.addresses(name.as_str()).await?;
            if addresses.is_empty() {
                return Err("the name has no address".into());
            }
            // One bad address among good ones is no slip: it is how names are made that pass a check and lead inside.
            for address in &addresses {
                allow.check(Some(name.as_str()), *address)?;
            }
            // Port 0 stands for the URL's own.
            let tried = addresses.into_iter().take(ADDRESSES_TRIED_MAX);
            Ok(Box::new(tried.map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}
