//! `storytellr-relay check`: tries every part that `serve` would use, and says of each that it works or what to do.

use std::io::Write;
use std::path::Path;

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use crate::auth::{Principal, Verifier};
use crate::config::{Config, Data, Database, Mode};
use crate::error::{Code, Error};
use crate::provider::KeyCheck;
use crate::store::sqlite::SqliteStore;
use crate::store::{Cursor, Store};
use crate::{app, clock, dev};

/// How long a token that is made for the check is valid.
const TOKEN_TIME: std::time::Duration = std::time::Duration::from_secs(60);

/// What was found, a line each, written as it is found.
struct Findings<W> {
    out: W,
    failed: bool,
}

impl<W: Write> Findings<W> {
    fn ok(&mut self, part: &str, what: impl AsRef<str>) {
        self.line("ok", part, what.as_ref());
    }

    /// Nothing is wrong, but not everything could be tried.
    fn note(&mut self, part: &str, what: impl AsRef<str>) {
        self.line("note", part, what.as_ref());
    }

    fn wrong(&mut self, part: &str, what: impl AsRef<str>) {
        self.failed = true;
        self.line("WRONG", part, what.as_ref());
    }

    fn of<T>(&mut self, part: &str, result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| self.wrong(part, error.to_operator())).ok()
    }

    fn line(&mut self, state: &str, part: &str, what: &str) {
        // If the output is gone there is nobody left to tell.
        let _written = writeln!(self.out, "{state:<6}{part:<11}{}", what.trim_end());
    }
}

/// Tries everything that the settings name and writes a line for each part to `out`. `token` is a user's access token to
/// try; without one, one is made if there is a secret to sign it with. Returns whether all is well.
pub async fn check(
    lookup: impl Fn(&str) -> Option<String>,
    token: Option<&SecretString>,
    out: impl Write,
) -> bool {
    let mut findings = Findings { out, failed: false };
    match Config::from_env(Mode::Serve, lookup) {
        Ok(config) => {
            findings.ok("settings", "all are readable");
            check_parts(&config, token, &mut findings).await;
        }
        Err(faults) => faults.iter().for_each(|fault| findings.wrong("settings", fault)),
    }
    !findings.failed
}

async fn check_parts<W: Write>(
    config: &Config,
    token: Option<&SecretString>,
    findings: &mut Findings<W>,
) {
    let verifier = check_keys(config, findings).await;
    check_data(config, findings);
    let store = check_store(config, findings).await;
    check_redis(config, findings).await;
    if let Some(verifier) = verifier {
        check_token(config, &verifier, store.as_deref(), token, findings).await;
    }
    check_master_keys(config, findings);
    check_providers(config, findings).await;
}

async fn check_keys<W: Write>(config: &Config, findings: &mut Findings<W>) -> Option<Verifier> {
    if config.auth.shared_secret.is_some() {
        findings.ok("secret", "SUPABASE_JWT_SECRET is long enough");
    }
    let key_set = findings.of("key set", app::open_key_set(config))?;
    if let Some(key_set) = &key_set {
        match key_set.fetch_once().await {
            Ok(0) => findings.note("key set", format!(
                "{} has no key: right only if the project still signs with its JWT secret alone",
                key_set.url()
            )),
            Ok(len) => findings.ok("key set", format!("{len} usable at {}", key_set.url())),
            Err(reason) => findings.wrong("key set", format!(
                "{} cannot be fetched: {reason}. Check SUPABASE_URL, or SUPABASE_JWKS_URL.",
                key_set.url()
            )),
        }
    }
    Some(Verifier::new(config.auth.shared_secret.as_ref(), key_set, config.auth.issuers.clone()))
}

fn check_data<W: Write>(config: &Config, findings: &mut Findings<W>) {
    match &config.data {
        Data::Folder(folder) => {
            if let Some(is_there) = findings.of("data", app::try_journal(folder)) {
                findings.ok("data", format!("the journal in {}", found(folder, is_there)));
            }
        }
        Data::Memory => findings
            .note("data", "RELAY_DATA is memory: what is being written is gone with the process"),
    }
}

fn found(path: &Path, is_there: bool) -> String {
    let what =
        if is_there { "is there, and can be written" } else { "will be made at the first start" };
    format!("{} {what}", path.display())
}

