//! Names whose owner says where they lead, and says something else a moment later.
//!
//! In a network of the test's own the addresses of the world outside are there too, so a connection that should not be made
//! would be made.

use std::collections::HashSet;

use futures_util::future::join_all;

use crate::name_server::{NameServer, run_alone};
use crate::provider::{Provider, Script};
use crate::relay::{PROVIDER_KEY, TestRelay};
use crate::upstreams::{Canary, ask, custom_bot};

/// Another machine's.
const OUTSIDE: [&str; 2] = ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"];

/// This machine's beside loopback, as a cloud has them; the last looks public.
const INSIDE: [&str; 4] = ["10.1.2.3", "169.254.169.254", "fd00:ec2::254", "93.184.215.15"];

#[test]
fn a_name_that_changes_hands_leads_nowhere_inside() {
    run_alone("rebinding::alone", &INSIDE, &OUTSIDE);
}

#[tokio::test]
#[ignore = "a_name_that_changes_hands_leads_nowhere_inside runs it where it can be run"]
async fn alone() {
    let names: &[(&str, &[&[&str]])] = &[
        // Looked up to be checked, and looked up again to be connected to.
        ("turns.test", &[&[OUTSIDE[0]], &["127.0.0.1"]]),
        ("turns6.test", &[&[OUTSIDE[1]], &["::1"]]),
        ("cloud.test", &[&[OUTSIDE[0]], &["169.254.169.254"]]),
        ("both.test", &[&[OUTSIDE[0], "10.1.2.3"]]),
        ("families.test", &[&[OUTSIDE[0], "::1"]]),
        ("loopback.test", &[&["127.0.0.1"]]),
        ("mapped.test", &[&["::ffff:127.0.0.1"]]),
        ("private.test", &[&["10.1.2.3"]]),
        ("metadata.test", &[&["169.254.169.254"]]),
        ("metadata6.test", &[&["fd00:ec2::254"]]),
        ("own.test", &[&["93.184.215.15"]]),
        ("zero.test", &[&["0.0.0.0"]]),
        ("llm.test", &[&["127.0.0.1"]]),
    ];
    let server = NameServer::start(names).await;
    let canary = Canary::on(&[&["127.0.0.1", "::1"], &INSIDE[..], &OUTSIDE[..]].concat()).await;
    let provider = Provider::start().await;
    provider.always(Script::telling(&["Hello"]));
    let relay = TestRelay::with(&provider).env("RELAY_UPSTREAM_ALLOW", "llm.test").start().await;
    let user = relay.stranger();

    let bots =
        join_all(names.iter().filter(|(name, _)| *name != "llm.test").map(async |(name, _)| {
            let url = format!("https://{name}:{}/v1", canary.port);
            (*name, custom_bot(&user, &url).await.expect("its form is right"))
        }));
    let bots = bots.await;
    // The first time some of them lead outside, where nobody speaks TLS; from then on, all lead inside.
    let mut told = Vec::new();
    for _ in 0..3 {
        told.extend(join_all(bots.iter().map(|(_, bot)| ask(&user, *bot))).await);
    }
    for (name, _) in &bots {
        assert!(server.was_asked_for(name), "{name} was not looked up here");
    }
    for error in &told {
        assert_eq!(error["code"], "upstream_not_allowed");
        assert_eq!(error["error"], told[0]["error"], "refusals differ");
    }
    // What leads outside is connected to, or this would show nothing.
    let outside = OUTSIDE.map(|address| address.parse().unwrap());
    assert_eq!(canary.visited().await, HashSet::from(outside));

    let port = provider.base_url();
    let port = port.rsplit(':').next().unwrap();
    let allowed = custom_bot(&user, &format!("http://llm.test:{port}")).await.unwrap();
    user.stream(serde_json::json!({"input": "Go.", "bot_id": allowed})).await.done().await;
    assert!(!provider.last_request().head.contains(PROVIDER_KEY));
    relay.finish().await;
}
