//! Typed names of things, so that a message's id can never be passed where a bot's is meant.
//!
//! Rows have integer ids (Storytellr's tables have), users are the UUIDs of Supabase Auth, and streams are named by
//! whoever starts them. Every id is checked when it is parsed, so whoever holds one need not check it again.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::number;

/// The largest row id that survives a round trip through JavaScript (`Number.MAX_SAFE_INTEGER`).
const ROW_ID_MAX: i64 = (1 << 53) - 1;

/// The longest stream id, in bytes: enough for any UUID with a prefix, short enough for a header and an index.
const STREAM_ID_LEN_MAX: usize = 128;

macro_rules! row_id {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(i64);

        impl $name {
            /// The id as the database has it.
            #[must_use]
            pub fn get(self) -> i64 {
                self.0
            }
        }

        impl TryFrom<i64> for $name {
            type Error = InvalidRowId;

            fn try_from(id: i64) -> Result<Self, InvalidRowId> {
                if (1..=ROW_ID_MAX).contains(&id) { Ok(Self(id)) } else { Err(InvalidRowId) }
            }
        }

        impl FromStr for $name {
            type Err = InvalidRowId;

            fn from_str(id: &str) -> Result<Self, InvalidRowId> {
                // i64's own parser also takes "+7", which is not how anybody writes an id.
                if !id.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(InvalidRowId);
                }
                id.parse::<i64>().map_err(|_| InvalidRowId).and_then(Self::try_from)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserialize_row_id(deserializer).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

row_id! {
    /// A story.
    ConversationId
    /// A node of a story's tree.
    MessageId
    /// One text of a message.
    VariantId
    /// A persona with its model settings.
    BotId
    /// A user's own key for a provider.
    ProviderKeyId
}

/// A random byte, for jitter and for stories; not for secrets.
pub(crate) fn random_byte() -> u8 {
    Uuid::now_v7().as_bytes()[15]
}

/// A name for one call, which no other call has, to tell its repetition from another one.
pub(crate) fn call_id() -> Uuid {
    Uuid::now_v7()
}

/// Says which numbers are row ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be an integer from 1 to {ROW_ID_MAX}")]
pub struct InvalidRowId;

fn deserialize_row_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    struct RowId;

    impl serde::de::Visitor<'_> for RowId {
        type Value = i64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an integer from 1 to {ROW_ID_MAX}")
        }

        fn visit_i64<E: serde::de::Error>(self, id: i64) -> Result<i64, E> {
            if (1..=ROW_ID_MAX).contains(&id) {
                Ok(id)
            } else {
                Err(E::invalid_value(serde::de::Unexpected::Signed(id), &self))
            }
        }

        fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<i64, E> {
            match i64::try_from(id) {
                Ok(id) => self.visit_i64(id),
                Err(_) => Err(E::invalid_value(serde::de::Unexpected::Unsigned(id), &self)),
            }
        }

        fn visit_f64<E: serde::de::Error>(self, id: f64) -> Result<i64, E> {
            match number::whole(id) {
                Some(id) => self.visit_i64(id),
                None => Err(E::invalid_value(serde::de::Unexpected::Float(id), &self)),
            }
        }
    }

    deserializer.deserialize_i64(RowId)
}

/// A user of the Supabase project: the `sub` of an access token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub Uuid);

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a generation, unique among its user's: 1 to 128 of `A-Z a-z 0-9 . _ -`.
///
/// It is also the caller's idempotency key, so the caller may choose it. Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct StreamId(Arc<str>);

impl StreamId {
    /// A new name that nobody else has, sorted by time.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }

    /// The name of a reroll that was announced but not started, told apart by its prefix as Storytellr's were.
    #[must_use]
    pub fn random_reroll() -> Self {
        Self(format!("reroll-{}", Uuid::now_v7()).into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StreamId {
    type Err = InvalidStreamId;

    fn from_str(id: &str) -> Result<Self, InvalidStreamId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if (1..=STREAM_ID_LEN_MAX).contains(&id.len()) && id.bytes().all(allowed) {
            Ok(Self(id.into()))
        } else {
            Err(InvalidStreamId)
        }
    }
}

impl<'de> Deserialize<'de> for StreamId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = String::deserialize(deserializer)?;
        id.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says which names streams can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to {STREAM_ID_LEN_MAX} characters of A-Z a-z 0-9 . _ -")]
pub struct InvalidStreamId;

/// What clients put before a stream id to name the message that it writes. Some have named the stream so as well.
pub(crate) const TEMP_STREAM: &str = "temp-stream-";

/// What a caller calls a message: its id, or the stream that wrote it, if the caller has not seen it saved yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum MessageRef {
    /// The message with this id.
    Id(MessageId),
    /// The message that this stream wrote, or the stream with `temp-stream-` before its name; on the wire
    /// `temp-stream-<stream id>`.
    Stream(StreamId),
}

impl<'de> Deserialize<'de> for MessageRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = MessageRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a message's id or `temp-stream-<stream id>`")
            }

            fn visit_i64<E: serde::de::Error>(self, id: i64) -> Result<MessageRef, E> {
                MessageId::try_from(id).map(MessageRef::Id).map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<MessageRef, E> {
                self.visit_i64(i64::try_from(id).unwrap_or(i64::MAX))
            }

            fn visit_f64<E: serde::de::Error>(self, id: f64) -> Result<MessageRef, E> {
                self.visit_i64(number::whole(id).unwrap_or(i64::MAX))
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<MessageRef, E> {
                match name.strip_prefix(TEMP_STREAM) {
                    Some(stream_id) => stream_id.parse().map(MessageRef::Stream).map_err(E::custom),
                    None => name
                        .parse()
                        .map(MessageRef::Id)
                        .map_err(|_| E::invalid_value(serde::de::Unexpected::Str(name), &self)),
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_ids_are_safe_positive_integers() {
        for bad in [
            "0",
            "-1",
            "9007199254740992",
            "99999999999999999999",
            "1.5",
            "0.0",
            "+1",
            "",
            "\"1\"",
            "null",
        ] {
            assert!(serde_json::from_str::<MessageId>(bad).is_err(), "{bad}");
            assert!(bad.parse::<MessageId>().is_err(), "{bad}");
        }
        assert_eq!(
            serde_json::from_str::<MessageId>("9007199254740991").unwrap().get(),
            ROW_ID_MAX
        );
        assert_eq!(serde_json::from_str::<MessageId>("34.0").unwrap(), MessageId(34));
    }

    #[test]
    fn stream_ids_fit_headers_and_paths() {
        for bad in ["", "a b", "a/b", "ä", "a\n", &"x".repeat(129)] {
            assert!(bad.parse::<StreamId>().is_err(), "{bad:?}");
        }
        for good in ["a", "A.b_c-9", &"x".repeat(128)] {
            assert_eq!(good.parse::<StreamId>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn messages_are_named_by_id_or_by_the_stream_that_wrote_them() {
        let parse = |json: &str| serde_json::from_str::<MessageRef>(json);
        assert_eq!(parse("34").unwrap(), MessageRef::Id(MessageId(34)));
        assert_eq!(parse("34.0").unwrap(), MessageRef::Id(MessageId(34)));
        assert_eq!(parse("\"34\"").unwrap(), MessageRef::Id(MessageId(34)));
        assert_eq!(
            parse("\"temp-stream-s-1\"").unwrap(),
            MessageRef::Stream("s-1".parse().unwrap())
        );
        for bad in ["-1", "\"temp-stream-\"", "\"x\"", "[]", "1.5", "true"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
