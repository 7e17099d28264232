//! The relay as its users meet it: the real binary over real sockets, with a provider that does as it is told.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test that meets the unexpected ends there and says so"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "nothing waits for the tasks of a test but the test itself"
)]

mod backlog;
mod client;
mod cutter;
mod database;
mod name_server;
mod oracle;
mod postgrest;
mod provider;
mod purse;
mod redis;
mod relay;
mod signer;
mod strace;
mod tls;

mod addresses;
mod auth;
mod bad_input;
mod book;
mod bots;
mod budgets;
mod canaries;
mod contract;
mod cors;
mod damage;
mod disk;
mod durability;
mod faults;
mod follow;
mod hostile_tokens;
mod hygiene;
mod instances;
mod key_sets;
mod keys;
mod leaving;
mod library;
mod limits;
mod listener;
mod openapi;
mod outages;
mod postgrest_faults;
mod prompt;
mod rebinding;
mod redirects;
mod reroll;
mod restarts;
mod retries;
mod settings;
mod setup;
mod shutdown;
mod stores;
mod storytellr_v0;
mod strangers;
mod streaming;
mod takeover;
mod tenants;
mod upstreams;
