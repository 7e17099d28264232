//! Tokens that choose how they are checked: RFC 8725, 2.1 and 3.1. The algorithm is the key's, whatever a header says, and
//! what is public of a key is no secret.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::json;

use super::{Corpus, Keys, NAMELESS, NO_TOKEN, claims, decoded, encoded, good, public};
use crate::key_sets::{FORGED, OTHERWISE, UNKNOWN};
use crate::signer::{Signer, with};

/// What no key of a project has, in and out of the registry.
const UNKNOWN_NAMES: &[&str] = &[
    "none",
    "None",
    "NONE",
    "nOnE",
    "none\0",
    " none",
    "",
    " ",
    "HS256 ",
    "hs256",
    "HS256\0",
    "HS384",
    "HS512",
    "ES384",
    "ES512",
    "ES256K",
    "es256",
    "PS256",
    "PS384",
    "PS512",
    "RS384",
    "RS512",
    "rs256",
    "Ed25519",
    "Ed448",
    "EDDSA",
    "RSA1_5",
    "RSA-OAEP",
    "RSA-OAEP-256",
    "dir",
    "A128KW",
    "ECDH-ES",
    "PBES2-HS256+A128KW",
    "HS256,ES256",
    "\u{ff28}S256",
];

/// RFC 8725, 2.1 and 3.1: nobody but the relay says how a token is checked.
pub(super) fn unknown(keys: &Keys, corpus: &mut Corpus) {
    for signer in &keys.ours {
        let (message, signature) = good(signer);
        let (_, payload) = message.split_once('.').unwrap();
        for alg in UNKNOWN_NAMES {
            let header = with(signer.header(), "alg", &json!(alg)).to_string();
            let what = format!("alg {alg:?} of {:?}", signer.algorithm);
            corpus.add(
                format!("{what}, signed"),
                signer.compact(&header, decoded(payload)),
                OTHERWISE,
            );
            corpus.add(
                format!("{what}, unsigned"),
                format!("{}.{payload}.", encoded(&header)),
                OTHERWISE,
            );
            corpus.add(
                format!("{what}, swapped"),
                format!("{}.{payload}.{signature}", encoded(&header)),
                OTHERWISE,
            );
        }
        for alg in [json!(null), json!(["HS256"]), json!(256), json!(true), json!({"alg": "HS256"})]
        {
            let header = with(signer.header(), "alg", &alg).to_string();
            corpus.add(
                format!("alg {alg} of {:?}", signer.algorithm),
                signer.compact(header, claims().to_string()),
                NO_TOKEN,
            );
        }
        let mut header = signer.header();
        header.as_object_mut().unwrap().remove("alg");
        corpus.add("no alg", signer.compact(header.to_string(), claims().to_string()), NO_TOKEN);
    }
}

/// An algorithm that is known, of another key.
pub(super) fn of_other_keys(keys: &Keys, corpus: &mut Corpus) {
    for signer in &keys.ours {
        for other in keys.ours.iter().filter(|other| other.algorithm != signer.algorithm) {
            let what = format!("{:?} says {:?}", signer.algorithm, other.algorithm);
            let alg = json!(other.algorithm);
            let own_name = with(signer.header(), "alg", &alg).to_string();
            let reason = match (signer.algorithm, other.algorithm) {
                (Algorithm::HS256, _) => NAMELESS,
                (_, Algorithm::HS256) => FORGED,
                _ => UNKNOWN,
            };
            corpus.add(
                format!("{what} by its own name"),
                signer.compact(own_name, claims().to_string()),
                reason,
            );
            let its_name = with(other.header(), "alg", &alg).to_string();
            corpus.add(
                format!("{what} by its name"),
                signer.compact(its_name, claims().to_string()),
                FORGED,
            );
        }
    }
}

/// RFC 8725, 2.1: what is public of a key is no secret, in whatever form somebody may have put it.
pub(super) fn public_keys_as_secrets(keys: &Keys, corpus: &mut Corpus) {
    for signer in public(&keys.ours) {
        for (at, public) in signer.public_forms().into_iter().enumerate() {
            for form in [
                public.clone(),
                STANDARD.encode(&public).into_bytes(),
                encoded(&public).into_bytes(),
            ] {
                let forger =
                    Signer { encoding: EncodingKey::from_secret(&form), ..Signer::hs256() };
                let named = with(forger.header(), "kid", &json!(signer.kid));
                for header in [named, forger.header()] {
                    let what = format!("form {at} of {} as a secret, {header}", signer.kid);
                    let token = forger.compact(header.to_string(), claims().to_string());
                    corpus.add(what, token, FORGED);
                }
            }
        }
    }
    for weak in ["", "secret", "\0", "null", "undefined", "your-256-bit-secret"] {
        let forger =
            Signer { encoding: EncodingKey::from_secret(weak.as_bytes()), ..Signer::hs256() };
        let token = forger.compact(forger.header().to_string(), claims().to_string());
        corpus.add(format!("signed with {weak:?}"), token, FORGED);
    }
}
