//! Tokens signed with the project's own keys, and a key set's source that is slow, down, wrong, or ahead of the relay.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures_util::future::join_all;
use futures_util::{StreamExt, poll, stream};
use jsonwebtoken::{Algorithm, Header};
use serde_json::json;
use storytellr_relay::auth::{Issuers, KeySet, SharedSecret, Verifier};
use storytellr_relay::clock;
use storytellr_relay::error::Code;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::provider::{Gate, PATIENCE, Provider, Script};
use crate::relay::{self, Answer, Builder, TestRelay};
use crate::signer::{P256_ORDER, Signer};

pub(crate) fn set(signers: &[&Signer]) -> Script {
    answer(text(signers).as_bytes())
}

/// The set as a source sends it.
fn text(signers: &[&Signer]) -> String {
    let keys: Vec<_> = signers.iter().map(|signer| &signer.jwk).collect();
    json!({"keys": keys}).to_string()
}

pub(crate) fn answer(body: &[u8]) -> Script {
    Script::answer(200, "content-type: application/json\r\n").raw(body).end()
}

/// A relay that fetches its keys from `source` and has no secret.
pub(crate) fn with(source: &Provider) -> Builder {
    let url = format!("{}/.well-known/jwks.json", source.base_url());
    TestRelay::with(source).env("SUPABASE_JWKS_URL", url).env("SUPABASE_JWT_SECRET", "")
}

/// The keys of `source`, which are kept fresh until the test ends.
pub(crate) fn kept_fresh(source: &Provider) -> Arc<KeySet> {
    let url = format!("{}/jwks", source.base_url()).parse().unwrap();
    let key_set = Arc::new(KeySet::new(url).unwrap());
    tokio::spawn(Arc::clone(&key_set).keep_fresh());
    key_set
}

/// A verifier with those keys alone.
fn fresh(source: &Provider) -> Verifier {
    Verifier::new(None, Some(kept_fresh(source)), Issuers::Any)
}

async fn accepts(verifier: &Verifier, token: &str) {
    verifier.verify(token, clock::now()).await.unwrap();
}

/// The token must be refused with a sentence that has `reason`.
async fn refuses(verifier: &Verifier, token: &str, reason: &str) {
    let error = verifier.verify(token, clock::now()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidToken, "{error}");
    assert!(error.message().contains(reason) && error.message().ends_with('.'), "{error}");
}

/// The longest set in bytes.
const SET_LEN_MAX: usize = 256 << 10;

pub(crate) const UNKNOWN: &str = "not among the project's";
pub(crate) const FORGED: &str = "signature is wrong";
pub(crate) const OTHERWISE: &str = "signed in a way";

