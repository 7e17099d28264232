//! The relay put together: the one place that knows which adapter stands behind which port.

use std::sync::Arc;

use crate::auth::{KeySet, Verifier};
use crate::bot::BotSettings;
use crate::config::{Config, Database, Mode};
use crate::error::Error;
use crate::journal::memory::MemoryJournal;
use crate::lifecycle::Tasks;
use crate::limits::memory::MemoryLimits;
use crate::provider::Providers;
use crate::relay::Relay;
use crate::store::sqlite::SqliteStore;

/// Opens everything that `config` names.
///
/// # Errors
/// What cannot be opened, and what to do about it.
pub async fn build(config: Config) -> Result<Arc<Relay>, Error> {
    let store = open_store(&config)?;
    // The journal is in memory, so whatever was being written when the last process ended has no writer any more.
    let interrupted = store.interrupt_orphans().await?;
    if interrupted > 0 {
        tracing::warn!(
            generations = interrupted,
            "ended as interrupted what the last process left unfinished"
        );
    }
    let key_set = config.auth.jwks_url.map(KeySet::new).transpose().map_err(no_tls)?.map(Arc::new);
    let tasks = Tasks::default();
    if let Some(key_set) = &key_set {
        tasks.serve(Arc::clone(key_set).keep_fresh());
    }
    let key = |name: &str| {
        config.provider_keys.iter().find(|(known, _)| known == name).map(|(_, key)| key.clone())
    };
    let providers =
        Providers::new(&config.providers, config.upstream_allow, key).map_err(no_tls)?;
    Ok(Arc::new(Relay {
        verifier: Verifier::new(config.auth.shared_secret.as_ref(), key_set, config.auth.issuers),
        limits: Box::new(MemoryLimits::new(config.rate_limit, config.max_streams_per_user)),
        is_durable: config.database != Database::Memory,
        store: Box::new(store),
        journal: Box::new(MemoryJournal::default()),
        providers,
        times: config.times,
        tasks,
    }))
}

fn open_store(config: &Config) -> Result<SqliteStore, Error> {
    let demo_bot = (config.mode == Mode::Dev).then(BotSettings::demo);
    match &config.database {
        Database::Sqlite(path) => SqliteStore::open(path, demo_bot),
        Database::Memory => SqliteStore::open_in_memory(demo_bot),
    }
}

fn no_tls(error: impl std::fmt::Display) -> Error {
    Error::internal(format!("no TLS client: {error}. Install ca-certificates."))
}
