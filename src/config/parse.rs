//! From the text of one variable to a value, or to a sentence that says what it must look like.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ipnet::IpNet;
use secrecy::SecretString;
use url::{Host, Url};

use super::{Data, Database, Mode};
use crate::http::{Origins, Proxies, is_loopback};
use crate::limits::Rate;
use crate::provider::{Added, UpstreamAllow};
use crate::seal::MasterKeys;

/// The file of the SQLite store in the data folder.
const DATABASE_FILE: &str = "relay.db";

/// The longest time that can be set: a month. Longer ones are slips of the keyboard.
const DURATION_MAX: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// The most tokens a day that can be set. More are slips of the keyboard.
const TOKENS_MAX: u64 = 1_000_000_000;

/// Reads variables and collects what is wrong with them.
pub(super) struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    pub(super) faults: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { lookup, faults: Vec::new() }
    }

    /// The variable's text. Empty counts as not set, because that is how deployment tools unset things.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// The parts between commas.
    pub(super) fn list(&self, name: &str) -> Vec<String> {
        let value = self.get(name).unwrap_or_default();
        value.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    pub(super) fn parsed<T: FromStr>(&mut self, name: &str, default: T, wanted: &str) -> T {
        self.read(name, default, wanted, |value| value.parse().ok())
    }

    pub(super) fn at_least_one(&mut self, name: &str, default: usize) -> usize {
        self.read(name, default, "a whole number from 1 up", |value| {
            value.parse().ok().filter(|number| *number > 0)
        })
    }

    /// A number of tokens that every book can hold.
    pub(super) fn tokens(&mut self, name: &str, default: Option<u64>) -> Option<u64> {
        let wanted = "a whole number from 1 up, of a billion at most";
        self.read(name, default, wanted, |value| {
            value.parse().ok().filter(|tokens| (1..=TOKENS_MAX).contains(tokens)).map(Some)
        })
    }

    pub(super) fn duration(&mut self, name: &str, default: Duration) -> Duration {
        self.read(name, default, "a time like 30s, 15m, 2h or 500ms, of a month at most", duration)
    }

    pub(super) fn rate(&mut self, name: &str, default: Rate) -> Rate {
        self.read(name, default, "a rate like 60/min, 10/s or 1000/h", rate)
    }

    pub(super) fn data(&self) -> Data {
        match self.get("RELAY_DATA").as_deref() {
            None => Data::Folder(PathBuf::from("./relay-data")),
            Some("memory") => Data::Memory,
            Some(folder) => Data::Folder(PathBuf::from(folder)),
        }
    }

    pub(super) fn database(&mut self, data: &Data) -> Database {
        let default = match data {
            Data::Folder(folder) => Database::Sqlite(folder.join(DATABASE_FILE)),
            Data::Memory => Database::Memory,
        };
        let Some(url) = self.get("RELAY_DATABASE_URL") else {
            return self.supabase().unwrap_or(default);
        };
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            match url.parse() {
                Ok(url) => return Database::Postgres(Box::new(url)),
                Err(error) => self.faults.push(format!("RELAY_DATABASE_URL is wrong: it {error}.")),
            }
            return default;
        }
        match url.strip_prefix("sqlite:") {
            Some(path) if !path.is_empty() => Database::Sqlite(Path::new(path).to_owned()),
            _ => {
                self.faults.push(
                    "RELAY_DATABASE_URL must be sqlite:PATH or postgres://user:password@host:5432/database."
                        .to_owned(),
                );
                default
            }
        }
    }

    /// The project's database through its PostgREST, if there is a project.
    fn supabase(&mut self) -> Option<Database> {
        let (name, url) = match (self.get("SUPABASE_REST_URL"), self.get("SUPABASE_URL")) {
            (Some(url), _) => ("SUPABASE_REST_URL", url),
            (None, Some(url)) => ("SUPABASE_URL", format!("{}/rest/v1", url.trim_end_matches('/'))),
            (None, None) => return None,
        };
        let parsed = Url::parse(&url)
            .ok()
            .filter(|url| matches!(url.scheme(), "https" | "http") && is_bare(url));
        if parsed.is_none() {
            self.faults.push(format!(
                "{name} is wrong: it must be an http or https address, without user name and query."
            ));
        }
        let key = ["SUPABASE_PUBLISHABLE_KEY", "SUPABASE_ANON_KEY"]
            .into_iter()
            .find_map(|name| Some((name, self.get(name)?)));
        match &key {
            Some((name, key)) if opens_everything(key) => self.faults.push(format!(
                "{name} holds a key that can read everybody's rows. The relay needs the publishable (anon) key and nothing more."
            )),
            None if name == "SUPABASE_URL" => self.faults.push(
                "SUPABASE_PUBLISHABLE_KEY is not set. Set it to the project's publishable key (or SUPABASE_ANON_KEY to its anon key), or set RELAY_DATABASE_URL to keep stories elsewhere.".to_owned(),
            ),
            _ => {}
        }
        let key = key.map(|(_, key)| SecretString::from(key));
        parsed.map(|rest_url| Database::Supabase { rest_url, key })
    }

    /// The Redis that several instances share.
    pub(super) fn redis_url(&mut self) -> Option<SecretString> {
        let url = self.get("RELAY_REDIS_URL")?;
        let is_redis = |url: &Url| matches!(url.scheme(), "redis" | "rediss") && url.has_host();
        if !Url::parse(&url).is_ok_and(|url| is_redis(&url)) {
            // Not repeated: it may hold a password.
            self.faults.push(
                "RELAY_REDIS_URL must be like redis://:password@host:6379, or rediss://… for TLS."
                    .to_owned(),
            );
        }
        Some(SecretString::from(url))
    }

    /// Where the project's public keys are: what is set, or the project's own address of them.
    pub(super) fn jwks_url(&mut self) -> Option<Url> {
        let (name, url) = match (self.get("SUPABASE_JWKS_URL"), self.get("SUPABASE_URL")) {
            (Some(url), _) => ("SUPABASE_JWKS_URL", url),
            (None, Some(url)) => (
                "SUPABASE_URL",
                format!("{}/auth/v1/.well-known/jwks.json", url.trim_end_matches('/')),
            ),
            (None, None) => return None,
        };
        // Whoever can change the answer on its way decides who everybody is.
        let is_safe = |url: &Url| {
            let is_http = url.scheme() == "http" && is_loopback(url);
            (url.scheme() == "https" || is_http)
                && url.username().is_empty()
                && url.password().is_none()
        };
        let parsed = Url::parse(&url).ok().filter(is_safe);
        if parsed.is_none() {
            self.faults.push(format!(
                "{name} is wrong: the keys must come from an https address, or http on this machine. Set SUPABASE_JWKS_URL to one, or SUPABASE_REST_URL, SUPABASE_JWT_SECRET and RELAY_JWT_ISSUERS in place of SUPABASE_URL."
            ));
        }
        parsed
    }

    pub(super) fn providers(&mut self) -> Vec<Added> {
        let mut providers: Vec<Added> = Vec::new();
        for (at, pair) in self.list("RELAY_PROVIDERS").iter().enumerate() {
            match provider(pair) {
                Some(added) if providers.iter().all(|known| known.name != added.name) => providers.push(added),
                Some(added) => self.faults.push(format!("RELAY_PROVIDERS names `{}` twice.", added.name)),
                // Not repeated: somebody may have put a password into it.
                None => self.faults.push(format!(
                    "RELAY_PROVIDERS is wrong in its entry {}. It must be name=base_url, with a name of a-z 0-9 - that is neither `custom` nor `demo`, and an http or https address without a user name, a password or a query.",
                    at + 1
                )),
            }
        }
        providers
    }

    pub(super) fn master_keys(&mut self) -> Option<MasterKeys> {
        match MasterKeys::parse(&self.get("RELAY_MASTER_KEYS")?) {
            Ok(keys) => Some(keys),
            Err(faults) => {
                self.faults.extend(faults.iter().map(|fault| format!(
                    "RELAY_MASTER_KEYS is wrong: {fault}. It must be id:base64 pairs of 32 random bytes each, newest first, comma-separated, like k1:$(openssl rand -base64 32)."
                )));
                None
            }
        }
    }

    pub(super) fn upstream_allow(&mut self) -> UpstreamAllow {
        let mut allow = UpstreamAllow::default();
        for entry in self.list("RELAY_UPSTREAM_ALLOW") {
            if let Some(network) = network(&entry) {
                allow.networks.push(network);
            } else if let Ok(Host::Domain(name)) = Host::parse(&entry) {
                allow.hosts.push(name);
            } else {
                self.faults.push(format!("RELAY_UPSTREAM_ALLOW has `{entry}`. It must be a network like 10.0.0.0/8, an address or a host name."));
            }
        }
        allow
    }

    /// The networks of proxies that are believed.
    pub(super) fn trusted_proxies(&mut self) -> Proxies {
        let mut networks = Vec::new();
        for entry in self.list("RELAY_TRUSTED_PROXIES") {
            match network(&entry) {
                Some(network) if is_somebodys(&network) => networks.push(network),
                Some(_) => self.faults.push(format!(
                    "RELAY_TRUSTED_PROXIES has `{entry}`. So large a network has clients in it, who would be believed: name your proxies' own."
                )),
                None => self.faults.push(format!(
                    "RELAY_TRUSTED_PROXIES has `{entry}`. It must be a network like 10.0.0.0/8, or an address."
                )),
            }
        }
        Proxies(networks)
    }

    pub(super) fn origins(&mut self, mode: Mode) -> Origins {
        let listed = self.list("RELAY_CORS_ORIGINS");
        let mut origins = Origins {
            loopback: listed.is_empty() && mode == Mode::Dev,
            exact: Vec::new(),
            wildcards: Vec::new(),
        };
        for origin in listed {
            match origin.split_once("*.") {
                Some((scheme @ ("https://" | "http://"), rest)) if is_origin(&format!("{scheme}{rest}")) => {
                    origins.wildcards.push((scheme.to_owned(), format!(".{rest}")));
                }
                None if is_origin(&origin) => origins.exact.push(origin),
                _ => self.faults.push(format!(
                    "RELAY_CORS_ORIGINS has `{origin}`. It must be an origin as browsers send it, like https://app.example.com, or https://*.example.com for one label."
                )),
            }
        }
        origins
    }

    fn read<T>(
        &mut self,
        name: &str,
        default: T,
        wanted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let Some(value) = self.get(name) else { return default };
        parse(&value).unwrap_or_else(|| {
            self.faults.push(format!("{name} is `{value}`. It must be {wanted}."));
            default
        })
    }
}

