//! What comes in over HTTP and is more than a word, on whatever a fuzzer sends.

mod body;
mod follow;

pub(crate) use body::body;
pub(crate) use follow::follow;
