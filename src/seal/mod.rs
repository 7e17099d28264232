//! Sealing users' provider keys, so that what a database keeps of one is of no use without the operator's master key.
//!
//! XChaCha20-Poly1305: its nonces of 24 bytes may be random however many keys are sealed. What a key is for is
//! authenticated with it, so that a sealed key opens for its own user, provider and origin and for nothing else, whoever
//! can write to the database. The sealed form is text, `v1.<id of the master key>.<base64url of nonce and ciphertext>`:
//! the id says which of several master keys opens it, so that they can be rotated.

use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, PAD, URL_SAFE_NO_PAD};
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretBox, SecretString};

use crate::error::Error;
use crate::id::UserId;

/// What is sealed, and in which form. It is authenticated, so that nothing that a master key may seal one day for another
/// purpose opens as a provider key.
const PURPOSE: &str = "storytellr-relay provider key";
const VERSION: &str = "v1";

/// The length of a master key, which is the cipher's, in bytes.
const MASTER_KEY_LEN: usize = 32;

/// The length of a nonce, which is the cipher's, in bytes.
const NONCE_LEN: usize = 24;

/// The longest id of a master key: it stands in every sealed key.
const ID_LEN_MAX: usize = 32;

/// With or without padding, as tools write it.
const LENIENT: GeneralPurposeConfig = PAD.with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: [GeneralPurpose; 2] = [
    GeneralPurpose::new(&alphabet::STANDARD, LENIENT),
    GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT),
];

/// The operator's master keys, newest first. There is at least one.
#[derive(Debug)]
pub struct MasterKeys(Vec<MasterKey>);

#[derive(Debug)]
struct MasterKey {
    id: String,
    key: SecretBox<[u8; MASTER_KEY_LEN]>,
}

/// What a key is for.
#[derive(Debug, Clone, Copy)]
pub struct Binding<'a> {
    /// Whose key it is.
    pub user: UserId,
    /// The provider that it is for.
    pub provider: &'a str,
    /// The origin that it may be sent to, where that is the user's word; empty where it is the operator's.
    pub origin: &'a str,
}

/// A key that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The key.
    pub key: SecretString,
    /// Whether it was sealed under another master key than the newest.
    pub is_outdated: bool,
}

/// Why a sealed key does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    /// It is no sealed key, or one of another version.
    #[error("it has no form that this version knows")]
    Unreadable,
    /// Its master key is not there any more.
    #[error("it is sealed under the master key `{0}`, which is not among RELAY_MASTER_KEYS")]
    UnknownMasterKey(String),
    /// It was changed, it is for another user, provider or origin, or the master key of that id was another one.
    #[error(
        "it was changed, belongs to another user, provider or origin, or was sealed under another master key of the same id"
    )]
    NotAuthentic,
}

impl MasterKeys {
    /// Reads `id:base64` pairs, comma-separated, newest first. An id has 1 to 32 of `A-Z a-z 0-9 _ -`, a key 32 bytes.
    ///
    /// # Errors
    /// All that is wrong, a clause each that names the pair by its number. No secret is in them.
    pub fn parse(pairs: &str) -> Result<Self, Vec<String>> {
        let (mut keys, mut faults) = (Vec::<MasterKey>::new(), Vec::new());
        let pairs = pairs.split(',').map(str::trim).filter(|pair| !pair.is_empty());
        for (pair, number) in pairs.zip(1..) {
            match MasterKey::parse(pair) {
                Err(fault) => faults.push(format!("pair {number} {fault}")),
                Ok(key) if keys.iter().any(|known| known.id == key.id) => {
                    faults.push(format!("pair {number} has an id that another pair has"));
                }
                Ok(key) if keys.iter().any(|known| known.bytes() == key.bytes()) => {
                    faults.push(format!("pair {number} has the key of another pair"));
                }
                Ok(key) => keys.push(key),
            }
        }
        if keys.is_empty() && faults.is_empty() {
            faults.push("it has no pair".to_owned());
        }
        if faults.is_empty() { Ok(Self(keys)) } else { Err(faults) }
    }

