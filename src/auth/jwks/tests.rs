//! Key sets as projects have them, and what must not become a key: each with its reason, beside a key that does.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::*;

/// The public signing key of the Supabase CLI, RFC 8037's Ed25519 key, and the RSA key of RFC 7515's appendix A.2.
fn ec() -> Value {
    json!({"kty": "EC", "crv": "P-256", "kid": "ec", "alg": "ES256", "use": "sig", "key_ops": ["verify"],
        "x": "M5Sjqn5zwC9Kl1zVfUUGvv9boQjCGd45G8sdopBExB4", "y": "P6IXMvA2WYXSHSOMTBH2jsw_9rrzGy89FjPf6oOsIxQ"})
}

fn ed() -> Value {
    json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
}

fn rsa() -> Value {
    json!({"kty": "RSA", "kid": "rsa", "e": "AQAB",
        "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"})
}

/// The key with that in it instead; `null` takes a field away.
fn with(mut key: Value, field: &str, value: Value) -> Value {
    match value {
        Value::Null => key.as_object_mut().unwrap().remove(field),
        value => key.as_object_mut().unwrap().insert(field.to_owned(), value),
    };
    key
}

fn number(bytes: impl AsRef<[u8]>) -> Value {
    json!(URL_SAFE_NO_PAD.encode(bytes))
}

/// A number of that many bytes: odd, and with that first byte.
fn long(first: u8, len: usize) -> Value {
    let mut bytes = vec![0xC1; len];
    bytes[0] = first;
    number(bytes)
}

fn read(keys: &Value) -> Set {
    parse(json!({"keys": keys}).to_string().as_bytes()).unwrap()
}

#[track_caller]
fn check(keys: &Value, expected: &[(&str, Algorithm)]) {
    let set = read(keys);
    let mut found: Vec<_> =
        set.keys.iter().map(|(kid, key)| (kid.as_str(), key.algorithm)).collect();
    found.sort_unstable_by_key(|(kid, _)| *kid);
    assert_eq!((found.as_slice(), set.passed_over), (expected, vec![]));
}

#[test]
fn keys_are_bound_to_the_algorithm_of_their_kind() {
    check(
        &json!([ec(), ed(), rsa()]),
        &[("ec", Algorithm::ES256), ("ed", Algorithm::EdDSA), ("rsa", Algorithm::RS256)],
    );
    check(&json!([]), &[]);
}

#[test]
fn what_is_only_unusual_is_a_key() {
    for unusual in [
        with(ec(), "alg", json!(null)),
        with(ec(), "use", json!(null)),
        with(ec(), "key_ops", json!(null)),
        with(ec(), "key_ops", json!(["sign", "verify"])),
        with(ec(), "kid", json!("")),
        with(ec(), "kid", json!("\u{0}\u{202e}../../dev/null' OR 1=1--")),
        with(ec(), "x5u", json!("https://attacker.example/chain.pem")),
        with(ec(), "jku", json!("https://attacker.example/jwks.json")),
        with(ec(), "ext", json!(true)),
    ] {
        let kid = unusual["kid"].as_str().unwrap();
        check(&json!([unusual]), &[(kid, Algorithm::ES256)]);
    }
    let modulus = URL_SAFE_NO_PAD.decode(rsa()["n"].as_str().unwrap()).unwrap();
    for unusual in [
        with(rsa(), "n", number([&[0, 0], modulus.as_slice()].concat())),
        with(rsa(), "e", number([0, 1, 0, 1])),
        with(rsa(), "n", long(0x80, 1024)),
        with(rsa(), "e", number([1, 0xFF, 0xFF, 0xFF, 0xFF])),
        with(rsa(), "crv", json!("P-256")),
    ] {
        check(&json!([unusual]), &[("rsa", Algorithm::RS256)]);
    }
}

/// Each field of each key with what does not belong there.
fn hostile_keys() -> Vec<(Value, Unusable)> {
    let mut hostile = Vec::new();
    for key in [ec(), ed(), rsa()] {
        hostile.extend(of_any_kind(&key));
    }
    hostile.extend(of_ecdsa());
    hostile.extend(of_ed25519());
    hostile.extend(of_rsa());
    for no_key in [json!("nonsense"), json!({}), json!(null), json!([]), json!(7), json!([ec()])] {
        hostile.push((no_key, Unusable::Shape));
    }
    let secret = json!({"kty": "oct", "kid": "oct", "k": "c2VjcmV0", "alg": "HS256"});
    hostile.push((secret, Unusable::Kind));
    // Of the wrong type, though no key of this kind has it: whoever made it was careless.
    hostile.push((with(ec(), "n", json!(7.5e300)), Unusable::Shape));
    hostile
}

