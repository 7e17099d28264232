//! The database contract over functions of the database: what is common to all ways of calling them.
//!
//! `supabase/migrations/` has the functions. A way of calling them implements [`Functions`] (through PostgREST, straight
//! to Postgres) and knows nothing of stories; this knows nothing of connections.

mod fault;
pub mod postgres;
pub mod postgres_url;
pub mod postgrest;
mod store;
mod wire;

use async_trait::async_trait;
use secrecy::SecretString;

use crate::auth::Principal;

pub use fault::Fault;
pub use store::FunctionStore;

/// The version of the contract that this relay speaks: what `relay_version` has to answer.
pub const CONTRACT_VERSION: u32 = 1;

/// A way of calling the functions of the contract. Each call is one transaction.
#[async_trait]
pub trait Functions: Send + Sync + 'static {
    /// Calls `function` with the JSON `arguments` as `caller`, or as nobody in particular, and returns its JSON. Takes
    /// at most some ten seconds.
    ///
    /// # Errors
    /// Why there is no answer, and whether the call may have been carried out all the same.
    async fn call(
        &self,
        caller: Option<&Principal>,
        function: &'static str,
        arguments: &SecretString,
    ) -> Result<Vec<u8>, Fault>;
}