    /// The ids, newest first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|key| key.id.as_str())
    }

    /// `key`, sealed under the newest master key for what `binding` says and nothing else.
    ///
    /// # Errors
    /// Internal, if the operating system has no random bytes.
    pub fn seal(&self, key: &SecretString, binding: &Binding<'_>) -> Result<String, Error> {
        let newest =
            self.0.first().ok_or_else(|| Error::internal("there is no master key to seal with"))?;
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(Error::internal)?;
        let mut text = Zeroizing::new(key.expose_secret().as_bytes().to_vec());
        newest
            .cipher()
            .encrypt_in_place(&nonce.into(), &binding.associated_data(&newest.id), &mut *text)
            .map_err(|_| Error::internal("a provider key is too long to be sealed"))?;
        let sealed = URL_SAFE_NO_PAD.encode([&nonce[..], &text].concat());
        Ok(format!("{VERSION}.{}.{sealed}", newest.id))
    }

    /// The key in `sealed`, if it was sealed for what `binding` says.
    ///
    /// # Errors
    /// Why it does not open. No secret is in it.
    pub fn open(&self, sealed: &str, binding: &Binding<'_>) -> Result<Opened, Unopened> {
        let mut parts = sealed.splitn(3, '.');
        let (Some(VERSION), Some(id), Some(text)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(Unopened::Unreadable);
        };
        if !is_id(id) {
            return Err(Unopened::Unreadable);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Unopened::Unreadable)?;
        let (nonce, text) = bytes.split_first_chunk::<NONCE_LEN>().ok_or(Unopened::Unreadable)?;
        let at = self.0.iter().position(|key| key.id == id);
        let at = at.ok_or_else(|| Unopened::UnknownMasterKey(id.to_owned()))?;
        let mut text = Zeroizing::new(text.to_vec());
        self.0[at]
            .cipher()
            .decrypt_in_place(&(*nonce).into(), &binding.associated_data(id), &mut *text)
            .map_err(|_| Unopened::NotAuthentic)?;
        let key = std::str::from_utf8(&text).map_err(|_| Unopened::Unreadable)?;
        Ok(Opened { key: SecretString::from(key), is_outdated: at > 0 })
    }
}

impl MasterKey {
    fn parse(pair: &str) -> Result<Self, &'static str> {
        let (id, text) = pair.split_once(':').ok_or("is not id:base64")?;
        if !is_id(id) {
            return Err("has no id of 1 to 32 of A-Z a-z 0-9 _ -");
        }
        let decoded = BASE64.iter().find_map(|base64| base64.decode(text).ok());
        let bytes = Zeroizing::new(decoded.ok_or("has a key that is no base64")?);
        if bytes.len() != MASTER_KEY_LEN {
            return Err("has a key that is not 32 bytes long");
        }
        let key = SecretBox::init_with_mut(|key: &mut [u8; MASTER_KEY_LEN]| {
            key.copy_from_slice(&bytes);
        });
        Ok(Self { id: id.to_owned(), key })
    }

    fn bytes(&self) -> &[u8; MASTER_KEY_LEN] {
        self.key.expose_secret()
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.bytes().into())
    }
}

impl Binding<'_> {
    /// Each part behind its length, so that no two bindings give the same bytes.
    fn associated_data(&self, master_key_id: &str) -> Vec<u8> {
        let parts = [
            PURPOSE.as_bytes(),
            VERSION.as_bytes(),
            master_key_id.as_bytes(),
            self.user.0.as_bytes(),
            self.provider.as_bytes(),
            self.origin.as_bytes(),
        ];
        parts
            .iter()
            .flat_map(|part| [&(part.len() as u64).to_be_bytes()[..], part].concat())
            .collect()
    }
}

fn is_id(id: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=ID_LEN_MAX).contains(&id.len()) && id.bytes().all(is_allowed)
}

/// A pair that nobody knows, for [`MasterKeys::parse`].
///
/// # Errors
/// Internal, if the operating system has no random bytes.
pub fn new_pair(id: impl fmt::Display) -> Result<String, Error> {
    let mut key = Zeroizing::new([0; MASTER_KEY_LEN]);
    getrandom::fill(&mut *key).map_err(Error::internal)?;
    Ok(format!("{id}:{}", BASE64[0].encode(*key)))
}

#[cfg(test)]
mod tests;
