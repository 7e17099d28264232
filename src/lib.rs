//! Storytellr Relay: the service between a story app's frontend, its database and the providers of language models.
//!
//! It authenticates the reader, decides which bot answers, streams the answer token by token, and saves it exactly
//! once, whatever fails. `ARCHITECTURE.md` has the map and the life of one request; the modules below are in reading
//! order, and each may use those above it and none below, but for [`app`], which knows all.
//!
//! - Vocabulary, pure: [`id`], [`error`], [`event`], [`bot`], [`story`], [`text`], `number`, [`clock`], [`prompt`],
//!   [`provider_key`], [`seal`]; and `beside`, a future that is polled seldom.
//! - What ports are kept in: `sqlite`, `redis_client`.
//! - Ports, each a folder with its contract in `mod.rs` and one adapter a file: [`auth`], [`limits`], [`provider`],
//!   [`journal`], [`outbox`], [`store`].
//! - What holds them: [`relay`], and [`lifecycle`], which every task runs under.
//! - The spine: [`turn`] starts a generation, [`generation`] runs it, [`ending`] says how it ended, once [`saving`] has
//!   brought it home, by way of the outbox and [`outbox_worker`] if need be; [`recovery`] ends what a relay left that is gone, [`replay`] puts one together that is over,
//!   [`own_key`] keeps users' keys for providers, [`spending`] what their answers cost.
//! - Faces: [`http`].
//! - Composition: [`config`], [`app`], [`telemetry`], [`dev`], [`check`], [`migrate`], [`cli`].

pub mod bot;
pub mod clock;
pub mod commit;
pub mod error;
pub mod event;
pub mod id;
pub mod prompt;
pub mod provider_key;
pub mod seal;
pub mod story;
pub mod text;

mod beside;
mod number;
mod redis_client;
mod sqlite;

pub mod auth;
pub mod journal;
pub mod limits;
pub mod outbox;
pub mod provider;
pub mod store;

pub mod assembly;
pub mod lifecycle;
pub mod outage;
pub mod relay;

pub mod beginning;
pub mod ending;
pub mod generation;
pub mod outbox_worker;
pub mod own_key;
pub mod recovery;
pub mod replay;
pub mod saving;
pub mod spending;
pub mod turn;

pub mod http;

pub mod app;
pub mod check;
pub mod cli;
pub mod config;
pub mod dev;
pub mod migrate;
pub mod telemetry;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
