//! Tokens as Supabase signs them, and each way of getting one wrong.

use futures_util::FutureExt;
use serde_json::{Value, json};

use super::*;

const SECRET: &str = "super-secret-jwt-token-with-at-least-32-characters-long";
const ISSUER: &str = "https://project.supabase.co/auth/v1";
const NOW: i64 = 1_800_000_000;

fn verifier() -> Verifier {
    Verifier::new(SharedSecret::new(SECRET).as_ref(), None, Issuers::Only(vec![ISSUER.to_owned()]))
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "6f6f0b3c-7a27-4a4f-9d0c-0a6a1f2a4a11", "aud": "authenticated", "role": "authenticated",
        "exp": NOW + 3600, "iat": NOW, "email": "", "is_anonymous": false,
    })
}

fn token(header: &Value, claims: &Value, secret: &str) -> String {
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

fn verify(token: &str) -> Result<Principal, Error> {
    let verifier = verifier();
    // A shared secret is there, so nothing is waited for.
    verifier.verify(token, Timestamp::from_second(NOW).unwrap()).now_or_never().unwrap()
}

/// The token with one claim changed (`null`: removed) must be accepted, or refused with a message that has `reason`.
#[track_caller]
fn check(claim: &str, value: Value, reason: Option<&str>) {
    let mut claims = claims();
    match value {
        Value::Null => claims.as_object_mut().unwrap().remove(claim),
        value => claims.as_object_mut().unwrap().insert(claim.to_owned(), value),
    };
    let verified = verify(&token(&json!({"alg": "HS256", "typ": "JWT"}), &claims, SECRET));
    match (verified, reason) {
        (Ok(_), None) => {}
        (Err(error), Some(reason)) => {
            assert_eq!(error.code(), Code::InvalidToken);
            assert!(error.message().contains(reason), "{claims}: {error}");
        }
        (verified, _) => panic!("{claims}: {verified:?}"),
    }
}

#[test]
fn a_token_as_supabase_signs_it_is_accepted() {
    let principal = verify(&token(&json!({"alg": "HS256"}), &claims(), SECRET)).unwrap();
    assert_eq!(principal.user().to_string(), "6f6f0b3c-7a27-4a4f-9d0c-0a6a1f2a4a11");
    assert_eq!(principal.expires_at().as_second(), NOW + 3600);
    assert!(!principal.is_anonymous());
}

#[test]
fn a_kid_of_any_kind_is_ignored() {
    for kid in ["x", "../../dev/null", "' OR 1=1--", "|sleep 5"] {
        assert!(verify(&token(&json!({"alg": "HS256", "kid": kid}), &claims(), SECRET)).is_ok());
    }
}

#[test]
fn times_have_thirty_seconds_of_skew() {
    check("exp", json!(NOW - 29), None);
    check("exp", json!(NOW - 30), Some("expired"));
    check("exp", json!(-1), Some("expired"));
    check("exp", json!(NOW as f64 + 0.5), None);
    check("nbf", json!(NOW + 30), None);
    check("nbf", json!(NOW + 31), Some("not valid yet"));
    check("iat", json!(NOW + 30), None);
    check("iat", json!(NOW + 31), Some("issued in the future"));
    check("iat", Value::Null, None);
}

#[test]
fn claims_must_be_there_and_of_their_type() {
    for claim in ["exp", "aud", "iss", "sub", "role"] {
        check(claim, Value::Null, Some("lacks a claim"));
        check(claim, json!({"a": 1}), Some("lacks a claim"));
    }
    check("exp", json!("1900000000"), Some("lacks a claim"));
    check("iss", json!([ISSUER]), Some("lacks a claim"));
    check("nbf", json!("soon"), Some("lacks a claim"));
}

#[test]
fn only_signed_in_users_of_this_project_pass() {
    check("aud", json!(["other", "authenticated"]), None);
    check("aud", json!([]), Some("`aud`"));
    check("aud", json!(""), Some("`aud`"));
    check("aud", json!("anon"), Some("`aud`"));
    check("role", json!("anon"), Some("`role`"));
    check("role", json!("service_role"), Some("`role`"));
    check("iss", json!("https://other.supabase.co/auth/v1"), Some("`iss`"));
    check("iss", json!(format!("{ISSUER}/")), Some("`iss`"));
    check("iss", json!("https://PROJECT.supabase.co/auth/v1"), Some("`iss`"));
    for sub in
        ["", "1", "6f6f0b3c7a274a4f9d0c0a6a1f2a4a11", "{6f6f0b3c-7a27-4a4f-9d0c-0a6a1f2a4a11}"]
    {
        check("sub", json!(sub), Some("`sub`"));
    }
}

#[test]
fn the_projects_own_keys_are_no_users() {
    // The public demo key of the Supabase CLI.
    let anon = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJzdXBhYmFzZS1kZW1vIiwicm9sZSI6ImFub24iLCJleHAiOjE5ODM4MTI5OTZ9.CRXP1A7WOeoJeXxjNni43kdQwgnWNReilDMblYTn_I0";
    assert_eq!(verify(anon).unwrap_err().code(), Code::InvalidToken);
    assert_eq!(
        verify("sb_publishable_ACJWlzQHlZjBrEguHvfOxg_3BJgxAaH").unwrap_err().code(),
        Code::InvalidToken
    );
}

#[test]
fn other_algorithms_and_unsigned_tokens_are_refused() {
    for alg in ["none", "None", "nOnE", "HS384", "HS512", "RS256", "ES256", "EdDSA", "PS256", ""] {
        assert!(verify(&token(&json!({"alg": alg}), &claims(), SECRET)).is_err(), "{alg}");
    }
    for header in [json!({}), json!({"alg": ["HS256"]}), json!({"alg": 1}), json!({"alg": null})] {
        assert!(verify(&token(&header, &claims(), SECRET)).is_err(), "{header}");
    }
    let unsigned = token(&json!({"alg": "none"}), &claims(), SECRET);
    assert!(verify(&format!("{}.", unsigned.rsplit_once('.').unwrap().0)).is_err());
}

#[test]
fn critical_extensions_are_refused() {
    for crit in [json!(["exp"]), json!([]), json!("b64")] {
        let error =
            verify(&token(&json!({"alg": "HS256", "crit": crit, "b64": false}), &claims(), SECRET))
                .unwrap_err();
        assert!(error.message().contains("critical"), "{error}");
    }
}

#[test]
fn forged_and_damaged_tokens_are_refused() {
    let good = token(&json!({"alg": "HS256"}), &claims(), SECRET);
    let (message, signature) = good.rsplit_once('.').unwrap();
    let other =
        token(&json!({"alg": "HS256"}), &claims(), "another-secret-of-at-least-32-characters");
    let wrong = [
        other,
        message.to_owned(),
        format!("{message}."),
        format!("{message}.{signature}="),
        format!("{message}.{signature}.x"),
        format!("{message}.{signature}\n"),
        format!(" {good}"),
        String::new(),
        "x".repeat(1 << 20),
    ];
    for wrong in wrong {
        assert_eq!(
            verify(&wrong).unwrap_err().code(),
            Code::InvalidToken,
            "{}",
            &wrong[..wrong.len().min(80)]
        );
    }
}

#[test]
fn duplicate_claims_are_refused() {
    let claims = claims().to_string().replacen('{', r#"{"role":"service_role","#, 1);
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#),
        URL_SAFE_NO_PAD.encode(claims)
    );
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    assert!(verify(&format!("{message}.{signature}")).is_err());
}
