//! The binary: the one place that reads the process's arguments and environment.

use std::process::ExitCode;

use clap::Parser;
use storytellr_relay::cli::{self, Cli};
use tikv_jemallocator::Jemalloc;

/// The C library's keeps for good what a thousand readers have needed once, because what was freed lies between what was
/// not. This one gives it back within seconds, from a thread of its own.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    cli::run(&Cli::parse(), environment)
}

#[expect(clippy::disallowed_methods, reason = "this is the function that the lint points to")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
