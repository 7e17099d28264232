//! Settings: read once from the environment, into types that cannot be wrong.
//!
//! [`Config::from_env`] takes a lookup and not the environment, so tests need no process of their own. Every fault is
//! found before any is reported, because fixing settings one restart at a time is how evenings are lost.

mod parse;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use crate::auth::{Issuers, SECRET_LEN_MIN, SharedSecret};
use crate::http::{Origins, Proxies};
use crate::limits::{Allowance, Allowances, Rate};
use crate::provider::{Added, UpstreamAllow, key_variable, known_names};
use crate::relay::Times;
use crate::seal::MasterKeys;
use crate::store::functions::postgres_url::PostgresUrl;
use parse::Reader;

/// What the relay is started as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// On a developer's machine: nothing has to be set.
    Dev,
    /// For users.
    Serve,
}

/// All settings.
#[derive(Debug)]
pub struct Config {
    /// What the relay is started as.
    pub mode: Mode,
    /// Where it listens. `RELAY_LISTEN`.
    pub listen: SocketAddr,
    /// Where it keeps what must survive it. `RELAY_DATA`.
    pub data: Data,
    /// Where stories are. `RELAY_DATABASE_URL`, or `SUPABASE_URL`, `SUPABASE_REST_URL` and `SUPABASE_PUBLISHABLE_KEY`.
    pub database: Database,
    /// Who signs access tokens. `SUPABASE_JWT_SECRET`, `SUPABASE_JWKS_URL`,
    /// `RELAY_JWT_ISSUERS`, `SUPABASE_URL`.
    pub auth: Auth,
    /// Which web pages may call. `RELAY_CORS_ORIGINS`.
    pub origins: Origins,
    /// The operator's own providers. `RELAY_PROVIDERS`.
    pub providers: Vec<Added>,
    /// The operator's keys, by provider. `<PROVIDER>_API_KEY`.
    pub provider_keys: Vec<(String, SecretString)>,
    /// What users' own keys are sealed with, if it is set; `dev` makes one in its data folder otherwise.
    /// `RELAY_MASTER_KEYS`.
    pub master_keys: Option<MasterKeys>,
    /// What `custom` addresses may reach. `RELAY_UPSTREAM_ALLOW`.
    pub upstream_allow: UpstreamAllow,
    /// What everybody may ask for. `RELAY_RATE_LIMIT`, `RELAY_MAX_STREAMS_PER_USER`, `RELAY_TOKENS_PER_DAY`, the same of
    /// anonymous users, and `RELAY_ADDRESS_RATE_LIMIT`.
    pub allowances: Allowances,
    /// Who says truly for whom they ask. `RELAY_TRUSTED_PROXIES`.
    pub trusted_proxies: Proxies,
    /// How long things may take.
    pub times: Times,
    /// The Redis that several instances share.
    pub redis_url: Option<SecretString>,
    /// Whether a crash may leave a copy of the process's memory, with all keys in it. `RELAY_CORE_DUMPS`.
    pub core_dumps: bool,
}

/// Where the relay keeps what must survive it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// In this folder.
    Folder(PathBuf),
    /// Nowhere: all is gone with the process.
    Memory,
}

/// Where stories are.
#[derive(Debug, Clone)]
pub enum Database {
    /// In this SQLite file.
    Sqlite(PathBuf),
    /// In memory.
    Memory,
    /// In this Postgres database.
    Postgres(Box<PostgresUrl>),
    /// In a Supabase project, through its PostgREST.
    Supabase {
        /// Where that is.
        rest_url: Url,
        /// The publishable key; absent where no gateway asks for one.
        key: Option<SecretString>,
    },
}

/// Who signs access tokens.
#[derive(Debug)]
pub struct Auth {
    /// The shared secret, if it is set; `dev` makes one in its data folder otherwise.
    pub shared_secret: Option<SharedSecret>,
    /// Where the project's public keys are.
    pub jwks_url: Option<Url>,
    /// Whose tokens are accepted.
    pub issuers: Issuers,
}

/// Settings that are wrong, all of them.
#[derive(Debug, PartialEq, Eq)]
pub struct Faults(Vec<String>);

impl Faults {
    /// Each of them, a sentence that says what to do.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "These settings are wrong:")?;
        self.0.iter().try_for_each(|fault| writeln!(f, "  - {fault}"))
    }
}

impl std::error::Error for Faults {}

impl Config {
    /// Reads all settings.
    ///
    /// # Errors
    /// Every setting that is wrong or missing.
    pub fn from_env(mode: Mode, lookup: impl Fn(&str) -> Option<String>) -> Result<Self, Faults> {
        let mut reader = Reader::new(&lookup);
        let data = reader.data();
        let database = reader.database(&data);
        let providers = reader.providers();
        let config = Self {
            mode,
            listen: reader.parsed(
                "RELAY_LISTEN",
                default_listen(mode),
                "an address like 127.0.0.1:8080",
            ),
            auth: auth(mode, &mut reader),
            origins: reader.origins(mode),
            provider_keys: provider_keys(&providers, &lookup),
            providers,
            master_keys: reader.master_keys(),
            upstream_allow: reader.upstream_allow(),
            allowances: allowances(&mut reader),
            trusted_proxies: reader.trusted_proxies(),
            times: times(&mut reader),
            redis_url: reader.redis_url(),
            core_dumps: reader.parsed("RELAY_CORE_DUMPS", false, "true or false"),
            data,
            database,
        };
        if reader.faults.is_empty() { Ok(config) } else { Err(Faults(reader.faults)) }
    }
}

