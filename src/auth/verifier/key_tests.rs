//! Tokens that are signed with a key of the project's.

use serde_json::{Value, json};

use super::tests::{ISSUER, NOW, SECRET, claims, encoded};
use super::*;

/// The private key of RFC 8037's example, whose public one is in [`key`].
const ED25519: &str = "302e020100300506032b6570042204209d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";

fn key(kid: &str) -> Value {
    json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
}

/// A token of the key, whatever algorithm its header names.
fn signed_by_key(alg: &str, kid: &str) -> String {
    let header = encoded(json!({"alg": alg, "kid": kid}).to_string());
    let message = format!("{header}.{}", encoded(claims().to_string()));
    let bytes = (0..ED25519.len()).step_by(2);
    let der: Vec<_> =
        bytes.map(|at| u8::from_str_radix(&ED25519[at..at + 2], 16).unwrap()).collect();
    let key = jsonwebtoken::EncodingKey::from_ed_der(&der);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::EdDSA).unwrap();
    format!("{message}.{signature}")
}

async fn verified_by(set: Result<Value, &'static str>, token: &str) -> Result<Principal, Error> {
    let key_set = KeySet::of_answer(set).await;
    let verifier = Verifier::new(None, Some(key_set), Issuers::Only(vec![ISSUER.to_owned()]));
    verifier.verify(token, Timestamp::from_second(NOW).unwrap()).await
}

#[tokio::test(start_paused = true)]
async fn a_token_of_a_key_of_the_project_is_checked_with_that_key() {
    let token = signed_by_key("EdDSA", "a");
    let set = |keys: &[Value]| Ok(json!({"keys": keys}));
    let principal = verified_by(set(&[key("b"), key("a")]), &token).await.unwrap();
    assert_eq!(principal.user().to_string(), "6f6f0b3c-7a27-4a4f-9d0c-0a6a1f2a4a11");
    let ec = json!({"kty": "EC", "crv": "P-256", "kid": "a", "x": "M5Sjqn5zwC9Kl1zVfUUGvv9boQjCGd45G8sdopBExB4", "y": "P6IXMvA2WYXSHSOMTBH2jsw_9rrzGy89FjPf6oOsIxQ"});
    for (set, token) in [
        (set(&[key("b")]), &token),
        (set(&[]), &token),
        // The key of that name is for something else, whatever the token says of itself.
        (set(&[ec]), &token),
        (set(&[key("a")]), &signed_by_key("ES256", "a")),
    ] {
        let error = verified_by(set, token).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidToken);
        assert!(error.message().contains("not among the project's"), "{error}");
    }
    let mut forged = token.clone();
    forged.replace_range(token.len() - 10..token.len() - 8, "AA");
    let error = verified_by(set(&[key("a")]), &forged).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidToken);
    assert_eq!(verified_by(Err("down"), &token).await.unwrap_err().code(), Code::KeysUnavailable);
}

#[tokio::test(start_paused = true)]
async fn it_is_ready_when_there_is_anything_to_check_with() {
    let secret = SharedSecret::new(SECRET);
    let (down, empty) = (Err("down"), Ok(json!({"keys": []})));
    for (secret, set, is_ready) in [
        (None, None, false),
        (secret.as_ref(), None, true),
        (None, Some(down.clone()), false),
        (None, Some(empty), true),
        (secret.as_ref(), Some(down), true),
    ] {
        let key_set = match set {
            Some(set) => Some(KeySet::of_answer(set).await),
            None => None,
        };
        assert_eq!(Verifier::new(secret, key_set, Issuers::Only(vec![])).is_ready(), is_ready);
    }
}
