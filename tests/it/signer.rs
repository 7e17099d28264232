//! The project's keys, as tests sign with them: everything right, or with whatever a test wants to be wrong.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::relay;

/// A key of the project: what signs, and what the set says of it.
pub(crate) struct Signer {
    pub(crate) kid: String,
    pub(crate) algorithm: Algorithm,
    pub(crate) encoding: EncodingKey,
    pub(crate) jwk: Value,
    /// The public key as certificates have it, and as the algorithm itself has it.
    pub(crate) der: Vec<u8>,
    pub(crate) raw: Vec<u8>,
}

/// The order of P-256: a number that is zero to the curve.
pub(crate) const P256_ORDER: [u8; 32] = [
    0xFF, 0xFF, 0xFF, 0xFF, 0x00, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
    0xBC, 0xE6, 0xFA, 0xAD, 0xA7, 0x17, 0x9E, 0x84, 0xF3, 0xB9, 0xCA, 0xC2, 0xFC, 0x63, 0x25, 0x51,
];

impl Signer {
    pub(crate) fn es256(kid: &str) -> Self {
        Self::es256_if(kid, |_, _| true)
    }

    /// One whose coordinates are as wanted. Leading zeros are left out of them, as some signers do.
    pub(crate) fn es256_if(kid: &str, is_wanted: impl Fn(&[u8], &[u8]) -> bool) -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let (pkcs8, pair) = loop {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).unwrap();
            let point = pair.public_key().as_ref();
            if is_wanted(&point[1..33], &point[33..]) {
                break (pkcs8, pair);
            }
        };
        let point = pair.public_key().as_ref();
        let short = |bytes: &[u8]| {
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            URL_SAFE_NO_PAD.encode(&bytes[zeros..])
        };
        let (x, y) = (short(&point[1..33]), short(&point[33..]));
        Self {
            der: certified(pair.public_key()),
            raw: point.to_vec(),
            kid: kid.to_owned(),
            algorithm: Algorithm::ES256,
            encoding: EncodingKey::from_ec_der(pkcs8.as_ref()),
            jwk: json!({"kty": "EC", "crv": "P-256", "kid": kid, "alg": "ES256", "use": "sig", "x": x, "y": y}),
        }
    }

    pub(crate) fn eddsa(kid: &str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        Self {
            der: certified(pair.public_key()),
            raw: pair.public_key().as_ref().to_vec(),
            kid: kid.to_owned(),
            algorithm: Algorithm::EdDSA,
            encoding: EncodingKey::from_ed_der(pkcs8.as_ref()),
            jwk: json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x}),
        }
    }

    pub(crate) fn rs256(kid: &str) -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let public = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
        let (n, e) = (URL_SAFE_NO_PAD.encode(public.n), URL_SAFE_NO_PAD.encode(public.e));
        let pkcs8 = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
        Self {
            der: certified(pair.public_key()),
            raw: pair.public_key().as_ref().to_vec(),
            kid: kid.to_owned(),
            algorithm: Algorithm::RS256,
            encoding: EncodingKey::from_rsa_pem(pem("PRIVATE", pkcs8.as_ref()).as_bytes()).unwrap(),
            jwk: json!({"kty": "RSA", "kid": kid, "alg": "RS256", "n": n, "e": e}),
        }
    }

    /// The project's shared secret, which is in no set and has nothing that is public.
    pub(crate) fn hs256() -> Self {
        Self {
            kid: String::new(),
            algorithm: Algorithm::HS256,
            encoding: EncodingKey::from_secret(relay::SECRET.as_bytes()),
            jwk: Value::Null,
            der: Vec::new(),
            raw: Vec::new(),
        }
    }

    /// The header of a token of this key.
    pub(crate) fn header(&self) -> Value {
        let header = self.nameless_header();
        if self.kid.is_empty() { header } else { with(header, "kid", &json!(self.kid)) }
    }

    /// One that does not say which key.
    fn nameless_header(&self) -> Value {
        json!({"alg": self.algorithm, "typ": "JWT"})
    }

    /// A token of two texts that need be neither JSON nor true.
    pub(crate) fn compact(&self, header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
        self.signed(&format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims)
        ))
    }

    /// The message with its signature, whatever it is.
    pub(crate) fn signed(&self, message: &str) -> String {
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.encoding, self.algorithm);
        format!("{message}.{}", signature.unwrap())
    }

    /// A user's token that says it is signed with the key `kid`.
    pub(crate) fn token_as(&self, kid: &str) -> String {
        self.token_with(&json!({"kid": kid}))
    }

    pub(crate) fn token(&self) -> String {
        self.token_as(&self.kid)
    }

    /// A user's token with that in its header besides the algorithm.
    pub(crate) fn token_with(&self, fields: &Value) -> String {
        let mut header = self.nameless_header();
        header.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        self.compact(header.to_string(), relay::claims(Uuid::now_v7()).to_string())
    }

    /// Everything that is public of the key and that somebody may have taken for a secret.
    pub(crate) fn public_forms(&self) -> Vec<Vec<u8>> {
        let pem = pem("PUBLIC", &self.der);
        vec![
            pem.trim_end().replace('\n', "\r\n").into_bytes(),
            pem.trim_end().as_bytes().to_vec(),
            pem.into_bytes(),
            self.der.clone(),
            self.raw.clone(),
            self.jwk.to_string().into_bytes(),
            json!({"keys": [self.jwk]}).to_string().into_bytes(),
            serde_json::to_vec_pretty(&self.jwk).unwrap(),
        ]
    }
}

/// The object with that in it.
pub(crate) fn with(mut object: Value, field: &str, value: &Value) -> Value {
    object[field] = value.clone();
    object
}

/// A public key as certificates have it.
fn certified(key: &impl AsDer<PublicKeyX509Der<'static>>) -> Vec<u8> {
    key.as_der().unwrap().as_ref().to_vec()
}

fn pem(kind: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> =
        text.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {kind} KEY-----\n{}\n-----END {kind} KEY-----\n", lines.join("\n"))
}
