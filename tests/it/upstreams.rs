//! Addresses that users type: what is behind the wall stays behind it, whatever they try.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::provider::{PATIENCE, Provider, Script};
use crate::relay::{TestRelay, User};

/// Sockets that nobody should connect to.
pub(crate) struct Canary {
    pub(crate) port: u16,
    addresses: Vec<IpAddr>,
    /// Who connected, and to which of the addresses.
    accepted: Arc<Mutex<Vec<(SocketAddr, IpAddr)>>>,
    news: Arc<Notify>,
}

impl Canary {
    /// On both loopback addresses.
    pub(crate) async fn start() -> Self {
        Self::on(&["127.0.0.1", "::1"]).await
    }

    /// On a port that is free at all those addresses.
    pub(crate) async fn on(addresses: &[&str]) -> Self {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let (port, listeners) = loop {
            let first = TcpListener::bind((addresses[0], 0)).await.unwrap();
            let port = first.local_addr().unwrap().port();
            let rest = addresses[1..].iter().map(|address| TcpListener::bind((*address, port)));
            match try_join_all(rest).await {
                Ok(rest) => break (port, iter::once(first).chain(rest)),
                Err(error) => assert_eq!(error.kind(), ErrorKind::AddrInUse, "{error}"),
            }
        };
        let (accepted, news) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
        for (listener, address) in listeners.zip(addresses.clone()) {
            let (accepted, news) = (Arc::clone(&accepted), Arc::clone(&news));
            tokio::spawn(async move {
                while let Ok((_, peer)) = listener.accept().await {
                    accepted.lock().unwrap().push((peer, address));
                    news.notify_one();
                }
            });
        }
        Self { port, addresses, accepted, news }
    }

    /// Returns which addresses somebody has connected to. Who did so before now was accepted before the test's own
    /// connections are.
    pub(crate) async fn visited(&self) -> HashSet<IpAddr> {
        let mut own = Vec::new();
        for address in &self.addresses {
            own.push(TcpStream::connect((*address, self.port)).await.unwrap());
        }
        let ends =
            |socket: &TcpStream| (socket.local_addr().unwrap(), socket.peer_addr().unwrap().ip());
        let own: HashSet<_> = own.iter().map(ends).collect();
        let is_own = |visit: &&(SocketAddr, IpAddr)| own.contains(*visit);
        while self.accepted.lock().unwrap().iter().filter(is_own).count() < own.len() {
            timeout(PATIENCE, self.news.notified()).await.unwrap();
        }
        let accepted = self.accepted.lock().unwrap();
        accepted.iter().filter(|visit| !is_own(visit)).map(|(_, address)| *address).collect()
    }

    pub(crate) async fn is_untouched(&self) {
        assert_eq!(self.visited().await, HashSet::new(), "somebody connected");
    }
}

/// A bot at that address, if there can be one.
pub(crate) async fn custom_bot(user: &User, base_url: &str) -> Option<i64> {
    let bot = json!({"name": "C", "provider": "custom", "model": "m", "base_url": base_url});
    let answer = user.post("/v1/bots", &bot).await;
    if answer.status == 201 {
        return answer.json["id"].as_i64();
    }
    assert!(answer.refused(400, "invalid_request").contains("base_url"), "{}", answer.json);
    None
}

pub(crate) async fn ask(user: &User, bot: i64) -> Value {
    user.stream(json!({"input": "Go.", "bot_id": bot})).await.error().await
}

/// What a user sees of a refusal: code and words. It must not come before all others do.
async fn refusal(user: &User, base_url: &str) -> Option<(Value, Value)> {
    let bot = custom_bot(user, base_url).await?;
    let began = Instant::now();
    let mut error = ask(user, bot).await;
    assert!(began.elapsed() >= Duration::from_secs(5), "{base_url}: {:?}", began.elapsed());
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("upstream_not_allowed"), &json!(false))
    );
    Some((error["code"].take(), error["error"].take()))
}

