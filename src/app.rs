//! The relay put together: the one place that knows which adapter stands behind which port.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;
use uuid::Uuid;

use crate::assembly::Assembly;
use crate::auth::{KeySet, Verifier};
use crate::bot::BotSettings;
use crate::config::{Config, Data, Database, Mode};
use crate::error::{Code, Error};
use crate::id::call_id;
use crate::journal::file::JournalFile;
use crate::journal::memory::MemoryJournal;
use crate::journal::shared::{self as shared_journal, SharedJournal};
use crate::journal::{Journal, Recorder, Records};
use crate::lifecycle::Tasks;
use crate::limits::Limits;
use crate::limits::memory::MemoryLimits;
use crate::limits::shared::{self as shared_limits, SharedLimits};
use crate::limits::tokens::Ledger;
use crate::outage::Outage;
use crate::outbox_worker;
use crate::prompt;
use crate::provider::Providers;
use crate::recovery;
use crate::redis_client::Redis;
use crate::relay::Relay;
use crate::store::Store;
use crate::store::functions::FunctionStore;
use crate::store::functions::postgres::PostgresFunctions;
use crate::store::functions::postgrest::PostgrestFunctions;
use crate::store::sqlite::SqliteStore;

/// How long a start waits for the database's answer.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens everything that `config` names.
///
/// # Errors
/// What cannot be opened, and what to do about it.
pub async fn build(config: Config) -> Result<Arc<Relay>, Error> {
    let file = Arc::new(open_file(&config.data)?);
    tell_of_memory(&config);
    let store = open_store(&config)?;
    recover(&file).await?;
    tell_of_absence(&*store).await;
    if let Database::Postgres(url) = &config.database
        && url.trusts_anybody()
    {
        tracing::warn!(
            "the database's certificate is not checked: set sslmode=verify-full in RELAY_DATABASE_URL unless it is on this machine"
        );
    }
    // Half a second of work that would otherwise be the first reader's.
    tokio::task::spawn_blocking(prompt::load_vocabulary);
    let providers = open_providers(&config)?;
    let key_set = open_key_set(&config)?;
    let tasks = Tasks::default();
    if let Some(key_set) = &key_set {
        tasks.serve(Arc::clone(key_set).keep_fresh());
    }
    let instance = call_id();
    let redis = open_redis(&config)?.map(Arc::new);
    if let Some(redis) = &redis {
        let redis = Arc::clone(redis);
        tasks.serve(async move { redis.keep_connected().await });
    }
    let journal = open_journal(&config, &file, redis.clone(), instance).await?;
    let recorder = Recorder::new(Arc::clone(&file) as Arc<dyn Records>);
    let limits = open_limits(&config, &file, redis, instance);
    let relay = Arc::new(Relay {
        verifier: Verifier::new(config.auth.shared_secret.as_ref(), key_set, config.auth.issuers),
        limits,
        is_durable: !matches!(config.database, Database::Memory) && config.data != Data::Memory,
        recorder,
        outbox: file,
        outbox_filled: Notify::new(),
        store,
        store_health: tokio::sync::Mutex::default(),
        outage: Outage::default(),
        journal,
        providers,
        assembly: Assembly::default(),
        master_keys: config.master_keys,
        times: config.times,
        tasks,
    });
    if let Database::Sqlite(_) = config.database {
        // What was recorded is saved first, so that nobody sees an orphan where there is a text.
        outbox_worker::run_due(&relay).await?;
        interrupt_orphans(&*relay.store).await?;
    }
    let (recorder, tasks) = (Arc::clone(&relay.recorder), relay.tasks.clone());
    relay.tasks.serve(async move { tasks.fail(recorder.run().await) });
    let journal = Arc::clone(&relay);
    relay.tasks.serve(async move { journal.journal.run().await });
    let limits = Arc::clone(&relay.limits);
    let tasks = relay.tasks.clone();
    relay.tasks.serve(async move { tasks.fail(limits.run().await) });
    relay.tasks.serve(recovery::end_orphans(Arc::clone(&relay)));
    relay.tasks.serve(outbox_worker::run(Arc::clone(&relay)));
    Ok(relay)
}

/// How much longer than a generation may last what Redis has of it is kept: long enough for a relay to come back.
const LIVE_TIME_BEYOND: Duration = Duration::from_secs(60 * 60);

/// The file of the data folder that what must survive the process is kept in.
const JOURNAL_FILE: &str = "journal.db";

/// The Redis that instances share, not connected yet, if there is one.
pub(crate) fn open_redis(config: &Config) -> Result<Option<Redis>, Error> {
    let scripts = shared_journal::scripts().into_iter().chain(shared_limits::scripts());
    config.redis_url.as_ref().map(|url| Redis::new(url, scripts)).transpose()
}

/// The limits: in memory, with tokens in the journal's file, and shared with other instances if there is a Redis.
fn open_limits(
    config: &Config,
    file: &Arc<JournalFile>,
    redis: Option<Arc<Redis>>,
    instance: Uuid,
) -> Arc<dyn Limits> {
    let ledger = Arc::clone(file) as Arc<dyn Ledger>;
    let local = MemoryLimits::new(config.allowances, ledger);
    match redis {
        Some(redis) => Arc::new(SharedLimits::new(local, redis, instance)),
        None => Arc::new(local),
    }
}

