//! The binary: the one place that reads the process's arguments and environment.

use std::process::ExitCode;

use clap::Parser;
use storytellr_relay::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(&Cli::parse(), environment)
}

#[expect(clippy::disallowed_methods, reason = "this is the function that the lint points to")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