#[tokio::test]
async fn hostile_addresses_are_refused_alike_and_never_connected_to() {
    let provider = Provider::start().await;
    let canary = Canary::start().await;
    let proxy = format!("http://127.0.0.1:{}", canary.port);
    let mut relay = TestRelay::with(&provider)
        // What is allowed opens nothing else, and http passes for a form.
        .env("RELAY_UPSTREAM_ALLOW", "192.168.77.0/24, llm.lan");
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]
    {
        relay = relay.env(name, proxy.clone());
    }
    let relay = relay.start().await;
    let user = relay.stranger();

    let urls: Vec<String> =
        serde_json::from_str(include_str!("../fixtures/hostile_base_urls.json")).unwrap();
    let own_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let own = ["https", "http"].map(|scheme| format!("{scheme}://{}:{{port}}", own_name.trim()));
    let nobody = "https://nobody.invalid/v1".to_owned();
    let urls: Vec<String> = urls
        .into_iter()
        .chain(own)
        .chain([nobody])
        .map(|url| url.replace("{port}", &canary.port.to_string()))
        .collect();
    let refusals = join_all(urls.iter().map(|url| refusal(&user, url))).await;
    let mut asked: Vec<_> = refusals.into_iter().flatten().collect();
    assert!(asked.len() > 100, "{}", asked.len());
    asked.dedup();
    assert_eq!(asked.len(), 1, "refusals differ: {asked:?}");

    canary.is_untouched().await;
    assert!(relay.log().contains("169.254.169.254 is link-local"), "the operator is not told");
    assert!(!asked[0].1.as_str().unwrap().contains("169.254"));
    relay.finish().await;
}

#[tokio::test]
async fn what_the_operator_allows_is_called_without_the_operators_key() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let port = provider.base_url();
    let port = port.rsplit(':').next().unwrap();
    for (allow, host) in [("127.0.0.0/8", "127.0.0.1"), ("localhost", "localhost")] {
        let relay = TestRelay::with(&provider).env("RELAY_UPSTREAM_ALLOW", allow).start().await;
        let user = relay.stranger();
        user.bot(json!({"provider": "custom", "base_url": format!("http://{host}:{port}")})).await;
        user.stream(json!({"input": "Go."})).await.done().await;
        let head = provider.last_request().head.to_ascii_lowercase();
        assert!(!head.contains("authorization") && head.contains("x-storytellr-relay"), "{head}");
        relay.finish().await;
    }
}

/// An address changes hands; what is allowed is asked each time it is called.
#[tokio::test]
async fn what_was_good_when_it_was_saved_is_checked_again() {
    let canary = Canary::start().await;
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let bots = user.get("/v1/bots").await.ok(200);
    let path = format!("/v1/bots/{}", bots["data"][0]["id"]);
    let https = format!("https://localhost:{}/v1", canary.port);
    for (base_url, is_form) in [
        (https.as_str(), true),
        ("http://a.example", false),
        ("https://a.example:22", false),
        ("https://u@a.example", false),
    ] {
        let patched = user.patch(&path, &json!({"provider": "custom", "base_url": base_url})).await;
        if is_form {
            patched.ok(200);
        } else {
            assert!(patched.refused(400, "invalid_request").contains("`base_url`"));
        }
    }
    assert_eq!(user.get(&path).await.ok(200)["base_url"], https);
    let error = user.stream(json!({"input": "Go."})).await.error().await;
    assert_eq!(error["code"], "upstream_not_allowed");
    canary.is_untouched().await;
    relay.finish().await;
}

#[tokio::test]
async fn a_relay_that_is_led_back_to_itself_does_not_go_round() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).env("RELAY_UPSTREAM_ALLOW", "127.0.0.1").start().await;
    let user = relay.stranger();
    let bot = custom_bot(&user, &relay.url("/v1")).await.unwrap();
    let error = ask(&user, bot).await;
    assert_eq!(error["code"], "provider_rejected");
    assert!(error["error"].as_str().unwrap().contains("This is a relay"), "{error}");
    relay.finish().await;
}
