//! Good signatures under claims that are not for this relay: RFC 8725, 3.8 to 3.10, and RFC 7519, 4.1. Of another type, of
//! another time, another issuer's, or for somebody else.

use serde_json::json;

use super::{CLAIM, Corpus, Keys, claims};
use crate::relay::ISSUER;
use crate::signer::with;

/// RFC 8725, 3.9 and 3.10: a claim of another type is none.
pub(super) fn of_other_types(keys: &Keys, corpus: &mut Corpus) {
    let now = jsonwebtoken::get_current_timestamp();
    for signer in &keys.ours {
        for claim in ["exp", "aud", "iss", "sub", "role"] {
            for wrong in
                [json!(null), json!({}), json!({"a": 1}), json!(true), json!([[]]), json!([1])]
            {
                corpus.add_claim(signer, claim, &wrong, CLAIM);
            }
        }
        for claim in ["exp", "nbf", "iat"] {
            for wrong in
                [json!(now.to_string()), json!(""), json!("NaN"), json!("1e309"), json!([now + 60])]
            {
                corpus.add_claim(signer, claim, &wrong, CLAIM);
            }
        }
        for claim in ["iss", "sub", "role"] {
            for wrong in [json!(7), json!(["x"]), json!(1.5)] {
                corpus.add_claim(signer, claim, &wrong, CLAIM);
            }
        }
        for wrong in [json!(7), json!(["authenticated", 7]), json!(["authenticated", null])] {
            corpus.add_claim(signer, "aud", &wrong, CLAIM);
        }
        for wrong in [json!("true"), json!(1), json!(null), json!([])] {
            corpus.add_claim(signer, "is_anonymous", &wrong, CLAIM);
        }
        for number in ["1e309", "-1e309", "1e400", "99e999999999"] {
            let far = with(claims(), "exp", &json!(424_242)).to_string().replace("424242", number);
            corpus.add(
                format!("exp {number}: {:?}", signer.algorithm),
                signer.compact(signer.header().to_string(), far),
                CLAIM,
            );
        }
    }
}

/// RFC 7519, 4.1: from when and until when. The future is far, so that none of it has come by the time a slow machine asks;
/// the edge is for tests whose clock stands still.
pub(super) fn times(keys: &Keys, corpus: &mut Corpus) {
    let now = jsonwebtoken::get_current_timestamp();
    for signer in &keys.ours {
        for past in [
            json!(0),
            json!(-1),
            json!(now - 31),
            json!(-1e300),
            json!(0.5),
            json!(i64::MIN),
            json!(-0.0),
            json!(1e-300),
        ] {
            corpus.add_claim(signer, "exp", &past, "expired");
        }
        for future in [
            json!(now + 7_200),
            json!(1e300),
            json!(u64::MAX),
            json!(now as f64 + 7_200.5),
            json!(now * 1_000),
        ] {
            corpus.add_claim(signer, "nbf", &future, "not valid yet");
            corpus.add_claim(signer, "iat", &future, "issued in the future");
        }
    }
}

/// RFC 8725, 3.8 and 3.9: whose tokens, and for whom.
pub(super) fn of_others(keys: &Keys, corpus: &mut Corpus) {
    let id = "6f6f0b3c-7a27-4a4f-9d0c-0a6a1f2a4a11";
    for signer in &keys.ours {
        for aud in [
            json!(""),
            json!([]),
            json!("anon"),
            json!("Authenticated"),
            json!("authenticated "),
            json!("authenticated\0"),
            json!(["anon", ""]),
            json!("authenticated,anon"),
        ] {
            corpus.add_claim(signer, "aud", &aud, "`aud`");
        }
        for role in [
            "anon",
            "service_role",
            "supabase_admin",
            "postgres",
            "",
            "AUTHENTICATED",
            "authenticated ",
            "authenticated\0",
            "\u{430}uthenticated",
        ] {
            corpus.add_claim(signer, "role", &json!(role), "`role`");
        }
        for iss in [
            String::new(),
            format!("{ISSUER}/"),
            format!(" {ISSUER}"),
            format!("{ISSUER}\0"),
            ISSUER.to_uppercase(),
            ISSUER.replace("https", "http"),
            ISSUER.replace("project", "other"),
            ISSUER.replace("/auth", ":443/auth"),
            format!("{ISSUER}?x"),
            format!("{ISSUER}#"),
            "supabase".to_owned(),
            ISSUER.replace("project", "pr\u{43e}ject"),
            format!("https://attacker.example/{ISSUER}"),
        ] {
            corpus.add_claim(signer, "iss", &json!(iss), "`iss`");
        }
        for sub in [
            String::new(),
            "root".to_owned(),
            "1".to_owned(),
            "*".to_owned(),
            id.replace('-', ""),
            format!("{{{id}}}"),
            format!("urn:uuid:{id}"),
            format!("{id}\0"),
            format!(" {id}"),
            format!("{id}\n"),
            id.replace('-', "\u{2010}"),
            "z".repeat(36),
            "x".repeat(5_000),
            format!("{id}' or '1'='1"),
            id[..35].to_owned(),
        ] {
            corpus.add_claim(signer, "sub", &json!(sub), "`sub`");
        }
    }
}
