//! Which providers there are, with whose key each is called, and the call itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;
use tokio::time::{Instant, sleep};
use url::{Host, Url};

use super::habits::{Habits, KNOWN, ORDINARY};
use super::openai::{Endpoint, Key, Refusal};
use super::{Batch, Call, Completion, KeyCheck, Progress, Request, Target, demo, retry};
use crate::bot::BotSettings;
use crate::error::{Code, Error};

/// How long connecting to a provider may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an idle connection to a provider is kept for the next request; below what providers' front doors keep.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// The provider whose address is a user's word.
pub(crate) const CUSTOM: &str = "custom";

/// A provider that the operator added, or a known one at another address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Its name, as bots call it.
    pub name: String,
    /// Its address, up to and without `/chat/completions`.
    pub base_url: Url,
}

/// What `custom` addresses may reach though private: networks, and hosts by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpstreamAllow {
    /// Networks; a single address is a network of one.
    pub networks: Vec<IpNet>,
    /// Host names, in lower case.
    pub hosts: Vec<String>,
}

impl UpstreamAllow {
    fn covers(&self, url: &Url) -> bool {
        let is_in_network =
            |address: IpAddr| self.networks.iter().any(|network| network.contains(&address));
        match url.host() {
            Some(Host::Domain(name)) => self.hosts.iter().any(|host| host == name),
            Some(Host::Ipv4(address)) => is_in_network(address.into()),
            Some(Host::Ipv6(address)) => is_in_network(address.into()),
            None => false,
        }
    }
}

/// The providers that bots can name.
#[derive(Debug)]
pub struct Providers {
    endpoints: HashMap<String, Arc<Endpoint>>,
    allow: UpstreamAllow,
    client: reqwest::Client,
}

impl Providers {
    /// All known providers and the operator's own. `key` gives the operator's key of a provider by its name.
    ///
    /// # Errors
    /// If no TLS client can be made, for want of certificate authorities on this machine.
    pub fn new(
        added: &[Added],
        allow: UpstreamAllow,
        key: impl Fn(&str) -> Option<SecretString>,
    ) -> Result<Self, reqwest::Error> {
        let known = KNOWN
            .iter()
            .filter_map(|habits| Some((habits.name, Url::parse(habits.base_url).ok()?, false)));
        let added = added.iter().map(|added| (added.name.as_str(), added.base_url.clone(), true));
        let endpoints = known.chain(added).map(|(name, base_url, is_added)| {
            // The operator's own need no key: they may stand behind the same wall as the relay.
            let habits = Habits::of(name).unwrap_or(Habits { needs_key: false, ..ORDINARY });
            let endpoint = Endpoint {
                name: name.to_owned(),
                chat_completions: chat_completions(&base_url),
                key: key(name).map_or(Key::None, Key::Operators),
                habits,
                is_added,
            };
            (name.to_owned(), Arc::new(endpoint))
        });
        Ok(Self { endpoints: endpoints.collect(), allow, client: client()? })
    }

    /// Whether bots can name `provider`.
    #[must_use]
    pub fn knows(&self, provider: &str) -> bool {
        provider == demo::NAME || provider == CUSTOM || self.endpoints.contains_key(provider)
    }

