//! What has been written and may still be lost, until its disk says that it is safe.
//!
//! The flush is what takes longest of a write. Whoever needs to know only what was written goes on meanwhile, and waits
//! before anybody else is told.

use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;

use crate::error::Error;

/// The end of a write.
#[must_use = "what was written may still be lost"]
pub struct Commit(Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>);

impl Commit {
    /// A write that is safe when `committed` says so.
    pub fn new(committed: impl Future<Output = Result<(), Error>> + Send + 'static) -> Self {
        Self(Box::pin(committed))
    }

    /// A write that is safe already.
    pub fn done() -> Self {
        Self::new(ready(Ok(())))
    }

    /// Returns when what was written is safe.
    ///
    /// # Errors
    /// Why it is not, and need not be there.
    pub async fn wait(self) -> Result<(), Error> {
        self.0.await
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Commit")
    }
}