async fn check_store<W: Write>(
    config: &Config,
    findings: &mut Findings<W>,
) -> Option<Box<dyn Store>> {
    let what = match &config.database {
        Database::Memory => {
            findings.note("database", "RELAY_DATA is memory: nothing is kept");
            return None;
        }
        Database::Sqlite(path) => {
            // Not kept open: it is for the relay that runs.
            let is_there = findings.of("database", SqliteStore::try_out(path))?;
            findings.ok("database", found(path, is_there));
            return None;
        }
        Database::Postgres(url) => {
            if url.trusts_anybody() {
                findings.note(
                    "database",
                    "its certificate is not checked: set sslmode=verify-full unless it is on this machine",
                );
            }
            format!("Postgres at {}", url.hosts())
        }
        Database::Supabase { rest_url, .. } => rest_url.to_string(),
    };
    let store = findings.of("database", app::open_store(config))?;
    findings.of("database", store.ping().await)?;
    findings.ok("database", format!("{what} answers, and fits this relay"));
    Some(store)
}

async fn check_redis<W: Write>(config: &Config, findings: &mut Findings<W>) {
    let Some(redis) = findings.of("redis", app::open_redis(config)).flatten() else { return };
    match redis.try_once().await {
        Ok(()) => findings.ok("redis", "it answers, and takes what it is told"),
        Err(error) => findings.wrong(
            "redis",
            format!(
                "{error}. The relay starts without it, and reaches no other. Check RELAY_REDIS_URL."
            ),
        ),
    }
}

async fn check_token<W: Write>(
    config: &Config,
    verifier: &Verifier,
    store: Option<&dyn Store>,
    token: Option<&SecretString>,
    findings: &mut Findings<W>,
) {
    let is_made = token.is_none();
    let made;
    let token = match (token, &config.auth.shared_secret) {
        (Some(token), _) => token.expose_secret(),
        (None, Some(secret)) => {
            let times = (clock::now(), TOKEN_TIME);
            let Some(token) =
                findings.of("token", dev::token(config, secret, Uuid::max(), false, times))
            else {
                return;
            };
            made = token;
            &made
        }
        (None, None) => {
            findings.note("token", "not tried: give a user's with --token");
            return;
        }
    };
    let Some(caller) = findings.of("token", verifier.verify(token, clock::now()).await) else {
        return;
    };
    findings.ok("token", accepted(&caller, clock::now()));
    if let Some(store) = store {
        let cursor = Cursor { after: None, limit: 1 };
        match store.list_bots(&caller, &cursor).await {
            Ok(_) => findings.ok("token", "the database accepts it too"),
            Err(error) if error.code() == Code::InvalidToken && is_made => findings.wrong(
                "token",
                format!(
                    "the database does not know SUPABASE_JWT_SECRET: it is not the project's ({})",
                    error.to_operator()
                ),
            ),
            Err(error) => findings.wrong("token", error.to_operator()),
        }
    }
}

fn accepted(caller: &Principal, now: Timestamp) -> String {
    let seconds = caller.expires_at().duration_since(now).as_secs();
    format!("accepted, of user {}, for another {seconds} s", caller.user())
}

fn check_master_keys<W: Write>(config: &Config, findings: &mut Findings<W>) {
    let Some(keys) = &config.master_keys else {
        findings.note(
            "sealing",
            "users cannot keep keys of their own: set RELAY_MASTER_KEYS, like k1:$(openssl rand -base64 32)",
        );
        return;
    };
    let mut ids = keys.ids();
    let newest = ids.next().unwrap_or_default();
    let older: Vec<_> = ids.collect();
    findings.ok("sealing", match older.as_slice() {
        [] => format!("users' keys are sealed under the master key `{newest}`"),
        older => format!(
            "users' keys are sealed under the master key `{newest}`, and opened under {} as well",
            older.join(", ")
        ),
    });
}

async fn check_providers<W: Write>(config: &Config, findings: &mut Findings<W>) {
    let Some(providers) = findings.of("providers", app::open_providers(config)) else { return };
    let checks = providers.check_keys().await;
    if checks.is_empty() {
        findings.note("providers", "no provider has a key: set <PROVIDER>_API_KEY");
    }
    for (name, check) in checks {
        match check {
            KeyCheck::Accepted => findings.ok("provider", format!("{name} accepts the relay")),
            KeyCheck::Untried => {
                findings.note(
                    "provider",
                    format!("{name} has a key, which cannot be tried for nothing"),
                );
            }
            KeyCheck::Unclear(reason) => findings.note("provider", format!("{name}: {reason}")),
            KeyCheck::Failed(reason) => findings.wrong("provider", format!("{name}: {reason}")),
        }
    }
}