/// Whether this is a secret key, or a legacy key of another role than `anon`.
fn opens_everything(key: &str) -> bool {
    let claims = key.split('.').nth(1).and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok());
    let claims: Option<serde_json::Value> =
        claims.and_then(|json| serde_json::from_slice(&json).ok());
    key.starts_with("sb_secret_") || claims.is_some_and(|claims| claims["role"] != "anon")
}

/// Whether the address holds nothing that is no address: what is in it is logged.
fn is_bare(url: &Url) -> bool {
    url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
}

/// Whether a browser would send exactly this as `Origin`.
fn is_origin(origin: &str) -> bool {
    Url::parse(origin).is_ok_and(|url| {
        matches!(url.scheme(), "https" | "http") && url.origin().ascii_serialization() == origin
    })
}

fn network(entry: &str) -> Option<IpNet> {
    let bare = entry.trim_start_matches('[').trim_end_matches(']');
    entry.parse().ok().or_else(|| bare.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}

/// Whether a network can be one operator's, or is private: of what others have, a 256th of IPv4 is too much already.
fn is_somebodys(network: &IpNet) -> bool {
    match network {
        IpNet::V4(v4) => v4.prefix_len() >= 8,
        IpNet::V6(v6) if v6.network().is_unique_local() => v6.prefix_len() >= 7,
        IpNet::V6(v6) => v6.prefix_len() >= 16,
    }
}

fn provider(pair: &str) -> Option<Added> {
    let (name, base_url) = pair.split_once('=')?;
    let is_name = !name.is_empty()
        && !matches!(name, "custom" | "demo")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let base_url = Url::parse(base_url).ok().filter(|url| {
        matches!(url.scheme(), "https" | "http")
            && url.query().is_none()
            && url.username().is_empty()
            && url.password().is_none()
    })?;
    is_name.then(|| Added { name: name.to_owned(), base_url })
}

pub(super) fn duration(value: &str) -> Option<Duration> {
    let digits = value.find(|character: char| !character.is_ascii_digit())?;
    let number: u64 = value[..digits].parse().ok()?;
    let duration = match &value[digits..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" | "min" => Duration::from_secs(number.checked_mul(60)?),
        "h" => Duration::from_secs(number.checked_mul(60 * 60)?),
        _ => return None,
    };
    (duration <= DURATION_MAX).then_some(duration)
}

fn rate(value: &str) -> Option<Rate> {
    let (requests, window) = value.split_once('/')?;
    let window = match window {
        "s" | "sec" => 1,
        "m" | "min" => 60,
        "h" => 60 * 60,
        _ => return None,
    };
    let requests = requests.parse().ok().filter(|requests| *requests > 0)?;
    Some(Rate { requests, window: Duration::from_secs(window) })
}
