//! For operators and for the first evening: is it alive, is it ready, does my token work.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use super::extract::Parameters;
use crate::auth::Principal;
use crate::bot::Bot;
use crate::error::{Code, Error};
use crate::id::{BotId, UserId};
use crate::journal::Reach;
use crate::outage;
use crate::outbox::Room;
use crate::relay::Relay;

/// How long the database may take to answer before the relay counts as not ready; load balancers ask every few seconds.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// `GET /healthz`: the process answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// How long the database's answer is remembered.
const READY_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Serialize)]
pub(super) struct Readiness {
    status: &'static str,
    store: &'static str,
    /// Whether there is anything to check a token with.
    keys: &'static str,
    /// Whether there is room for answers that the database does not take.
    outbox: &'static str,
    /// Whether several instances see each other's generations; absent where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<&'static str>,
    /// Whether what is saved survives the process.
    durable: bool,
}

/// `GET /readyz`: new work is welcome.
pub(super) async fn readyz(State(relay): State<Arc<Relay>>) -> (StatusCode, Json<Readiness>) {
    let is_store_up = is_store_up(&relay).await;
    let has_keys = relay.verifier.is_ready();
    let (reach, room) = (relay.journal.reach(), relay.outbox.room());
    let is_ready = is_store_up && has_keys && room == Room::Enough;
    let status = match (relay.tasks.is_draining(), is_ready) {
        (true, _) => "draining",
        (false, false) => "not ready",
        (false, true) if reach == Some(Reach::Degraded) => "degraded",
        (false, true) => "ready",
    };
    let readiness = Readiness {
        status,
        store: if is_store_up { "up" } else { "down" },
        keys: if has_keys { "up" } else { "missing" },
        outbox: match room {
            Room::Enough => "up",
            Room::Full => "full",
            Room::DiskFull => "disk full",
        },
        redis: reach.map(|reach| match reach {
            Reach::Everywhere => "up",
            Reach::Degraded => "down",
        }),
        durable: relay.is_durable,
    };
    let code = match status {
        // By itself the relay does all but reach what others write.
        "ready" | "degraded" => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, Json(readiness))
}

/// Asks the database, or remembers: everybody may call this, and a flood of calls must not become one of queries.
async fn is_store_up(relay: &Relay) -> bool {
    let mut health = relay.store_health.lock().await;
    if let Some((at, is_up)) = *health
        && at.elapsed() < READY_INTERVAL
    {
        return is_up;
    }
    let ping = async {
        timeout(READY_TIMEOUT, relay.store.ping())
            .await
            .unwrap_or_else(|_| Err(outage::no_answer()))
    };
    let pinged = relay.outage.observe(ping).await;
    if let Err(error) = &pinged
        && error.code() != Code::StoreUnavailable
    {
        tracing::warn!(%error, "not ready: the database cannot be used");
    }
    let is_up = pinged.is_ok();
    *health = Some((Instant::now(), is_up));
    is_up
}

#[derive(Debug, Deserialize)]
pub(super) struct AuthTestParameters {
    bot_id: Option<BotId>,
}

#[derive(Debug, Serialize)]
pub(super) struct AuthTest {
    user_id: UserId,
    bot: Option<Bot>,
}

/// `GET /auth/test`: does my token work, is this bot mine.
pub(super) async fn auth_test(
    State(relay): State<Arc<Relay>>,
    caller: Principal,
    Parameters(AuthTestParameters { bot_id }): Parameters<AuthTestParameters>,
) -> Result<Json<AuthTest>, Error> {
    let bot = match bot_id {
        Some(bot_id) => Some(relay.store.read_bot(&caller, bot_id).await?),
        None => None,
    };
    Ok(Json(AuthTest { user_id: caller.user(), bot }))
}