    /// All names that bots can name, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> =
            self.endpoints.keys().map(String::as_str).chain([CUSTOM, demo::NAME]).collect();
        names.sort_unstable();
        names
    }

    /// The names of those that a user can give a key for, sorted.
    #[must_use]
    pub fn names_with_keys(&self) -> Vec<&str> {
        self.names().into_iter().filter(|name| *name != demo::NAME).collect()
    }

    /// Whether the operator has allowed the address by `RELAY_UPSTREAM_ALLOW`.
    #[must_use]
    pub fn allows(&self, url: &Url) -> bool {
        self.allow.covers(url)
    }

    /// Asks every provider that the operator has set up whether it takes the operator's key, one after the other, some
    /// ten seconds each at most. Those are the providers with a key, and the operator's own.
    pub async fn check_keys(&self) -> Vec<(&str, KeyCheck)> {
        let is_set_up = |endpoint: &Endpoint| !endpoint.key.is_none() || endpoint.is_added;
        let mut endpoints: Vec<_> =
            self.endpoints.values().filter(|endpoint| is_set_up(endpoint)).collect();
        endpoints.sort_unstable_by_key(|endpoint| endpoint.name());
        let mut checks = Vec::new();
        for endpoint in endpoints {
            checks.push((endpoint.name(), endpoint.check_key(&self.client).await));
        }
        checks
    }

    /// Where the bot's requests go, with the user's own key for there if there is one, else with the operator's.
    ///
    /// # Errors
    /// `UnknownProvider`, `NoProviderKey`, `UpstreamNotAllowed`.
    pub fn target(
        &self,
        bot: &BotSettings,
        own_key: Option<SecretString>,
    ) -> Result<Target, Error> {
        let own_key = own_key.map(Key::Users);
        match bot.provider.as_str() {
            demo::NAME => Ok(Target::Demo),
            CUSTOM => self.custom(bot.base_url.as_deref().unwrap_or_default(), own_key),
            name => {
                let endpoint = self.endpoints.get(name).ok_or_else(|| {
                    let names = self.names().join(", ");
                    Error::new(
                        Code::UnknownProvider,
                        format!("There is no provider `{name}` here. Choose one of: {names}."),
                    )
                })?;
                if let Some(key) = own_key {
                    let own = Endpoint { key, ..Endpoint::clone(endpoint) };
                    return Ok(Target::Endpoint(Arc::new(own)));
                }
                if endpoint.habits.needs_key && endpoint.key.is_none() {
                    return Err(Error::new(
                        Code::NoProviderKey,
                        format!(
                            "There is no key for the provider `{name}`. Enter yours with `POST /v1/keys`; or whoever runs the relay can set {}.",
                            key_variable(name)
                        ),
                    ));
                }
                Ok(Target::Endpoint(Arc::clone(endpoint)))
            }
        }
    }

    /// A user's own address. The operator's keys never go there.
    fn custom(&self, base_url: &str, own_key: Option<Key>) -> Result<Target, Error> {
        let url = Url::parse(base_url).ok().filter(|url| matches!(url.scheme(), "https" | "http"));
        let url = url.filter(|url| self.allow.covers(url)).ok_or_else(|| {
            Error::new(
                Code::UpstreamNotAllowed,
                "This relay does not call the bot's `base_url`. Choose one of its providers, or ask whoever runs it to allow the address.",
            )
        })?;
        Ok(Target::Endpoint(Arc::new(Endpoint {
            name: CUSTOM.to_owned(),
            chat_completions: chat_completions(&url),
            key: own_key.unwrap_or(Key::None),
            habits: ORDINARY,
            is_added: false,
        })))
    }

    /// Asks the provider, and asks again as long as no token has come and `deadline` leaves time for it. When this returns, the first of the answer is in
    /// `batch`, and what [`Completion::read`] said of it comes along. Not cancel safe: dropped, it gives the request up.
    ///
    /// # Errors
    /// Why there is no answer, from the last try.
    pub async fn open(
        &self,
        call: &Call,
        batch: &mut Batch,
        deadline: Instant,
    ) -> Result<(Completion, Result<Progress, Error>), Error> {
        let endpoint = match &call.target {
            Target::Demo => {
                return Ok((Completion::Demo(demo::Story::new(&call.request)), Ok(Progress::More)));
            }
            Target::Endpoint(endpoint) => endpoint,
        };
        let mut tries_made = 0;
        loop {
            tries_made += 1;
            let refusal = match self.open_once(endpoint, &call.request, batch).await {
                Ok((completion, progress)) => return Ok((completion, progress)),
                Err(refusal) => refusal,
            };
            if !refusal.is_worth_another_try || tries_made == retry::TRIES {
                return Err(refusal.error);
            }
            let backoff = retry::backoff(tries_made, crate::id::random_byte());
            let wait = refusal.error.retry_after().unwrap_or(backoff);
            if Instant::now() + wait >= deadline {
                return Err(refusal.error);
            }
            tracing::info!(provider = endpoint.name(), tries_made, error = %refusal.error, "provider will be asked again");
            sleep(wait).await;
        }
    }

    /// One try, up to the first token.
    async fn open_once(
        &self,
        endpoint: &Arc<Endpoint>,
        request: &Request,
        batch: &mut Batch,
    ) -> Result<(Completion, Result<Progress, Error>), Refusal> {
        let mut stream = endpoint.open(&self.client, request).await?;
        loop {
            let progress = match stream.read(batch).await {
                Ok(Progress::More) if !batch.has_tokens() => continue,
                Ok(progress) => Ok(progress),
                Err(refusal) if batch.has_tokens() => Err(refusal.error),
                Err(refusal) => return Err(refusal),
            };
            return Ok((Completion::Stream(Box::new(stream)), progress));
        }
    }
}

