//! What is where in Redis. Everything begins with `relay:`, so a database may be shared with others.
//!
//! | key | what |
//! |---|---|
//! | `relay:generation:<user>:<stream>` | hash: its log, its holder and the holder's epoch, what ends it |
//! | `relay:log:<id>` | stream: its events; an entry's id is `<epoch>-<position>` |
//! | `relay:running:<user>` | set: the user's streams that have not ended |
//! | `relay:instances` | set: relays that hold generations |
//! | `relay:lease:<instance>` | there as long as that relay is alive |
//! | `relay:held:<instance>` | set: the generations that it holds, as `<user>:<stream>` |
//! | `relay:wishes:<instance>` | stream: what others want of it |

use crate::id::UserId;
use crate::outbox::Name;

pub(super) const INSTANCES: &str = "relay:instances";

/// A generation's name as one word. Neither part holds a colon.
pub(super) fn word(name: &Name) -> String {
    format!("{}:{}", name.owner, name.stream_id)
}

/// The name that was written as that word.
pub(super) fn name(word: &str) -> Option<Name> {
    let (owner, stream_id) = word.split_once(':')?;
    Some(Name { owner: UserId(owner.parse().ok()?), stream_id: stream_id.parse().ok()? })
}

pub(super) fn generation(name: &Name) -> String {
    format!("relay:generation:{}", word(name))
}

const LOG: &str = "relay:log:";

pub(super) fn log(id: &str) -> String {
    format!("{LOG}{id}")
}

/// The log that has that key.
pub(super) fn log_id(key: &str) -> Option<&str> {
    key.strip_prefix(LOG)
}

pub(super) fn running(owner: UserId) -> String {
    format!("relay:running:{owner}")
}

pub(super) fn lease(instance: &str) -> String {
    format!("relay:lease:{instance}")
}

pub(super) fn held(instance: &str) -> String {
    format!("relay:held:{instance}")
}

pub(super) fn wishes(instance: &str) -> String {
    format!("relay:wishes:{instance}")
}