/// The journal: in memory, and shared with other instances if there is a Redis.
async fn open_journal(
    config: &Config,
    file: &JournalFile,
    redis: Option<Arc<Redis>>,
    instance: Uuid,
) -> Result<Box<dyn Journal>, Error> {
    let Some(redis) = redis else { return Ok(Box::new(MemoryJournal::default())) };
    if matches!(config.database, Database::Sqlite(_) | Database::Memory) {
        tracing::warn!(
            "RELAY_REDIS_URL is for several relays before one database, and this one's database is its own"
        );
    }
    let predecessor = file.hand_over(instance).await?;
    let live_time = config.times.generation + LIVE_TIME_BEYOND;
    Ok(Box::new(SharedJournal::new(redis, instance, live_time, predecessor)))
}

fn open_file(data: &Data) -> Result<JournalFile, Error> {
    match data {
        Data::Folder(folder) => JournalFile::open(&folder.join(JOURNAL_FILE)),
        Data::Memory => JournalFile::open_in_memory(),
    }
}

/// Tries whether the journal's file of that folder can be opened, whether or not a relay has it. Returns whether it is there.
///
/// # Errors
/// With a message for the operator.
pub(crate) fn try_journal(folder: &Path) -> Result<bool, Error> {
    JournalFile::try_out(&folder.join(JOURNAL_FILE))
}

/// The journal's file of a relay that may be running, for an operator to look into.
///
/// # Errors
/// With a message for the operator, if there is none.
pub(crate) fn open_journal_beside(data: &Data) -> Result<JournalFile, Error> {
    match data {
        Data::Folder(folder) => JournalFile::open_beside(&folder.join(JOURNAL_FILE)),
        Data::Memory => Err(Error::new(
            Code::StoreUnavailable,
            "RELAY_DATA is memory: the outbox is in the relay's own and nobody else's.",
        )),
    }
}

/// Ends what the last process was writing. Its text is in the outbox then, and soon in the database.
async fn recover(file: &JournalFile) -> Result<(), Error> {
    let recovered = file.recover().await?;
    if recovered > 0 {
        tracing::warn!(
            generations = recovered,
            "ended as interrupted what the last process was writing"
        );
    }
    Ok(())
}

/// The store that `config` names. A file is opened; the others are called first when something is asked of them.
///
/// # Errors
/// What cannot be opened, and what to do about it.
pub(crate) fn open_store(config: &Config) -> Result<Box<dyn Store>, Error> {
    let demo_bot = (config.mode == Mode::Dev).then(BotSettings::demo);
    Ok(match &config.database {
        Database::Sqlite(path) => Box::new(SqliteStore::open(path, demo_bot)?),
        Database::Memory => Box::new(SqliteStore::open_in_memory(demo_bot)?),
        Database::Postgres(url) => {
            Box::new(FunctionStore::new(PostgresFunctions::new(url)?, demo_bot))
        }
        Database::Supabase { rest_url, key } => {
            let functions = PostgrestFunctions::new(rest_url, key.clone())?;
            Box::new(FunctionStore::new(functions, demo_bot))
        }
    })
}

/// Whatever the last process had begun and not come to record has no writer, and no text.
async fn interrupt_orphans(store: &dyn Store) -> Result<(), Error> {
    let interrupted = store.interrupt_orphans().await?;
    if interrupted > 0 {
        tracing::warn!(
            generations = interrupted,
            "ended as interrupted what the last process left unfinished"
        );
    }
    Ok(())
}

/// What is asked for is done, but nobody should learn what it means when it is too late.
fn tell_of_memory(config: &Config) {
    if config.data != Data::Memory {
        return;
    }
    let lost = match config.database {
        Database::Memory => "all stories are lost",
        _ => "what is being written and what waits for the database is lost",
    };
    tracing::warn!("RELAY_DATA is memory: when this process ends, {lost}");
}

/// A database that is away, or not set up, keeps nobody from starting: it may come later. But the operator learns of it
/// before the first reader does.
async fn tell_of_absence(store: &dyn Store) {
    match timeout(PING_TIMEOUT, store.ping()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the database cannot be used yet"),
        Err(_) => tracing::warn!("the database does not answer yet"),
    }
}

/// The providers, with the operator's keys.
pub(crate) fn open_providers(config: &Config) -> Result<Providers, Error> {
    let key = |name: &str| {
        config.provider_keys.iter().find(|(known, _)| known == name).map(|(_, key)| key.clone())
    };
    Providers::new(&config.providers, config.upstream_allow.clone(), key).map_err(no_tls)
}

/// The project's key set, still empty, if the project has one.
pub(crate) fn open_key_set(config: &Config) -> Result<Option<Arc<KeySet>>, Error> {
    let key_set = config.auth.jwks_url.clone().map(KeySet::new).transpose().map_err(no_tls)?;
    Ok(key_set.map(Arc::new))
}

fn no_tls(error: impl std::fmt::Display) -> Error {
    Error::internal(format!("no TLS client: {error}. Install ca-certificates."))
}