fn of_any_kind(key: &Value) -> Vec<(Value, Unusable)> {
    let mut hostile = Vec::new();
    let mut each = |field: &str, reason: Unusable, values: &[Value]| {
        hostile
            .extend(values.iter().map(|value| (with(key.clone(), field, value.clone()), reason)));
    };
    let kinds = ["", "oct", "ec", "rsa", "AKP", "EC\0", " RSA", "none"];
    each("kty", Unusable::Kind, &kinds.map(|kind| json!(kind)));
    each("kty", Unusable::Shape, &[json!(null), json!(7), json!(["EC"]), json!({"EC": 1})]);
    let algorithms = [
        "HS256", "HS512", "none", "None", "", "ES384", "ES256K", "PS256", "RS512", "Ed25519",
        "RSA1_5", "ECDH-ES", "dir", "es256", "eddsa", "rs256", "ES256\0", "RS256 ",
    ];
    each("alg", Unusable::Algorithm, &algorithms.map(|algorithm| json!(algorithm)));
    each("alg", Unusable::Shape, &[json!(["ES256"]), json!(256), json!({"alg": "ES256"})]);
    each("use", Unusable::Usage, &["enc", "", "SIG", "sig ", "sign"].map(|usage| json!(usage)));
    each("use", Unusable::Shape, &[json!(["sig"]), json!(true)]);
    let operations = [json!([]), json!(["sign"]), json!(["encrypt", "wrapKey"]), json!(["VERIFY"])];
    each("key_ops", Unusable::Usage, &operations);
    each("key_ops", Unusable::Shape, &[json!("verify"), json!([1]), json!({"verify": true})]);
    each("kid", Unusable::Nameless, &[json!(null)]);
    each("kid", Unusable::Shape, &[json!(7), json!(["ec"]), json!({"kid": "ec"}), json!(true)]);
    for private in ["d", "p", "q", "dp", "dq", "qi", "oth"] {
        each(private, Unusable::Private, &[json!("AQAB"), json!([]), json!("")]);
    }
    hostile
}

/// What no kind of key has as a number.
fn no_numbers() -> [(Value, Unusable); 7] {
    [
        (json!(null), Unusable::Malformed),
        (json!(""), Unusable::Malformed),
        (json!("not base64!"), Unusable::Malformed),
        (json!(STANDARD.encode([0xFB; 32])), Unusable::Malformed),
        (json!(URL_SAFE.encode([1; 32])), Unusable::Malformed),
        (json!(65_537), Unusable::Shape),
        (json!(["AQAB"]), Unusable::Shape),
    ]
}

fn of_ecdsa() -> Vec<(Value, Unusable)> {
    let mut hostile = Vec::new();
    for curve in ["P-384", "P-521", "secp256k1", "Ed25519", "p-256", "P-256\0", ""] {
        hostile.push((with(ec(), "crv", json!(curve)), Unusable::Kind));
    }
    hostile.push((with(ec(), "crv", json!(null)), Unusable::Kind));
    for coordinate in ["x", "y"] {
        for (value, reason) in no_numbers() {
            hostile.push((with(ec(), coordinate, value), reason));
        }
        // Not on the curve, past the field's end, and too long.
        for bytes in [vec![0; 32], vec![1; 32], vec![0xFF; 32], vec![1; 33], vec![0; 1_000]] {
            hostile.push((with(ec(), coordinate, number(bytes)), Unusable::Malformed));
        }
    }
    let (x, y) = (ec()["x"].take(), ec()["y"].take());
    hostile.push((with(with(ec(), "x", y), "y", x), Unusable::Malformed));
    let infinity = with(with(ec(), "x", number([0; 32])), "y", number([0; 32]));
    hostile.push((infinity, Unusable::Malformed));
    hostile
}

fn of_ed25519() -> Vec<(Value, Unusable)> {
    let mut hostile = Vec::new();
    for curve in ["Ed448", "X25519", "P-256", "ed25519", ""] {
        hostile.push((with(ed(), "crv", json!(curve)), Unusable::Kind));
    }
    for (value, reason) in no_numbers() {
        hostile.push((with(ed(), "x", value), reason));
    }
    for len in [31, 33, 57, 64] {
        hostile.push((with(ed(), "x", number(vec![7; len])), Unusable::Malformed));
    }
    for point in numbers::SMALL_ORDER {
        let mut bytes: Vec<_> =
            (0..32).map(|at| u8::from_str_radix(&point[2 * at..2 * at + 2], 16).unwrap()).collect();
        hostile.push((with(ed(), "x", number(&bytes)), Unusable::Weak));
        bytes[31] |= 0x80;
        hostile.push((with(ed(), "x", number(&bytes)), Unusable::Weak));
    }
    hostile
}

