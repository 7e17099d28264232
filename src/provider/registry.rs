//! Which providers there are, with whose key each is called, and the call itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::time::{Instant, sleep};
use url::Url;

use super::client::Clients;
use super::guard::{self, Guard, UpstreamAllow};
use super::habits::{Habits, KNOWN, ORDINARY};
use super::openai::{Endpoint, Key, Refusal, Upstream};
use super::{Batch, Call, Completion, KeyCheck, Progress, Request, Target, demo, retry};
use crate::bot::BotSettings;
use crate::error::{Code, Error};

/// How long connecting to a provider may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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

/// The providers that bots can name.
#[derive(Debug)]
pub struct Providers {
    endpoints: HashMap<String, Arc<Endpoint>>,
    clients: Clients,
    guard: Guard,
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
                upstream: Upstream::Trusted(chat_completions(&base_url)),
                key: key(name).map_or(Key::None, Key::Operators),
                habits,
                is_added,
            };
            (name.to_owned(), Arc::new(endpoint))
        });
        Ok(Self {
            endpoints: endpoints.collect(),
            clients: Clients::new(CONNECT_TIMEOUT)?,
            guard: Guard::new(allow)?,
        })
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

    /// Asks every provider that the operator has set up whether it takes the operator's key, one after the other, some
    /// ten seconds each at most. Those are the providers with a key, and the operator's own.
    pub async fn check_keys(&self) -> Vec<(&str, KeyCheck)> {
        let is_set_up = |endpoint: &Endpoint| !endpoint.key.is_none() || endpoint.is_added;
        let mut endpoints: Vec<_> =
            self.endpoints.values().filter(|endpoint| is_set_up(endpoint)).collect();
        endpoints.sort_unstable_by_key(|endpoint| endpoint.name());
        let mut checks = Vec::new();
        for endpoint in endpoints {
            checks.push((endpoint.name(), endpoint.check_key(&self.clients.library).await));
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
        let base_url = self.guard.parse(base_url).map_err(guard::refused)?;
        Ok(Target::Endpoint(Arc::new(Endpoint {
            name: CUSTOM.to_owned(),
            upstream: Upstream::Guarded(base_url.chat_completions()),
            key: own_key.unwrap_or(Key::None),
            habits: ORDINARY,
            is_added: false,
        })))
    }

    /// Whether a bot of provider `custom` can have the address: its form alone, because what is behind it can change.
    ///
    /// # Errors
    /// `InvalidRequest`, with what is wrong with the form.
    pub fn check_base_url(&self, base_url: &str) -> Result<(), Error> {
        let fault = |fault| Error::new(Code::InvalidRequest, format!("`base_url` {fault}."));
        self.guard.parse(base_url).map(drop).map_err(fault)
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
        let mut stream = endpoint.open(&self.clients, &self.guard, request).await?;
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

/// Where the dialect's one question is asked.
pub(super) fn chat_completions(base_url: &Url) -> Url {
    let mut url = base_url.clone();
    let path = format!("{}/chat/completions", base_url.path().trim_end_matches('/'));
    url.set_path(&path);
    url
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
    fn check(bot: &BotSettings, expected: Result<&str, Code>) {
        let target = providers(UpstreamAllow::default()).target(bot, None);
        let url = target.as_ref().map(|target| match target {
            Target::Demo => "demo",
            Target::Endpoint(endpoint) => match &endpoint.upstream {
                Upstream::Trusted(url) => url.as_str(),
                Upstream::Guarded(_) => "guarded",
            },
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
        check(&bot("demo", None), Ok("demo"));
        check(&bot("openai", None), Ok("https://api.openai.com/v1/chat/completions"));
        check(&bot("north", None), Ok("http://127.0.0.1:9/v1/chat/completions"));
        check(&bot("deepseek", None), Err(Code::NoProviderKey));
        check(&bot("nobody", None), Err(Code::UnknownProvider));
    }

    #[test]
    fn users_addresses_go_through_the_guard_and_get_no_key() {
        let custom = |url| bot("custom", Some(url));
        for url in ["https://api.openai.com/v1", "https://10.1.2.3", "https://localhost"] {
            check(&custom(url), Ok("guarded"));
        }
        for url in ["http://a.example", "file:///etc/passwd", "", "x"] {
            check(&custom(url), Err(Code::UpstreamNotAllowed));
        }
    }

    #[test]
    fn a_users_own_key_is_used_before_the_operators_which_never_goes_to_a_custom_address() {
        let custom = bot("custom", Some("https://api.openai.com/v1"));
        for (bot, own, expected) in [
            (&bot("openai", None), None, Some("sk-operator")),
            (&bot("openai", None), Some("sk-own"), Some("sk-own")),
            (&bot("deepseek", None), Some("sk-own"), Some("sk-own")),
            (&bot("north", None), None, None),
            (&bot("north", None), Some("sk-own"), Some("sk-own")),
            (&custom, None, None),
            (&custom, Some("sk-own"), Some("sk-own")),
        ] {
            let own = own.map(SecretString::from);
            let target = providers(UpstreamAllow::default()).target(bot, own).unwrap();
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
