//! A provider that sends elsewhere: nobody goes there, and the key that was sent to it is sent to nobody else.

use http::Version;
use serde_json::json;

use crate::provider::{Provider, Script};
use crate::relay::{OWN_KEY, PROVIDER_KEY, TestRelay, User};
use crate::tls::{AUTHORITY, TlsServer};
use crate::upstreams::{Canary, ask, custom_bot};

/// All that send elsewhere, some that once did, and one that does not but has a page's way of it.
const STATUSES: [u16; 10] = [200, 201, 300, 301, 302, 303, 304, 305, 307, 308];

/// Where a server at `base_url` may want to send somebody: inside, around, back and away.
fn locations(base_url: &str, canary: &Canary) -> Vec<String> {
    let inside = canary.port;
    let origin = base_url.trim_end_matches("/v1");
    vec![
        format!("http://127.0.0.1:{inside}/v1/chat/completions"),
        format!("https://localhost:{inside}/v1/chat/completions"),
        format!("//localhost:{inside}/"),
        format!("http://[::1]:{inside}/"),
        format!("{base_url}/chat/completions"),
        format!("{}/v1/chat/completions", origin.replace("https", "http")),
        "/v1/chat/completions".to_owned(),
        "completions".to_owned(),
        "?again".to_owned(),
        String::new(),
        "file:///etc/passwd".to_owned(),
        "data:text/event-stream,data: {}".to_owned(),
    ]
}

fn headers(location: &str) -> Vec<(&'static str, String)> {
    vec![
        ("location", location.to_owned()),
        ("content-location", location.to_owned()),
        ("refresh", format!("0; url={location}")),
        ("link", format!("<{location}>; rel=canonical")),
        (
            "alt-svc",
            format!(
                "h2=\"{}\"; ma=60",
                location.trim_start_matches("http://").trim_end_matches('/')
            ),
        ),
        ("content-type", "text/html".to_owned()),
    ]
}

fn page(location: &str) -> String {
    format!(
        "<meta http-equiv=refresh content=\"0; url={location}\"><script>location='{location}'</script>"
    )
}

/// A key of the user's for that provider.
async fn gives(user: &User, name: &str, provider: &str, base_url: Option<&str>) -> String {
    let key = format!("{OWN_KEY}{name}");
    user.post("/v1/keys", &json!({"provider": provider, "key": key, "base_url": base_url}))
        .await
        .ok(201);
    format!("Bearer {key}")
}

#[tokio::test]
async fn redirects_of_http_1_are_not_followed_and_take_no_key_along() {
    let (canary, provider) = (Canary::start().await, Provider::start().await);
    let relay = TestRelay::with(&provider).env("RELAY_UPSTREAM_ALLOW", "127.0.0.0/8").start().await;
    let (user, guest) = (relay.stranger(), relay.stranger());
    let base_url = provider.base_url();
    let custom = custom_bot(&user, &base_url).await.unwrap();
    let known = user.bot(json!({})).await;
    let guests = guest.bot(json!({})).await;
    let own = gives(&user, "known", "scripted", None).await;
    let own_custom = gives(&user, "custom", "custom", Some(&base_url)).await;
    let mut asked = 0;
    for (user, bot, key) in [
        (&user, known, own),
        (&user, custom, own_custom),
        (&guest, guests, format!("Bearer {PROVIDER_KEY}")),
    ] {
        for location in locations(&base_url, &canary) {
            for status in STATUSES {
                let head: String = headers(&location)
                    .iter()
                    .map(|(name, value)| format!("{name}: {value}\r\n"))
                    .collect();
                provider.once(Script::answer(status, &head).raw(page(&location).as_bytes()).end());
                let error = ask(user, bot).await;
                assert_eq!(error["code"], "provider_invalid", "{status} to {location}: {error}");
                asked += 1;
                assert_eq!(provider.requests().len(), asked, "{status} to {location}");
                let head = provider.last_request().head;
                assert!(head.lines().any(|line| line.ends_with(&key)), "{head}");
            }
        }
    }
    canary.is_untouched().await;
    relay.finish().await;
}

#[tokio::test]
async fn redirects_of_http_2_are_not_followed_and_take_no_key_along() {
    let (canary, provider, server) =
        (Canary::start().await, Provider::start().await, TlsServer::start().await);
    let base_url = server.base_url();
    let relay = TestRelay::with(&provider)
        .env("RELAY_PROVIDERS", format!("scripted={base_url}"))
        .env("RELAY_UPSTREAM_ALLOW", "localhost")
        .env("SSL_CERT_FILE", AUTHORITY)
        // The keys are in none of the lines that the library of HTTP/2 writes, either.
        .env("RELAY_LOG", "trace,mio=warn")
        .start()
        .await;
    let user = relay.stranger();
    let custom = custom_bot(&user, &base_url).await.unwrap();
    let known = user.bot(json!({})).await;
    let own = gives(&user, "known", "scripted", None).await;
    let own_custom = gives(&user, "custom", "custom", Some(&base_url)).await;
    let mut asked = 0;
    for (bot, key) in [(known, own), (custom, own_custom)] {
        for location in locations(&base_url, &canary) {
            for status in STATUSES {
                server.tells(status, headers(&location), &page(&location));
                let error = ask(&user, bot).await;
                assert_eq!(error["code"], "provider_invalid", "{status} to {location}: {error}");
                asked += 1;
                let requests = server.asked();
                assert_eq!(requests.len(), asked, "{status} to {location}");
                let last = requests.last().unwrap();
                assert_eq!((last.version, &last.authorization), (Version::HTTP_2, &key));
            }
        }
    }
    canary.is_untouched().await;
    assert_eq!(provider.connections(), 0);
    relay.finish().await;
}