/// The names of the providers that the relay knows without being told.
pub(crate) fn known_names<'a>() -> impl Iterator<Item = &'a str> {
    KNOWN.iter().map(|habits| habits.name)
}

/// The variable that holds the operator's key of a provider.
#[must_use]
pub fn key_variable(provider: &str) -> String {
    format!("{}_API_KEY", provider.to_ascii_uppercase().replace('-', "_"))
}

fn chat_completions(base_url: &Url) -> Url {
    let mut url = base_url.clone();
    let path = format!("{}/chat/completions", base_url.path().trim_end_matches('/'));
    url.set_path(&path);
    url
}

/// The one HTTP client for providers. It follows no redirect, which could carry a key elsewhere, and heeds no proxy
/// settings of the environment, which could put somebody in between.
fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .user_agent(concat!("storytellr-relay/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn providers(allow: UpstreamAllow) -> Providers {
        let added = [Added {
            name: "north".to_owned(),
            base_url: Url::parse("http://127.0.0.1:9/v1/").unwrap(),
        }];
        let key = |name: &str| (name == "openai").then(|| SecretString::from("sk-operator"));
        Providers::new(&added, allow, key).unwrap()
    }

    #[track_caller]
    fn check(bot: &BotSettings, allow: UpstreamAllow, expected: Result<&str, Code>) {
        let target = providers(allow).target(bot, None);
        let url = target.as_ref().map(|target| match target {
            Target::Demo => "demo",
            Target::Endpoint(endpoint) => endpoint.chat_completions.as_str(),
        });
        assert_eq!(url.map_err(Error::code), expected);
    }

    fn bot(provider: &str, base_url: Option<&str>) -> BotSettings {
        BotSettings {
            provider: provider.to_owned(),
            base_url: base_url.map(str::to_owned),
            ..BotSettings::demo()
        }
    }

    #[test]
    fn known_and_added_providers_are_called_at_their_addresses() {
        let none = UpstreamAllow::default;
        check(&bot("demo", None), none(), Ok("demo"));
        check(&bot("openai", None), none(), Ok("https://api.openai.com/v1/chat/completions"));
        check(&bot("north", None), none(), Ok("http://127.0.0.1:9/v1/chat/completions"));
        check(&bot("deepseek", None), none(), Err(Code::NoProviderKey));
        check(&bot("nobody", None), none(), Err(Code::UnknownProvider));
    }

    #[test]
    fn custom_addresses_are_refused_unless_allowed_and_get_no_key() {
        let allow = || UpstreamAllow {
            networks: vec!["10.0.0.0/8".parse().unwrap()],
            hosts: vec!["llm.lan".to_owned()],
        };
        let custom = |url| bot("custom", Some(url));
        check(
            &custom("http://llm.lan:8000/v1"),
            allow(),
            Ok("http://llm.lan:8000/v1/chat/completions"),
        );
        check(&custom("http://10.1.2.3/v1"), allow(), Ok("http://10.1.2.3/v1/chat/completions"));
        for refused in [
            "http://11.0.0.1",
            "https://api.openai.com",
            "http://llm.lan.evil.io",
            "file:///etc/passwd",
            "",
            "x",
        ] {
            check(&custom(refused), allow(), Err(Code::UpstreamNotAllowed));
        }
    }

    #[test]
    fn a_users_own_key_is_used_before_the_operators_which_never_goes_to_a_custom_address() {
        let allow = || UpstreamAllow { networks: Vec::new(), hosts: vec!["llm.lan".to_owned()] };
        let custom = bot("custom", Some("http://llm.lan"));
        for (bot, own, expected) in [
            (&bot("openai", None), None, Some("sk-operator")),
            (&bot("openai", None), Some("sk-own"), Some("sk-own")),
            (&bot("deepseek", None), Some("sk-own"), Some("sk-own")),
            (&bot("north", None), None, None),
            (&bot("north", None), Some("sk-own"), Some("sk-own")),
            (&custom, None, None),
            (&custom, Some("sk-own"), Some("sk-own")),
        ] {
            let target = providers(allow()).target(bot, own.map(SecretString::from)).unwrap();
            let Target::Endpoint(endpoint) = target else { panic!("{bot:?}") };
            assert_eq!(endpoint.key.text(), expected, "{bot:?}");
        }
    }

    #[test]
    fn keys_have_variables_named_after_the_provider() {
        assert_eq!(key_variable("openai"), "OPENAI_API_KEY");
        assert_eq!(key_variable("my-own"), "MY_OWN_API_KEY");
    }
}
