//! The relay as the spine and the faces see it: ports, and nothing of what stands behind them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::assembly::Assembly;
use crate::auth::Verifier;
use crate::journal::{Journal, Recorder};
use crate::lifecycle::Tasks;
use crate::limits::Limits;
use crate::outage::Outage;
use crate::outbox::Outbox;
use crate::provider::Providers;
use crate::seal::MasterKeys;
use crate::store::Store;

/// Everything that a request needs.
pub struct Relay {
    /// Who is asking.
    pub verifier: Verifier,
    /// How much they may ask for.
    pub limits: Arc<dyn Limits>,
    /// Where stories are.
    pub store: Box<dyn Store>,
    /// Whether the database answered when it was last asked, and when that was.
    pub store_health: tokio::sync::Mutex<Option<(Instant, bool)>>,
    /// Whether the database is away.
    pub outage: Outage,
    /// Where generations are while they run, and some time after.
    pub journal: Box<dyn Journal>,
    /// What makes the journal survive the process.
    pub recorder: Arc<Recorder>,
    /// Where finished answers wait for the database.
    pub outbox: Arc<dyn Outbox>,
    /// Notified when something was put there.
    pub outbox_filled: Notify,
    /// Who answers.
    pub providers: Providers,
    /// Whose prompt is being put together.
    pub assembly: Assembly,
    /// What users' own keys are sealed with; without them none are kept.
    pub master_keys: Option<MasterKeys>,
    /// How long things may take.
    pub times: Times,
    /// What shutdown waits for.
    pub tasks: Tasks,
    /// Whether what is saved survives the process.
    pub is_durable: bool,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Until the provider's first token. `RELAY_FIRST_TOKEN_TIMEOUT`.
    pub first_token: Duration,
    /// Between two tokens. `RELAY_IDLE_TIMEOUT`.
    pub idle: Duration,
    /// A whole generation. `RELAY_GENERATION_TIMEOUT`.
    pub generation: Duration,
    /// How long a generation runs with nobody following. `RELAY_DETACHED_GRACE`.
    pub detached_grace: Duration,
    /// What running generations get after SIGTERM. `RELAY_DRAIN`.
    pub drain: Duration,
}

/// What a generation may need beyond its own time to be saved, before its variant is read as interrupted.
const SAVING_TIME: Duration = Duration::from_secs(60);

impl Times {
    /// When a generation that begins at `now` must have been saved.
    #[must_use]
    pub fn expiry(&self, now: Timestamp) -> Timestamp {
        now.saturating_add(self.generation + SAVING_TIME).unwrap_or(Timestamp::MAX)
    }
}
