//! What measurements have in common: a provider that does as it is told, readers, the servers, the operating system's account
//! of what they use, and how numbers are told.

pub(crate) mod api;
mod arrivals;
mod pacer;
pub(crate) mod provider;
pub(crate) mod readers;
pub(crate) mod script;
pub(crate) mod servers;
pub(crate) mod spread;
mod stamp;
pub(crate) mod surroundings;
pub(crate) mod usage;
