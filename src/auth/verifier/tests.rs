//! Tokens as Supabase signs them, and each way of getting one wrong.

use futures_util::FutureExt;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::*;

pub(super) const SECRET: &str = "super-secret-jwt-token-with-at-least-32-characters-long";
pub(super) const ISSUER: &str = "https://project.supabase.co/auth/v1";
pub(super) const NOW: i64 = 1_800_000_000;

fn verifier() -> Verifier {
    Verifier::new(SharedSecret::new(SECRET).as_ref(), None, Issuers::Only(vec![ISSUER.to_owned()]))
}

pub(super) fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "6f6f0b3c-7a27-4a4f-9d0c-0a6a1f2a4a11", "aud": "authenticated", "role": "authenticated",
        "exp": NOW + 3600, "iat": NOW, "email": "", "is_anonymous": false,
    })
}

fn token(header: &Value, claims: &Value, secret: &str) -> String {
    token_of(header.to_string(), claims.to_string(), secret)
}

/// A token of two texts that need not be JSON.
fn token_of(header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>, secret: &str) -> String {
    signed(&format!("{}.{}", encoded(header), encoded(claims)), secret)
}

pub(super) fn encoded(part: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

/// The message with its signature, whatever it is.
fn signed(message: &str, secret: &str) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

fn verify(token: &str) -> Result<Principal, Error> {
    let verifier = verifier();
    // A shared secret is there, so nothing is waited for.
    verifier.verify(token, Timestamp::from_second(NOW).unwrap()).now_or_never().unwrap()
}

/// The token must be refused with a sentence that has `reason`.
#[track_caller]
fn check_refused(token: &str, reason: &str) {
    let error = verify(token).unwrap_err();
    let start = &token[..token.len().min(80)];
    assert_eq!(error.code(), Code::InvalidToken, "{start}: {error}");
    let is_sentence = error.message().ends_with('.') && error.message().len() > 40;
    assert!(is_sentence && error.message().contains(reason), "{start}: {error}");
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
fn a_token_of_the_relays_own_is_as_good() {
    let mut claims = claims();
    claims["is_anonymous"] = json!(true);
    let signed = super::super::sign(&SharedSecret::new(SECRET).unwrap(), &claims).unwrap();
    let principal = verify(&signed).unwrap();
    assert!(principal.is_anonymous());
    assert_eq!(principal.token().expose_secret(), signed);
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
    check("aud", json!(["authenticated"]), None);
    check("aud", json!(["other", "anon"]), Some("`aud`"));
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
    for alg in [
        "none",
        "None",
        "nOnE",
        "HS384",
        "HS512",
        "RS256",
        "ES256",
        "EdDSA",
        "PS256",
        "",
        "ES256K",
        "ES512",
        "Ed25519",
        "hs256",
        "HS256 ",
        "dir",
        "RSA-OAEP",
        "PBES2-HS256+A128KW",
        "\0",
    ] {
        check_refused(&token(&json!({"alg": alg}), &claims(), SECRET), "signed in a way");
    }
    for header in [json!({}), json!({"alg": ["HS256"]}), json!({"alg": 1}), json!({"alg": null})] {
        check_refused(&token(&header, &claims(), SECRET), "no access token");
    }
    let unsigned = token(&json!({"alg": "none"}), &claims(), SECRET);
    check_refused(&format!("{}.", unsigned.rsplit_once('.').unwrap().0), "signed in a way");
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

/// RFC 7797 wants `crit` with it. Where that is missing, the field is one of those that nobody has to know.
#[test]
fn an_unencoded_payload_is_never_read() {
    let header = json!({"alg": "HS256", "b64": false});
    assert!(verify(&token(&header, &claims(), SECRET)).is_ok());
    let mut claims = claims();
    claims["iss"] = json!("without dots");
    let message = format!("{}.{claims}", encoded(header.to_string()));
    check_refused(&signed(&message, SECRET), "damaged");
}

#[test]
fn keys_in_the_header_are_ignored() {
    let attackers = "an-attackers-secret-of-at-least-32-characters";
    for (field, value) in [
        ("jku", json!("https://attacker.example/jwks.json")),
        ("x5u", json!("https://attacker.example/chain.pem")),
        ("x5c", json!(["MIIB"])),
        ("jwk", json!({"kty": "oct", "alg": "HS256", "k": encoded(attackers)})),
    ] {
        let header = json!({"alg": "HS256", field: value});
        assert!(verify(&token(&header, &claims(), SECRET)).is_ok(), "{field}");
        check_refused(&token(&header, &claims(), attackers), "signature is wrong");
    }
}

#[test]
fn forged_and_damaged_tokens_are_refused() {
    let good = token(&json!({"alg": "HS256"}), &claims(), SECRET);
    let (message, signature) = good.rsplit_once('.').unwrap();
    let other =
        token(&json!({"alg": "HS256"}), &claims(), "another-secret-of-at-least-32-characters");
    for (wrong, reason) in [
        (other, "signature is wrong"),
        (format!("{message}."), "signature is wrong"),
        (format!("{message}.{signature}="), "damaged"),
        (format!("{message}.{signature}\n"), "damaged"),
        (format!(" {good}"), "no access token"),
        (String::new(), "no access token"),
        ("x".repeat(1 << 20), "longer than any"),
        (format!("{good}{}", "A".repeat(TOKEN_LEN_MAX)), "longer than any"),
    ] {
        check_refused(&wrong, reason);
    }
}

#[test]
fn a_token_has_three_parts() {
    let good = token(&json!({"alg": "HS256"}), &claims(), SECRET);
    let parts: Vec<_> = good.split('.').collect();
    for wrong in [
        parts[0].to_owned(),
        parts[..2].join("."),
        format!("{good}.x"),
        format!("{good}.x.y"),
        format!(".{}.{}", parts[1], parts[2]),
        "..".to_owned(),
        json!({"protected": parts[0], "payload": parts[1], "signature": parts[2]}).to_string(),
    ] {
        check_refused(&wrong, "no access token");
    }
    // Encrypted ones have five.
    for alg in ["dir", "RSA-OAEP-256"] {
        let header = encoded(json!({"alg": alg, "enc": "A256GCM"}).to_string());
        check_refused(&format!("{header}.a2V5.aXY.dGV4dA.dGFn"), "signed in a way");
    }
}

/// The part, with a bit of its last character set that belongs to no byte: carelessly read, it is the same.
fn with_spare_bit(part: &str) -> String {
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = part.split_at(part.len() - 1);
    let at = alphabet.find(last).unwrap();
    assert!(
        !part.len().is_multiple_of(4) && at.is_multiple_of(4),
        "there are no spare bits in {part}"
    );
    format!("{rest}{}", &alphabet[at + 1..at + 2])
}

#[test]
fn base64_has_one_form() {
    // Long enough by one to leave bits over.
    let text = |json: Value| {
        let text = json.to_string();
        let spaces = if text.len().is_multiple_of(3) { 1 } else { 0 };
        encoded(text + &" ".repeat(spaces))
    };
    let (header, claims) = (text(json!({"alg": "HS256"})), text(claims()));
    let good = signed(&format!("{header}.{claims}"), SECRET);
    assert!(verify(&good).is_ok());
    let (message, signature) = good.rsplit_once('.').unwrap();
    check_refused(&format!("{message}.{}", with_spare_bit(signature)), "damaged");
    for other in [
        with_spare_bit(&claims),
        format!("{claims}="),
        format!("{claims}=="),
        format!("{claims}\n"),
    ] {
        check_refused(&signed(&format!("{header}.{other}"), SECRET), "damaged");
    }
    for other in [with_spare_bit(&header), format!("{header}="), format!("\n{header}")] {
        check_refused(&signed(&format!("{other}.{claims}"), SECRET), "no access token");
    }
    // The other alphabet: some token has a character that differs.
    let differs = (0..)
        .map(|at| token(&json!({"alg": "HS256"}), &json!({"at": at}), SECRET))
        .find(|token| token.rsplit_once('.').unwrap().1.contains(['-', '_']))
        .unwrap();
    let (message, signature) = differs.rsplit_once('.').unwrap();
    let signature = signature.replace('-', "+").replace('_', "/");
    check_refused(&format!("{message}.{signature}"), "damaged");
}

#[test]
fn a_token_is_utf_8() {
    let wide = |text: String| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    let header = json!({"alg": "HS256"}).to_string();
    check_refused(&token_of(wide(header.clone()), claims().to_string(), SECRET), "no access token");
    check_refused(&token_of(&header, wide(claims().to_string()), SECRET), "lacks a claim");
    check_refused(&token_of(&header, b"{\"sub\": \"\xff\"}", SECRET), "lacks a claim");
    // In a claim that nobody reads.
    let mut unread = claims().to_string().replace("\"email\":\"\"", "\"email\":\"?\"").into_bytes();
    assert!(verify(&token_of(&header, &unread, SECRET)).is_ok());
    let at = unread.iter().position(|byte| *byte == b'?').unwrap();
    unread[at] = 0xff;
    check_refused(&token_of(&header, &unread, SECRET), "lacks a claim");
    for text in ["\u{feff}{}", "", "null", "[]", "7", "{", "{} {}"] {
        check_refused(&token_of(&header, text, SECRET), "lacks a claim");
        check_refused(&token_of(text, claims().to_string(), SECRET), "no access token");
    }
}

#[test]
fn a_token_for_another_use_is_no_login() {
    let of = |kind: &str| token(&json!({"alg": "HS256", "typ": kind}), &claims(), SECRET);
    for kind in ["JWT", "jwt", "at+jwt", "application/at+JWT"] {
        assert!(verify(&of(kind)).is_ok(), "{kind}");
    }
    for kind in ["logout+jwt", "dpop+jwt", "", "application/", "jwt ", "JOSE"] {
        check_refused(&of(kind), "another kind");
    }
}

#[test]
fn a_token_has_its_longest_length() {
    let of = |len: usize| {
        let mut claims = claims();
        claims["email"] = json!("x".repeat(len));
        token(&json!({"alg": "HS256"}), &claims, SECRET)
    };
    let lens = (0..TOKEN_LEN_MAX / 4 * 3).rev();
    let longest = lens.map(of).find(|token| token.len() <= TOKEN_LEN_MAX).unwrap();
    assert_eq!(longest.len(), TOKEN_LEN_MAX);
    assert!(verify(&longest).is_ok());
    check_refused(&format!("{longest}AA"), "longer than any");
}

/// A cache by the beginning of a token, which is the same for everybody, has made one user of another elsewhere.
#[test]
fn tokens_that_begin_alike_are_told_apart() {
    let header = json!({"alg": "HS256", "typ": "JWT"});
    let mine = token(&header, &claims(), SECRET);
    let mut other = claims();
    other["sub"] = json!("6f6f0b3c-7a27-4a4f-9d0c-0a6a1f2a4a12");
    let other = token(&header, &other, SECRET);
    assert_eq!(mine[..20], other[..20]);
    let verifier = verifier();
    let verify = |token: &str| {
        let now = Timestamp::from_second(NOW).unwrap();
        verifier.verify(token, now).now_or_never().unwrap()
    };
    assert_ne!(verify(&mine).unwrap().user(), verify(&other).unwrap().user());
    assert!(verify(&mine).is_ok());
    let (message, _) = other.rsplit_once('.').unwrap();
    let (beginning, signature) = mine.rsplit_once('.').unwrap();
    for wrong in [format!("{message}.{signature}"), format!("{beginning}.{}", "A".repeat(43))] {
        assert_eq!(verify(&wrong).unwrap_err().code(), Code::InvalidToken);
        check_refused(&wrong, "signature is wrong");
    }
}

#[test]
fn ends_beyond_all_time_are_no_overflow() {
    for (exp, ends) in [
        ("9e15", true),
        ("1e300", true),
        ("99999999999999999999999", true),
        ("1e309", false),
        ("-1e309", false),
    ] {
        let claims = claims().to_string().replace(&(NOW + 3600).to_string(), exp);
        let token = token_of(r#"{"alg":"HS256"}"#, claims, SECRET);
        if ends {
            assert_eq!(verify(&token).unwrap().expires_at(), Timestamp::MAX);
        } else {
            check_refused(&token, "lacks a claim");
        }
    }
    check("exp", json!("1e309"), Some("lacks a claim"));
    check("exp", json!(true), Some("lacks a claim"));
    check("exp", json!(-1e300), Some("expired"));
    check("nbf", json!(1e300), Some("not valid yet"));
    check("iat", json!(1e300), Some("issued in the future"));
}

#[test]
fn a_user_is_one_uuid() {
    let id = "6f6f0b3c-7a27-4a4f-9d0c-0a6a1f2a4a11";
    for sub in [
        "x".repeat(10 << 10),
        format!("{id}\0"),
        format!(" {id}"),
        format!("urn:uuid:{id}"),
        id.replace('-', "\u{2010}"),
        "z".repeat(36),
    ] {
        check("sub", json!(sub), Some("`sub`"));
    }
    for sub in [json!([id]), json!([]), json!(7), json!(true)] {
        check("sub", sub, Some("lacks a claim"));
    }
}

#[test]
fn nothing_is_said_twice() {
    let claims = claims().to_string();
    for twice in [
        r#""role":"service_role""#,
        r#""role":"authenticated""#,
        r#""sub":"6f6f0b3c-7a27-4a4f-9d0c-0a6a1f2a4a12""#,
        r#""\u0073ub":"6f6f0b3c-7a27-4a4f-9d0c-0a6a1f2a4a12""#,
        r#""exp":9e15"#,
        r#""aud":"authenticated""#,
        r#""iss":"https://project.supabase.co/auth/v1""#,
        r#""iat":0"#,
        r#""is_anonymous":false"#,
    ] {
        let first = claims.replacen('{', &format!("{{{twice},"), 1);
        let last = format!("{},{twice}}}", claims.strip_suffix('}').unwrap());
        for claims in [first, last] {
            check_refused(&token_of(r#"{"alg":"HS256"}"#, claims, SECRET), "twice");
        }
    }
    for (header, reason) in [
        (r#"{"alg":"none","alg":"HS256"}"#, "no access token"),
        (r#"{"alg":"HS256","alg":"HS256"}"#, "no access token"),
        (r#"{"alg":"HS256","\u0061lg":"none"}"#, "signed in a way"),
        (r#"{"alg":"HS256","kid":"a","kid":"b"}"#, "no access token"),
        (r#"{"alg":"HS256","crit":["b64"],"crit":[]}"#, "critical"),
    ] {
        check_refused(&token_of(header, &claims, SECRET), reason);
    }
}
