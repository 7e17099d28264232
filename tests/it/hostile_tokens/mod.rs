//! A corpus of hostile tokens: RFC 8725 point by point, for a key of every kind, each refused for its own reason and beside
//! others that are only unusual and pass.

mod algorithms;
mod claims;
mod controls;
mod headers;
mod signatures;
mod writings;

use std::collections::HashSet;

use aws_lc_rs::signature::ED25519_PUBLIC_KEY_LEN;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use serde_json::{Value, json};
use storytellr_relay::auth::{Issuers, SharedSecret, Verifier};
use storytellr_relay::clock;
use storytellr_relay::error::Code;
use uuid::Uuid;

use self::controls::controls;
use crate::key_sets::{self, UNKNOWN, set, test};
use crate::provider::Provider;
use crate::relay::{self, ISSUER};
use crate::signer::{Signer, with};

/// What is told besides the reasons of `key_sets.rs`.
const NO_TOKEN: &str = "no access token";
const DAMAGED: &str = "damaged";
const CRITICAL: &str = "critical";
const KIND: &str = "another kind of token";
const NAMELESS: &str = "which key";
const CLAIM: &str = "lacks a claim";
const LONG: &str = "longer than any";

/// What the attacker signs with where the project has a secret.
const ATTACKERS_SECRET: &str = "an-attackers-secret-of-at-least-32-characters";

/// The keys of a project in migration, which has all there are, and an attacker's of each kind and of the same name.
struct Keys {
    ours: [Signer; 4],
    theirs: [Signer; 4],
    /// Where a set with the attacker's can be had.
    theirs_at: String,
}

impl Keys {
    fn new(elsewhere: &Provider) -> Self {
        let make =
            || [Signer::hs256(), Signer::es256("ec"), Signer::rs256("rsa"), Signer::eddsa("ed")];
        let mut theirs = make();
        theirs[0].encoding = EncodingKey::from_secret(ATTACKERS_SECRET.as_bytes());
        elsewhere.always(set(&public(&theirs)));
        Self { ours: make(), theirs, theirs_at: format!("{}/jwks", elsewhere.base_url()) }
    }
}

/// Those that a set has, which is all but the secret.
fn public(signers: &[Signer]) -> Vec<&Signer> {
    signers.iter().skip(1).collect()
}