impl Config {
    /// The one setting that `outbox` needs.
    pub fn data(lookup: impl Fn(&str) -> Option<String>) -> Data {
        Reader::new(&lookup).data()
    }

    /// The one setting that `migrate` needs.
    ///
    /// # Errors
    /// If it is not the address of a Postgres database.
    pub fn postgres_url(lookup: impl Fn(&str) -> Option<String>) -> Result<PostgresUrl, Faults> {
        let mut reader = Reader::new(&lookup);
        match reader.database(&Data::Memory) {
            Database::Postgres(url) => Ok(*url),
            _ if !reader.faults.is_empty() => Err(Faults(reader.faults)),
            Database::Sqlite(_) | Database::Memory | Database::Supabase { .. } => {
                reader.faults.push("RELAY_DATABASE_URL must be the address of a Postgres database to migrate, like postgres://user:password@host:5432/database. A SQLite file is brought up to date when it is opened.".to_owned());
                Err(Faults(reader.faults))
            }
        }
    }
}

fn default_listen(mode: Mode) -> SocketAddr {
    match mode {
        Mode::Dev => SocketAddr::from(([127, 0, 0, 1], 8080)),
        Mode::Serve => SocketAddr::from(([0, 0, 0, 0], 8080)),
    }
}

fn allowances(reader: &mut Reader<'_>) -> Allowances {
    let a_minute = |requests| Rate { requests, window: Duration::from_secs(60) };
    let users = Allowance {
        rate: reader.rate("RELAY_RATE_LIMIT", a_minute(60)),
        streams: reader.at_least_one("RELAY_MAX_STREAMS_PER_USER", 4),
        tokens_per_day: reader.tokens("RELAY_TOKENS_PER_DAY", None),
    };
    // Half of it, unless the operator knows better: they can read and write, and an account more costs nothing.
    let half_rate = Rate { requests: users.rate.requests.div_ceil(2), ..users.rate };
    let anonymous = Allowance {
        rate: reader.rate("RELAY_ANONYMOUS_RATE_LIMIT", half_rate),
        streams: reader
            .at_least_one("RELAY_ANONYMOUS_MAX_STREAMS_PER_USER", users.streams.div_ceil(2)),
        tokens_per_day: reader.tokens(
            "RELAY_ANONYMOUS_TOKENS_PER_DAY",
            users.tokens_per_day.map(|tokens| tokens.div_ceil(2)),
        ),
    };
    // Ten readers behind one address, each as busy as they may be.
    Allowances { users, anonymous, address: reader.rate("RELAY_ADDRESS_RATE_LIMIT", a_minute(600)) }
}

fn times(reader: &mut Reader<'_>) -> Times {
    let mut time = |name, default| reader.duration(name, Duration::from_secs(default));
    Times {
        first_token: time("RELAY_FIRST_TOKEN_TIMEOUT", 60),
        idle: time("RELAY_IDLE_TIMEOUT", 60),
        generation: time("RELAY_GENERATION_TIMEOUT", 15 * 60),
        detached_grace: time("RELAY_DETACHED_GRACE", 120),
        drain: time("RELAY_DRAIN", 30),
    }
}

fn auth(mode: Mode, reader: &mut Reader<'_>) -> Auth {
    let shared_secret = reader.get("SUPABASE_JWT_SECRET").and_then(|secret| {
        let secret = SharedSecret::new(&secret);
        if secret.is_none() {
            reader
                .faults
                .push(format!("SUPABASE_JWT_SECRET must have at least {SECRET_LEN_MIN} bytes."));
        }
        secret
    });
    let jwks_url = reader.jwks_url();
    if mode == Mode::Serve && reader.get("SUPABASE_JWT_SECRET").is_none() && jwks_url.is_none() {
        reader.faults.push(
            "There is nothing to check access tokens with. Set SUPABASE_URL, whose public keys are fetched, or \
             SUPABASE_JWT_SECRET, the project's JWT secret, if its tokens are still signed with that."
                .to_owned(),
        );
    }
    let of_project =
        reader.get("SUPABASE_URL").map(|url| format!("{}/auth/v1", url.trim_end_matches('/')));
    let issuers = match (reader.list("RELAY_JWT_ISSUERS"), of_project) {
        (issuers, _) if !issuers.is_empty() => Issuers::Only(issuers),
        (_, Some(issuer)) => Issuers::Only(vec![issuer]),
        _ if mode == Mode::Dev => Issuers::Any,
        _ => {
            reader.faults.push("RELAY_JWT_ISSUERS is not set, nor is SUPABASE_URL. Set either: it says whose access tokens are accepted.".to_owned());
            Issuers::Only(Vec::new())
        }
    };
    Auth { shared_secret, jwks_url, issuers }
}

/// The operator's key of every provider that has one.
fn provider_keys(
    added: &[Added],
    lookup: impl Fn(&str) -> Option<String>,
) -> Vec<(String, SecretString)> {
    let added = added.iter().map(|added| added.name.as_str());
    let key = |name: &str| {
        let key = lookup(&key_variable(name))
            .map(|key| key.trim().to_owned())
            .filter(|key| !key.is_empty());
        key.map(|key| (name.to_owned(), SecretString::from(key)))
    };
    known_names().chain(added).filter_map(key).collect()
}

/// A time like `30s`, as settings and arguments have it.
///
/// # Errors
/// A sentence that says what a time looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse::duration(text)
        .ok_or_else(|| "must be a time like 30s, 15m, 2h or 500ms, of a month at most".to_owned())
}

#[cfg(test)]
mod tests;
