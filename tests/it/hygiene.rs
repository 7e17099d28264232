//! What goes with every answer and with every process: headers for browsers, and no copy of the memory on a disk.

use http::{HeaderMap, Method};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::provider::{Provider, Script};
use crate::relay::TestRelay;

/// What a browser is told of each answer.
const HEADERS: [(&str, &str); 5] = [
    ("cache-control", "no-store"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
];

#[track_caller]
fn check(headers: &HeaderMap, what: &str) {
    check_all(headers, &HEADERS, what);
}

#[track_caller]
fn check_all(headers: &HeaderMap, expected: &[(&str, &str)], what: &str) {
    for &(name, value) in expected {
        let all: Vec<_> = headers.get_all(name).iter().collect();
        assert_eq!(all, [value], "{name} of {what}: {headers:?}");
    }
}

#[tokio::test]
async fn every_answer_says_that_it_is_no_page() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["text"]));
    let relay = TestRelay::with(&provider)
        .env("RELAY_CORS_ORIGINS", "https://app.example.com")
        .env("RELAY_RATE_LIMIT", "40/h")
        .start()
        .await;
    let user = relay.user().await;
    let url = relay.url("/v1/stream");
    let h2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for client in [relay.client(), &h2] {
        let send = async |method: Method, path: &str, body: &str, status: u16| {
            let request = client.request(method.clone(), relay.url(path)).bearer_auth(&user.token);
            let answer = request.body(body.to_owned()).send().await.unwrap();
            let what = format!("{method} {path} {:?}", answer.version());
            assert_eq!(answer.status(), status, "{what}");
            check(answer.headers(), &what);
        };
        send(Method::GET, "/healthz", "", 200).await;
        send(Method::GET, "/readyz", "", 200).await;
        send(Method::GET, "/v1/bots", "", 200).await;
        send(Method::POST, "/v1/conversations", "{}", 201).await;
        send(Method::POST, "/v1/stream", r#"{"input": "Go."}"#, 200).await;
        send(Method::POST, "/v1/stream", "{", 400).await;
        send(Method::GET, "/v1/conversations/404", "", 404).await;
        send(Method::DELETE, "/v1/streams/nobodys", "", 404).await;
        send(Method::GET, "/nowhere", "", 404).await;
        send(Method::GET, "/", "", 404).await;
        send(Method::PUT, "/v1/bots", "", 405).await;
        send(Method::POST, "/v1/bots", &json!({"name": "x".repeat(5 << 20)}).to_string(), 413)
            .await;
        let document = client.get(relay.url("/openapi.json")).send().await.unwrap();
        check_all(document.headers(), &HEADERS[1..], "what everybody may keep");
        let unknown = client.get(relay.url("/v1/bots")).bearer_auth("x.y.z").send().await.unwrap();
        assert_eq!(unknown.status(), 401);
        check(unknown.headers(), "an unknown caller's");
        for origin in ["https://app.example.com", "https://evil.example"] {
            let preflight = client.request(Method::OPTIONS, &url).header("origin", origin);
            let preflight = preflight.header("access-control-request-method", "POST");
            check(preflight.send().await.unwrap().headers(), "a preflight");
        }
    }
    let mut last = None;
    for _ in 0..40 {
        last = Some(user.get("/v1/bots").await);
    }
    let limited = last.unwrap();
    limited.refused(429, "rate_limited");
    check(&limited.headers, "a limited caller's");

    // What is no HTTP is answered without a word, so there is nothing that a browser could do with it.
    let mut socket = TcpStream::connect(relay.url("").replace("http://", "")).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n broken\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains("content-length: 0\r\n"), "{answer}");
    relay.finish_without_users().await;
}

/// The soft and the hard limit of what the process may leave behind when it crashes.
fn core_limit(relay: &TestRelay) -> Vec<String> {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", relay.pid())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    line.split_whitespace().take(2).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_crash_leaves_no_copy_of_the_keys_unless_it_is_asked_for() {
    let own = rlimit::getrlimit(rlimit::Resource::CORE).unwrap();
    assert!(
        own.1 > 1,
        "no process here leaves anything: raise the hard limit (ulimit -Hc unlimited)"
    );
    let provider = Provider::start().await;
    for command in ["serve", "dev"] {
        let relay = TestRelay::with(&provider).command(command).start().await;
        assert!(core_limit(&relay).iter().all(|bytes| bytes == "1" || bytes == "0"), "{command}");
        relay.finish().await;
    }
    let relay = TestRelay::with(&provider).env("RELAY_CORE_DUMPS", "true").start().await;
    let shown = |limit: u64| {
        if limit == rlimit::INFINITY { "unlimited".to_owned() } else { limit.to_string() }
    };
    assert_eq!(core_limit(&relay), [shown(own.0), shown(own.1)], "as whoever started it has it");
    relay.finish().await;
}