/// Tokens, by what is wrong with them and what they must be told.
#[derive(Default)]
struct Corpus(Vec<(String, String, &'static str)>);

impl Corpus {
    fn add(&mut self, what: impl Into<String>, token: impl Into<String>, reason: &'static str) {
        self.0.push((what.into(), token.into(), reason));
    }

    /// A good token but for that claim.
    fn add_claim(&mut self, signer: &Signer, claim: &str, value: &Value, reason: &'static str) {
        let start: String = value.to_string().chars().take(60).collect();
        let claims = with(claims(), claim, value).to_string();
        let token = signer.compact(signer.header().to_string(), claims);
        self.add(format!("{claim} {start}: {:?}", signer.algorithm), token, reason);
    }
}

fn claims() -> Value {
    relay::claims(Uuid::now_v7())
}

/// Message and signature of a good token.
fn good(signer: &Signer) -> (String, String) {
    let token = signer.compact(signer.header().to_string(), claims().to_string());
    let (message, signature) = token.rsplit_once('.').unwrap();
    (message.to_owned(), signature.to_owned())
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decoded(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).unwrap()
}

fn corpus(keys: &Keys) -> Corpus {
    let mut corpus = Corpus::default();
    for part in [
        algorithms::unknown,
        algorithms::of_other_keys,
        algorithms::public_keys_as_secrets,
        signatures::of_other_messages,
        signatures::off_the_curve,
        writings::of_tokens,
        writings::of_claims_and_headers,
        writings::too_long,
        headers::of_tokens,
        headers::of_encrypted_tokens_and_names,
        headers::keys_brought_along,
        claims::of_other_types,
        claims::times,
        claims::of_others,
    ] {
        part(keys, &mut corpus);
    }
    corpus
}

#[tokio::test]
async fn each_hostile_token_is_refused_for_its_reason_and_each_unusual_one_is_not() {
    let (source, elsewhere) = (Provider::start().await, Provider::start().await);
    let keys = Keys::new(&elsewhere);
    source.always(set(&public(&keys.ours)));
    let verifier = Verifier::new(
        SharedSecret::new(relay::SECRET).as_ref(),
        Some(key_sets::kept_fresh(&source)),
        Issuers::Only(vec![ISSUER.to_owned()]),
    );
    let relay = key_sets::with(&source)
        .env("SUPABASE_JWT_SECRET", relay::SECRET)
        .env("RELAY_LOG", "trace")
        .start()
        .await;

    let corpus = corpus(&keys).0;
    let mut faults = Vec::new();
    for (what, token, reason) in &corpus {
        let message = match verifier.verify(token, clock::now()).await {
            Err(error) if error.code() == Code::InvalidToken => error.message().into_owned(),
            otherwise => format!("{otherwise:?}"),
        };
        if !message.contains(reason) {
            faults.push(format!("{what}: {message}"));
        // What no header can hold is not even sent.
        } else if token.bytes().all(|byte| byte.is_ascii_graphic()) {
            assert_eq!(test(&relay, token).await.refused(401, "invalid_token"), message, "{what}");
        }
    }
    for (what, token) in controls(&keys) {
        let verified = verifier.verify(&token, clock::now()).await;
        let answer = test(&relay, &token).await;
        if verified.is_err() || answer.status != 200 {
            faults.push(format!("{what}: {verified:?}, {}", answer.json));
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));

    let different: HashSet<_> = corpus.iter().map(|(_, token, _)| token).collect();
    println!("{} hostile tokens", different.len());
    assert!(different.len() >= 1_000, "{}", different.len());
    assert_eq!(elsewhere.connections(), 0, "a token was followed");
    relay.finish_without_users().await;
}

/// With such a key in a set everybody signs: the neutral element and zero are a signature of every message to it, and of
/// one in two, four or eight to the others.
#[tokio::test]
async fn a_key_that_everybody_can_sign_for_is_no_key() {
    let small_order = [
        "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "7P_______________________________________38",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "JuiVj8KyJ7BFw_SJ8u-Y8NXfrAXTxjM5sTgCiG1T_AU",
    ];
    let named = |at: usize| format!("weak-{at}");
    let mut keys: Vec<_> = small_order
        .iter()
        .enumerate()
        .map(|(at, x)| json!({"kty": "OKP", "crv": "Ed25519", "kid": named(at), "x": x}))
        .collect();
    // And one whose private part is there for everybody to read.
    let published = Signer::es256("published");
    keys.push(with(published.jwk.clone(), "d", &json!(encoded([7; 32]))));
    let known = Signer::eddsa("known");
    keys.push(known.jwk.clone());
    let source = Provider::start().await;
    source.always(key_sets::answer(json!({"keys": keys}).to_string().as_bytes()));
    let relay = key_sets::with(&source).start().await;
    test(&relay, &known.token()).await.ok(200);
    let neutral = encoded([&[1][..], &[0; 2 * ED25519_PUBLIC_KEY_LEN - 1]].concat());
    for at in 0..small_order.len() {
        let header = json!({"alg": "EdDSA", "typ": "JWT", "kid": named(at)}).to_string();
        let forged = format!("{}.{}.{neutral}", encoded(header), encoded(claims().to_string()));
        let answer = test(&relay, &forged).await;
        assert!(answer.refused(401, "invalid_token").contains(UNKNOWN), "key {at}");
    }
    assert!(test(&relay, &published.token()).await.refused(401, "invalid_token").contains(UNKNOWN));
    test(&relay, &known.token()).await.ok(200);
    let log = relay.log();
    assert!(log.contains("so weak that others can sign") && log.contains("private part"), "{log}");
    relay.finish_without_users().await;
}