fn of_rsa() -> Vec<(Value, Unusable)> {
    let mut hostile = Vec::new();
    for field in ["n", "e"] {
        for (value, reason) in no_numbers() {
            hostile.push((with(rsa(), field, value), reason));
        }
    }
    for (first, len) in [(0xC1, 1), (0xC1, 64), (0xC1, 128), (0xC1, 255), (0x7F, 256), (0x01, 256)]
    {
        hostile.push((with(rsa(), "n", long(first, len)), Unusable::Weak));
    }
    for even in [vec![0xC2; 256], vec![0; 256], vec![0; 1]] {
        hostile.push((with(rsa(), "n", number(even)), Unusable::Malformed));
    }
    hostile.push((with(rsa(), "n", long(0x01, 1_025)), Unusable::Malformed));
    hostile.push((with(rsa(), "n", long(0xC1, 16 << 10)), Unusable::Malformed));
    for exponent in [vec![1], vec![3], vec![17], vec![0, 0, 0, 3], vec![0xFF, 0xFF]] {
        hostile.push((with(rsa(), "e", number(exponent)), Unusable::Weak));
    }
    for exponent in [vec![0], vec![2], vec![1, 0, 0], vec![3, 0, 0, 0, 1], vec![0xFF; 256]] {
        hostile.push((with(rsa(), "e", number(exponent)), Unusable::Malformed));
    }
    hostile
}

#[test]
fn a_hostile_key_is_passed_over_for_its_reason_and_the_next_one_is_read() {
    let hostile = hostile_keys();
    for (key, reason) in &hostile {
        let good = with(ed(), "kid", json!("good"));
        let set = read(&json!([key, good]));
        assert_eq!(set.passed_over, [(0, *reason)], "{key}");
        assert_eq!(set.keys.keys().collect::<Vec<_>>(), ["good"], "{key}");
    }
    assert!(hostile.len() >= 250, "{}", hostile.len());
    let mut texts: Vec<_> = hostile.iter().map(|(key, _)| key.to_string()).collect();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), hostile.len(), "a key is there twice");
}

/// What the operator reads must not be what makes the fault worse.
#[test]
fn a_reason_has_nothing_of_the_key_in_it() {
    let canary = "sk-canary-private-part";
    for field in ["d", "kid", "alg", "use", "x", "kty", "crv", "key_ops"] {
        for value in [json!(canary), json!([canary]), json!({canary: canary})] {
            let set = read(&json!([with(ec(), field, value)]));
            assert!(!format!("{:?}", set.passed_over).contains("canary"), "{field}");
            for (_, reason) in set.passed_over {
                assert!(!reason.to_string().contains("canary"), "{field}");
            }
        }
    }
}

/// serde would take the fields of a key in their order for the key.
#[test]
fn a_key_that_is_no_object_is_passed_over() {
    let key = ed();
    let fields = [
        "kty", "kid", "alg", "use", "key_ops", "crv", "x", "y", "n", "e", "d", "p", "q", "dp",
        "dq", "qi", "oth",
    ];
    let in_order: Vec<_> = fields.iter().map(|field| key[*field].clone()).collect();
    let set = parse(json!({"keys": [in_order, ec()]}).to_string().as_bytes()).unwrap();
    assert_eq!((set.keys.len(), set.passed_over), (1, vec![(0, Unusable::Shape)]));
}

#[test]
fn what_is_no_set_is_refused() {
    let key = ed().to_string();
    for wrong in [
        String::new(),
        "x".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        "null".to_owned(),
        "[[1]]".to_owned(),
        format!("[[{key}]]"),
        r#"{"keys": 1}"#.to_owned(),
        r#"{"keys": null}"#.to_owned(),
        format!(r#"{{"keys": {key}}}"#),
        format!(r#"{{"Keys": [{key}]}}"#),
        format!(r#"{{"keys": [], "keys": [{key}]}}"#),
        format!(r#"{{"keys": [{key}]}} trailing"#),
        format!(r#"{{"keys": [{key},]}}"#),
        format!(r#"{{"keys": [{key}]"#),
        format!("\u{feff}{{\"keys\": [{key}]}}"),
        format!(r#"{{"keys": [{key}, NaN]}}"#),
        format!(r#"{{"keys": [{key}, {}1{}]}}"#, "[".repeat(10_000), "]".repeat(10_000)),
        format!("[{key}]"),
        key,
        "<html>".to_owned(),
    ] {
        assert!(matches!(parse(wrong.as_bytes()), Err(InvalidKeySet::Json(_))), "{wrong}");
    }
    assert!(matches!(parse(b"{\"keys\": [\"\xff\"]}"), Err(InvalidKeySet::Json(_))));
    let many = |count: usize| {
        let keys: Vec<_> =
            (0..count).map(|kid| with(ed(), "kid", json!(kid.to_string()))).collect();
        parse(json!({"keys": keys}).to_string().as_bytes())
    };
    assert_eq!(many(64).unwrap().keys.len(), 64);
    assert!(matches!(many(65), Err(InvalidKeySet::TooMany)));
    for twice in [
        json!({"keys": [ec(), with(ed(), "kid", json!("ec"))]}),
        json!({"keys": [ec(), ec()]}),
        json!({"keys": [ed(), rsa(), "x", with(ed(), "kid", json!("rsa"))]}),
    ] {
        assert!(matches!(parse(twice.to_string().as_bytes()), Err(InvalidKeySet::Duplicate(_))));
    }
    // A key that checks nothing takes no name from another.
    let named_alike = json!([with(ec(), "use", json!("enc")), ec()]);
    assert_eq!(read(&named_alike).keys.len(), 1);
}