/// Lets that much time pass at once. Sockets take real time, so it is stopped for a moment only, when none is in use.
async fn pass(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

pub(crate) async fn test(relay: &TestRelay, token: &str) -> Answer {
    Answer::of(relay.client().get(relay.url("/auth/test")).bearer_auth(token).send().await.unwrap())
        .await
}

/// Returns when the relay takes new work.
async fn is_ready(relay: &TestRelay) {
    let since = Instant::now();
    while relay.client().get(relay.url("/readyz")).send().await.unwrap().status() != 200 {
        assert!(since.elapsed() < PATIENCE, "the relay is not ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn tokens_of_every_family_are_accepted_side_by_side() {
    let signers = [Signer::es256("ec"), Signer::rs256("rsa"), Signer::eddsa("ed")];
    let source = Provider::start().await;
    source.always(set(&signers.each_ref()));
    let relay = with(&source).env("SUPABASE_JWT_SECRET", relay::SECRET).start().await;
    for signer in &signers {
        test(&relay, &signer.token()).await.ok(200);
    }
    test(&relay, &relay::token(&relay::claims(Uuid::now_v7()))).await.ok(200);
    relay.finish_without_users().await;
}

#[tokio::test]
async fn no_token_chooses_another_algorithm_or_key() {
    let (ec, rsa, other) = (Signer::es256("ec"), Signer::rs256("rsa"), Signer::es256("other"));
    let source = Provider::start().await;
    source.always(set(&[&ec, &rsa]));
    let relay = with(&source).start().await;
    is_ready(&relay).await;
    let nameless = jsonwebtoken::encode(
        &Header::new(Algorithm::ES256),
        &relay::claims(Uuid::now_v7()),
        &ec.encoding,
    );
    for wrong in [ec.token_as("rsa"), rsa.token_as("ec"), other.token_as("ec"), nameless.unwrap()] {
        test(&relay, &wrong).await.refused(401, "invalid_token");
    }
    relay.finish_without_users().await;
}

#[tokio::test]
async fn a_key_with_short_coordinates_verifies() {
    let source = Provider::start().await;
    let short_x = Signer::es256_if("x", |x, _| x[0] == 0);
    let short_y = Signer::es256_if("y", |_, y| y[0] == 0);
    let len = |signer: &Signer, name| signer.jwk[name].as_str().unwrap().len();
    assert!(len(&short_x, "x") < 43 && len(&short_y, "y") < 43, "they are whole");
    source.always(set(&[&short_x, &short_y]));
    let verifier = fresh(&source);
    for signer in [&short_x, &short_y] {
        accepts(&verifier, &signer.token()).await;
        refuses(&verifier, &Signer::es256("other").token_as(&signer.kid), FORGED).await;
    }
}

#[tokio::test]
async fn algorithms_that_nobody_asked_for_are_refused() {
    let (ec, rsa, ed) = (Signer::es256("ec"), Signer::rs256("rsa"), Signer::eddsa("ed"));
    let source = Provider::start().await;
    source.always(set(&[&ec, &rsa, &ed]));
    let verifier = fresh(&source);
    accepts(&verifier, &rsa.token()).await;
    for algorithm in [Algorithm::PS256, Algorithm::PS512, Algorithm::RS384, Algorithm::RS512] {
        let header = Header { kid: Some("rsa".to_owned()), ..Header::new(algorithm) };
        let claims = relay::claims(Uuid::now_v7());
        let token = jsonwebtoken::encode(&header, &claims, &rsa.encoding).unwrap();
        refuses(&verifier, &token, OTHERWISE).await;
    }
    for alg in ["ES256K", "ES384", "ES512", "Ed25519", "none", "HS256"] {
        refuses(&verifier, &ec.token_with(&json!({"alg": alg, "kid": "ec"})), OTHERWISE).await;
    }
    let secret = SharedSecret::new(relay::SECRET);
    let without_keys = Verifier::new(secret.as_ref(), None, Issuers::Any);
    for signer in [&ec, &rsa, &ed] {
        refuses(&without_keys, &signer.token(), OTHERWISE).await;
    }
}

/// A `kid` is a name that is looked up, and nothing that is opened, asked for or fetched.
#[tokio::test]
async fn a_kid_is_only_a_name() {
    let (source, elsewhere) = (Provider::start().await, Provider::start().await);
    let kids = [
        "k".repeat(10_000),
        "a\0b".to_owned(),
        "cl\u{e9}\u{1f511}\u{202e}".to_owned(),
        format!("{}/jwks", elsewhere.base_url()),
        "../../dev/null".to_owned(),
        "' OR 1=1--".to_owned(),
        "|sleep 5".to_owned(),
        String::new(),
    ];
    let known = Signer::es256("known");
    source.always(set(&[&known]));
    elsewhere.always(set(&[&known]));
    let verifier = fresh(&source);
    accepts(&verifier, &known.token()).await;
    for kid in &kids {
        refuses(&verifier, &known.token_as(kid), UNKNOWN).await;
    }
    for kid in [json!(7), json!(["known"]), json!({"known": 1})] {
        refuses(&verifier, &known.token_with(&json!({"kid": kid})), "no access token").await;
    }
    refuses(&verifier, &known.token_with(&json!({"kid": null})), "which key").await;
    assert_eq!((source.requests().len(), elsewhere.connections()), (2, 0));

    let named: Vec<_> = kids.iter().map(|kid| Signer::es256(kid)).collect();
    let named: Vec<_> = named.iter().collect();
    source.always(set(&named));
    let verifier = fresh(&source);
    for signer in named {
        accepts(&verifier, &signer.token()).await;
    }
}

#[tokio::test]
async fn a_key_that_the_token_brings_along_is_not_used() {
    let (known, attacker) = (Signer::es256("known"), Signer::es256("known"));
    let (source, elsewhere) = (Provider::start().await, Provider::start().await);
    source.always(set(&[&known]));
    elsewhere.always(set(&[&attacker]));
    let verifier = fresh(&source);
    let url = format!("{}/jwks", elsewhere.base_url());
    for (field, value) in [
        ("jku", json!(url)),
        ("x5u", json!(url)),
        ("jwk", attacker.jwk.clone()),
        ("x5c", json!([STANDARD.encode(&attacker.der)])),
    ] {
        let header = |kid: &str| json!({"kid": kid, field: value});
        refuses(&verifier, &attacker.token_with(&header("known")), FORGED).await;
        refuses(&verifier, &attacker.token_with(&header("theirs")), UNKNOWN).await;
        refuses(&verifier, &attacker.token_with(&json!({field: value})), "which key").await;
        accepts(&verifier, &known.token_with(&header("known"))).await;
    }
    assert_eq!(elsewhere.connections(), 0);
}

/// Zero makes both sides of ECDSA's equation the same: libraries that forgot to look took it for everybody's signature.
#[tokio::test]
async fn a_signature_of_zeros_is_none() {
    let (ec, ed) = (Signer::es256("ec"), Signer::eddsa("ed"));
    let source = Provider::start().await;
    source.always(set(&[&ec, &ed]));
    let verifier = fresh(&source);
    let token = ec.token();
    let (message, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let (r, s) = signature.split_at(32);
    let zero: &[u8] = &[0; 32];
    for [r, s] in [
        [zero, zero],
        [zero, s],
        [r, zero],
        [&P256_ORDER, s],
        [r, &P256_ORDER],
        [&P256_ORDER, &P256_ORDER],
        [s, r],
        [r, &[]],
        [&[], &[]],
    ] {
        let forged = format!("{message}.{}", URL_SAFE_NO_PAD.encode([r, s].concat()));
        refuses(&verifier, &forged, FORGED).await;
    }
    // Zeros in the form that TLS has signatures in.
    let der = [0x30, 0x06, 0x02, 0x01, 0x00, 0x02, 0x01, 0x00];
    refuses(&verifier, &format!("{message}.{}", URL_SAFE_NO_PAD.encode(der)), FORGED).await;
    let token = ed.token();
    let (message, _) = token.rsplit_once('.').unwrap();
    let zeros = format!("{message}.{}", URL_SAFE_NO_PAD.encode([0; 64]));
    refuses(&verifier, &zeros, FORGED).await;
    accepts(&verifier, &token).await;
}

#[tokio::test]
async fn a_new_key_works_as_soon_as_it_is_there() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let source = Provider::start().await;
    source.always(set(&[&old]));
    let relay = with(&source).start().await;
    test(&relay, &old.token()).await.ok(200);
    source.always(set(&[&old, &new]));
    let began = Instant::now();
    test(&relay, &new.token()).await.ok(200);
    assert!(began.elapsed() < Duration::from_secs(1));
    test(&relay, &old.token()).await.ok(200);
    assert_eq!(source.requests().len(), 2);
    relay.finish_without_users().await;
}

/// Whoever waits for the first fetch has asked for none of their own, so the next unknown key is fetched at once.
#[tokio::test]
async fn waiting_for_the_first_fetch_does_not_delay_the_next() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let source = Provider::start().await;
    let gate = Gate::new();
    let old_set = json!({"keys": [old.jwk]}).to_string();
    let answer = Script::answer(200, "content-type: application/json\r\n");
    source.once(answer.gate(&gate).raw(old_set.as_bytes()).end());
    source.always(Script::answer(500, "").end());
    let url = format!("{}/jwks", source.base_url()).parse().unwrap();
    let key_set = Arc::new(KeySet::new(url).unwrap());
    let fetching = tokio::spawn(Arc::clone(&key_set).keep_fresh());
    let verifier = Verifier::new(None, Some(key_set), Issuers::Any);
    let token = old.token();
    let mut verified = pin!(verifier.verify(&token, clock::now()));
    assert!(poll!(&mut verified).is_pending());
    gate.open();
    verified.await.unwrap();
    let asked_again = timeout(Duration::from_millis(100), source.asked(2)).await;
    assert!(asked_again.is_err(), "a fetch that nobody needs");
    source.always(set(&[&old, &new]));
    verifier.verify(&new.token(), clock::now()).await.unwrap();
    assert_eq!(source.requests().len(), 2);
    fetching.abort();
}

#[tokio::test]
async fn a_flood_of_unknown_keys_costs_one_fetch_and_the_others_nothing() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let signer = Signer::eddsa("known");
    let source = Provider::start().await;
    source.always(set(&[&signer]));
    let relay = with(&source).start().await;
    test(&relay, &signer.token()).await.ok(200);
    // Whatever is asked for from now on is not answered: only who asks for it waits.
    source.always(Script::answer(200, "").stall());
    let began = Instant::now();
    let (client, url) = (relay.client().clone(), relay.url("/auth/test"));
    let tokens: Vec<_> = (0..10_000).map(|at| signer.token_as(&at.to_string())).collect();
    let flood = tokio::spawn(
        stream::iter(tokens)
            .map(move |token| client.get(&url).bearer_auth(token).send())
            .buffer_unordered(1_000)
            .map(|answer| answer.unwrap().status().as_u16())
            .collect::<Vec<_>>(),
    );
    source.asked(2).await;
    for _ in 0..20 {
        let began = Instant::now();
        test(&relay, &signer.token()).await.ok(200);
        assert!(began.elapsed() < Duration::from_secs(4), "a known key waited for an unknown one");
    }
    assert_eq!(flood.await.unwrap(), vec![401; 10_000]);
    // One, and one more for each cooldown that a slow machine took.
    let cooldowns = began.elapsed().as_secs() / 30;
    assert!(source.requests().len() as u64 <= 2 + cooldowns, "{:?}", source.requests());
    relay.finish_without_users().await;
}

#[tokio::test]
async fn a_flood_that_goes_on_costs_a_fetch_in_thirty_seconds_and_hides_no_new_key() {
    let (known, new) = (Signer::es256("known"), Signer::es256("new"));
    let source = Provider::start().await;
    source.always(set(&[&known]));
    let verifier = fresh(&source);
    accepts(&verifier, &known.token()).await;
    let flood = async |round: u32| {
        let tokens = (0..200).map(|at| known.token_as(&format!("{round}-{at}")));
        join_all(tokens.map(async |token| refuses(&verifier, &token, UNKNOWN).await)).await;
    };
    for round in 0..18 {
        flood(round).await;
        accepts(&verifier, &known.token()).await;
        assert_eq!(source.requests().len(), 2 + round as usize / 3);
        pass(10).await;
    }
    flood(18).await;
    source.always(set(&[&known, &new]));
    pass(20).await;
    refuses(&verifier, &new.token(), UNKNOWN).await;
    let before = source.requests().len();
    pass(10).await;
    let token = new.token();
    tokio::join!(flood(19), accepts(&verifier, &token), flood(20));
    assert_eq!(source.requests().len(), before + 1);
    accepts(&verifier, &known.token()).await;
}

#[tokio::test]
async fn known_keys_outlive_an_hour_without_their_source() {
    let (old, new) = (Signer::es256("old"), Signer::rs256("new"));
    let source = Provider::start().await;
    source.always(set(&[&old]));
    let verifier = fresh(&source);
    accepts(&verifier, &old.token()).await;
    // What it answers with is not looked at while it says that it is down.
    source.always(Script::answer(503, "").raw(text(&[&new]).as_bytes()).end());
    for tens_of_minutes in 1..=6 {
        pass(10 * 60).await;
        accepts(&verifier, &old.token()).await;
        // One fetch is due by the age of the keys, and one because somebody asks.
        source.asked(2 * tens_of_minutes).await;
        refuses(&verifier, &new.token(), UNKNOWN).await;
        assert_eq!(source.requests().len(), 1 + 2 * tens_of_minutes);
    }
    source.always(set(&[&old, &new]));
    refuses(&verifier, &new.token(), UNKNOWN).await;
    pass(30).await;
    accepts(&verifier, &new.token()).await;
    accepts(&verifier, &old.token()).await;
    // A key that the project has taken back ends with the next fetch.
    source.always(set(&[&new]));
    pass(10 * 60).await;
    source.asked(15).await;
    refuses(&verifier, &Signer::es256("x").token(), UNKNOWN).await;
    refuses(&verifier, &old.token(), UNKNOWN).await;
    accepts(&verifier, &new.token()).await;
}

/// Each holds a good set with the key that is asked for: it is the way it comes that makes it none.
#[tokio::test]
async fn a_source_that_answers_nonsense_changes_nothing() {
    let (known, wanted) = (Signer::es256("known"), Signer::es256("wanted"));
    let elsewhere = Provider::start().await;
    elsewhere.always(set(&[&known, &wanted]));
    let whole = text(&[&known, &wanted]);
    let moved = format!("location: {}/jwks\r\n", elsewhere.base_url());
    let with_status =
        |status, headers: &str| Script::answer(status, headers).raw(whole.as_bytes()).end();
    let padding = " ".repeat(SET_LEN_MAX + 1 - whole.len());
    for (nonsense, script) in [
        ("an error", with_status(500, "")),
        ("not found", with_status(404, "")),
        ("a part", with_status(206, "")),
        ("moved", with_status(302, &moved)),
        ("moved for good", with_status(301, &moved)),
        ("moved, with its method", with_status(307, &moved)),
        ("too long", answer(format!("{whole}{padding}").as_bytes())),
        ("too long in pieces", answer(format!("{padding}{whole}").as_bytes()).cut(4096)),
        ("a page", answer(format!("<html><script>{whole}</script></html>").as_bytes())),
        ("two sets", answer(format!("{whole}{whole}").as_bytes())),
        ("a set in a set", answer(format!("{{\"keys\": {whole}}}").as_bytes())),
        ("broken off at the end", answer_without_end(&whole)),
        ("reset at the end", answer_without_end(&whole).reset()),
    ] {
        let source = Provider::start().await;
        source.once(set(&[&known]));
        source.always(script);
        let relay = with(&source).start().await;
        test(&relay, &known.token()).await.ok(200);
        let answer = test(&relay, &wanted.token()).await;
        assert_eq!(answer.status, 401, "{nonsense}");
        assert!(answer.refused(401, "invalid_token").contains(UNKNOWN), "{nonsense}");
        test(&relay, &known.token()).await.ok(200);
        assert_eq!(source.requests().len(), 2, "{nonsense}");
        assert_eq!(elsewhere.connections(), 0, "{nonsense}");
        relay.finish_without_users().await;
    }
}

fn answer_without_end(body: &str) -> Script {
    Script::answer(200, "content-type: application/json\r\n").raw(body.as_bytes())
}

#[tokio::test]
async fn a_set_may_be_as_long_as_256_kib() {
    let known = Signer::es256("known");
    let source = Provider::start().await;
    let whole = text(&[&known]);
    let padding = " ".repeat(SET_LEN_MAX - whole.len());
    source.always(answer(format!("{whole}{padding}").as_bytes()));
    accepts(&fresh(&source), &known.token()).await;
}

#[tokio::test]
async fn a_source_that_is_gone_changes_nothing() {
    let (known, wanted) = (Signer::es256("known"), Signer::es256("wanted"));
    // A runtime of its own, with which it goes: after that nobody listens there.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let source = runtime.spawn(Provider::start()).await.unwrap();
    source.always(set(&[&known]));
    let relay = with(&source).start().await;
    test(&relay, &known.token()).await.ok(200);
    source.always(set(&[&known, &wanted]));
    runtime.shutdown_background();
    test(&relay, &wanted.token()).await.refused(401, "invalid_token");
    test(&relay, &known.token()).await.ok(200);
    assert_eq!(source.requests().len(), 1);
    relay.finish_without_users().await;
}

#[tokio::test]
async fn a_source_that_never_comes_to_an_end_is_given_up() {
    let (known, wanted) = (Signer::es256("known"), Signer::es256("wanted"));
    let source = Provider::start().await;
    source.once(set(&[&known]));
    let gate = Gate::new();
    let whole = text(&[&known, &wanted]);
    let head = Script::answer(200, "content-type: application/json\r\n");
    let drops = whole.as_bytes().chunks(whole.len() / 20);
    source.always(drops.fold(head, |script, drop| script.gate(&gate).raw(drop)).end());
    let verifier = fresh(&source);
    accepts(&verifier, &known.token()).await;
    let token = wanted.token();
    let mut verified = pin!(verifier.verify(&token, clock::now()));
    assert!(poll!(&mut verified).is_pending());
    source.asked(2).await;
    for _ in 0..3 {
        accepts(&verifier, &known.token()).await;
        gate.step();
        pass(2).await;
    }
    assert_eq!(verified.await.unwrap_err().code(), Code::InvalidToken);
    source.closed(1).await;
    gate.open();
    refuses(&verifier, &wanted.token(), UNKNOWN).await;
    accepts(&verifier, &known.token()).await;
}

#[tokio::test]
async fn a_source_that_is_down_at_the_start_is_tried_until_it_is_there() {
    let signer = Signer::es256("known");
    let source = Provider::start().await;
    source.always(Script::answer(503, "").end());
    let relay = with(&source).start().await;
    let answer = test(&relay, &signer.token()).await;
    answer.refused(503, "keys_unavailable");
    assert!(answer.headers.contains_key("retry-after"));
    let ready = Answer::of(relay.client().get(relay.url("/readyz")).send().await.unwrap()).await;
    assert_eq!((ready.status, &ready.json["keys"]), (503, &json!("missing")));
    source.always(set(&[&signer]));
    is_ready(&relay).await;
    test(&relay, &signer.token()).await.ok(200);
    relay.finish_without_users().await;
}

#[tokio::test]
async fn a_project_with_a_shared_secret_alone_has_an_empty_set() {
    let source = Provider::start().await;
    source.always(set(&[]));
    let relay = with(&source).env("SUPABASE_JWT_SECRET", relay::SECRET).start().await;
    test(&relay, &relay::token(&relay::claims(Uuid::now_v7()))).await.ok(200);
    test(&relay, &Signer::es256("x").token()).await.refused(401, "invalid_token");
    relay.finish_without_users().await;
}
