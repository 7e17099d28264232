//! The numbers of a public key, and whether only its owner can sign what it checks.
//!
//! `jsonwebtoken` takes whatever numbers it is given. Of some of them a signature follows that holds for every message,
//! or for many, and that nobody needs a private key for.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;

use super::Unusable;
use crate::text;

/// A coordinate of P-256 in bytes. Some signers leave out leading zeros, and the curve's code wants them.
const P256_COORDINATE_LEN: usize = 32;

/// The shortest RSA key in bits that RFC 7518, section 3.3 allows, and the longest that is checked at a bearable price.
const RSA_BITS_MIN: usize = 2048;
const RSA_BITS_MAX: usize = 8192;

/// The least exponent of RSA that FIPS 186-5 allows, and the longest that the cryptographic library checks with, in
/// bits. With 1 everybody can sign; with 3 everybody could wherever somebody was careless about padding.
const RSA_EXPONENT_MIN: u64 = 65_537;
const RSA_EXPONENT_BITS_MAX: usize = 33;

/// The bytes of a number, in the one form that base64url without padding has.
pub(super) fn decode(number: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(number).ok()
}

/// A key of ECDSA: a point that is on the curve.
pub(super) fn p256(x: &[u8], y: &[u8]) -> Result<DecodingKey, Unusable> {
    let (x, y) = (coordinate(x)?, coordinate(y)?);
    let point = [&[0x04], x.as_slice(), &y].concat();
    let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point);
    key.map(|_| DecodingKey::from_ec_der(&point)).map_err(|_| Unusable::Malformed)
}

/// A coordinate with the zeros that it should begin with.
fn coordinate(bytes: &[u8]) -> Result<Vec<u8>, Unusable> {
    let missing = P256_COORDINATE_LEN.checked_sub(bytes.len()).ok_or(Unusable::Malformed)?;
    Ok([&vec![0; missing], bytes].concat())
}

/// The points of Curve25519 whose order divides 8, by their y, least byte first; the last two are written as numbers
/// past the field's end. With such a key one in eight messages at least has a signature that anybody can write.
pub(super) const SMALL_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

/// A key of Ed25519.
pub(super) fn ed25519(point: &[u8]) -> Result<DecodingKey, Unusable> {
    if ParsedPublicKey::new(&ED25519, point).is_err() {
        return Err(Unusable::Malformed);
    }
    let mut y = point.to_vec();
    if let Some(last) = y.last_mut() {
        // The sign of x.
        *last &= 0x7F;
    }
    if SMALL_ORDER.contains(&text::hex(&y).as_str()) {
        return Err(Unusable::Weak);
    }
    Ok(DecodingKey::from_ed_der(point))
}

/// A key of RSA. Both numbers are odd in every one; the rest is strength.
pub(super) fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<DecodingKey, Unusable> {
    let is_odd = |number: &[u8]| number.last().is_some_and(|byte| byte % 2 == 1);
    let is_bounded = bits(modulus) <= RSA_BITS_MAX && bits(exponent) <= RSA_EXPONENT_BITS_MAX;
    if !is_bounded || !is_odd(modulus) || !is_odd(exponent) {
        return Err(Unusable::Malformed);
    }
    let value = exponent.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    if bits(modulus) < RSA_BITS_MIN || value < RSA_EXPONENT_MIN {
        return Err(Unusable::Weak);
    }
    Ok(DecodingKey::from_rsa_raw_components(without_zeros(modulus), without_zeros(exponent)))
}

/// How long a number is.
fn bits(number: &[u8]) -> usize {
    let number = without_zeros(number);
    number.first().map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
}

/// The number without the zeros that it begins with.
fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}
