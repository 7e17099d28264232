//! Which web pages may call: exact origins, and nothing that looks like one.

use http::{HeaderMap, Method};

use crate::provider::Provider;
use crate::relay::TestRelay;

async fn headers(relay: &TestRelay, method: Method, origin: &str) -> HeaderMap {
    let mut request =
        relay.client().request(method.clone(), relay.url("/v1/bots")).header("origin", origin);
    if method == Method::OPTIONS {
        request = request
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type");
    }
    request.send().await.unwrap().headers().clone()
}

#[tokio::test]
async fn exact_origins_pass_and_others_do_not() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider)
        .env("RELAY_CORS_ORIGINS", "https://app.example.com,https://*.stories.io")
        .start()
        .await;
    for origin in ["https://app.example.com", "https://a.stories.io"] {
        for method in [Method::OPTIONS, Method::GET] {
            let headers = headers(&relay, method.clone(), origin).await;
            assert_eq!(headers["access-control-allow-origin"], origin);
            assert_eq!(headers["access-control-allow-credentials"], "true");
            assert!(headers["vary"].to_str().unwrap().contains("origin"));
            if method == Method::OPTIONS {
                for wanted in ["authorization", "content-type", "last-event-id"] {
                    assert!(
                        headers["access-control-allow-headers"].to_str().unwrap().contains(wanted)
                    );
                }
                assert!(
                    headers["access-control-allow-methods"].to_str().unwrap().contains("PATCH")
                );
            } else {
                let exposed = headers["access-control-expose-headers"].to_str().unwrap();
                assert!(
                    exposed.contains("x-stream-id") && exposed.contains("retry-after"),
                    "{exposed}"
                );
            }
        }
    }
    for origin in [
        "null",
        "https://app.example.com.evil.io",
        "https://evil-app.example.com",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://stories.io",
        "https://a.b.stories.io",
        "http://localhost:3000",
    ] {
        for method in [Method::OPTIONS, Method::GET] {
            let headers = headers(&relay, method, origin).await;
            assert!(!headers.contains_key("access-control-allow-origin"), "{origin}: {headers:?}");
        }
    }
    relay.finish().await;
}
