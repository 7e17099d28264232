//! Tokens signed with the project's own keys, and a key set's source that is slow, down, wrong, or ahead of the relay.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures_util::poll;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use storytellr_relay::auth::{Issuers, KeySet, Verifier};
use storytellr_relay::clock;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::provider::{Gate, PATIENCE, Provider, Script};
use crate::relay::{self, Answer, Builder, TestRelay};

/// A key of the project: what signs, and what the set says of it.
struct Signer {
    kid: String,
    algorithm: Algorithm,
    encoding: EncodingKey,
    jwk: Value,
}

impl Signer {
    fn es256(kid: &str) -> Self {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).unwrap();
        let point = pair.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        Self {
            kid: kid.to_owned(),
            algorithm: Algorithm::ES256,
            encoding: EncodingKey::from_ec_der(pkcs8.as_ref()),
            jwk: json!({"kty": "EC", "crv": "P-256", "kid": kid, "alg": "ES256", "use": "sig", "x": x, "y": y}),
        }
    }

    fn eddsa(kid: &str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        Self {
            kid: kid.to_owned(),
            algorithm: Algorithm::EdDSA,
            encoding: EncodingKey::from_ed_der(pkcs8.as_ref()),
            jwk: json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x}),
        }
    }

    fn rs256(kid: &str) -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let public = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
        let (n, e) = (URL_SAFE_NO_PAD.encode(public.n), URL_SAFE_NO_PAD.encode(public.e));
        Self {
            kid: kid.to_owned(),
            algorithm: Algorithm::RS256,
            encoding: EncodingKey::from_rsa_pem(
                pem(AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).unwrap().as_ref()).as_bytes(),
            )
            .unwrap(),
            jwk: json!({"kty": "RSA", "kid": kid, "alg": "RS256", "n": n, "e": e}),
        }
    }

    /// A user's token that says it is signed with the key `kid`.
    fn token_as(&self, kid: &str) -> String {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, &relay::claims(Uuid::now_v7()), &self.encoding).unwrap()
    }

    fn token(&self) -> String {
        self.token_as(&self.kid)
    }
}

fn pem(pkcs8: &[u8]) -> String {
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(pkcs8))
}

fn set(signers: &[&Signer]) -> Script {
    let keys: Vec<_> = signers.iter().map(|signer| &signer.jwk).collect();
    answer(json!({"keys": keys}).to_string().as_bytes())
}

fn answer(body: &[u8]) -> Script {
    Script::answer(200, "content-type: application/json\r\n").raw(body).end()
}

/// A relay that fetches its keys from `source` and has no secret.
fn with(source: &Provider) -> Builder {
    let url = format!("{}/.well-known/jwks.json", source.base_url());
    TestRelay::with(source).env("SUPABASE_JWKS_URL", url).env("SUPABASE_JWT_SECRET", "")
}

async fn test(relay: &TestRelay, token: &str) -> Answer {
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
    let public = ec.jwk.to_string();
    let confused = jsonwebtoken::encode(
        &Header { kid: Some("ec".to_owned()), ..Header::new(Algorithm::HS256) },
        &relay::claims(Uuid::now_v7()),
        &EncodingKey::from_secret(public.as_bytes()),
    );
    let nameless = jsonwebtoken::encode(
        &Header::new(Algorithm::ES256),
        &relay::claims(Uuid::now_v7()),
        &ec.encoding,
    );
    for wrong in [
        ec.token_as("rsa"),
        rsa.token_as("ec"),
        other.token_as("ec"),
        confused.unwrap(),
        nameless.unwrap(),
    ] {
        test(&relay, &wrong).await.refused(401, "invalid_token");
    }
    relay.finish_without_users().await;
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
    let signer = Signer::eddsa("known");
    let source = Provider::start().await;
    source.always(set(&[&signer]));
    let relay = with(&source).start().await;
    test(&relay, &signer.token()).await.ok(200);
    // Whatever is asked for from now on is not answered: only who asks for it waits.
    source.always(Script::answer(200, "").stall());
    let flood: Vec<_> = (0..2_000)
        .map(|at| {
            let request = relay
                .client()
                .get(relay.url("/auth/test"))
                .bearer_auth(signer.token_as(&at.to_string()));
            tokio::spawn(async move { Answer::of(request.send().await.unwrap()).await.status })
        })
        .collect();
    source.asked(2).await;
    for _ in 0..20 {
        let began = Instant::now();
        test(&relay, &signer.token()).await.ok(200);
        assert!(began.elapsed() < Duration::from_secs(4), "a known key waited for an unknown one");
    }
    for request in flood {
        assert_eq!(request.await.unwrap(), 401);
    }
    assert_eq!(source.requests().len(), 2);
    relay.finish_without_users().await;
}

#[tokio::test]
async fn a_source_that_answers_nonsense_changes_nothing() {
    let signer = Signer::es256("known");
    for nonsense in [
        Script::answer(500, "").end(),
        Script::answer(302, "location: http://127.0.0.1:9/\r\n").end(),
        answer(b"<html>"),
        answer(b"{\"keys\": 7}"),
        answer(&vec![b' '; 1 << 20]),
        Script::answer(200, "").reset(),
    ] {
        let source = Provider::start().await;
        source.once(set(&[&signer]));
        source.always(nonsense);
        let relay = with(&source).start().await;
        test(&relay, &signer.token()).await.ok(200);
        test(&relay, &signer.token_as("unknown")).await.refused(401, "invalid_token");
        test(&relay, &signer.token()).await.ok(200);
        relay.finish_without_users().await;
    }
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
