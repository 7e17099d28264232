//! The project's own tools: `cargo xtask bench` measures the relay beside nginx, `cargo xtask siege` what a user notices of
//! attacks on it.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool of the command line tells what it does"
)]

mod bench;
mod load;
mod siege;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What tools fail with.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The project's own tools.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Measure the relay beside nginx and the direct connection, and write docs/benchmarks.md
    Bench(bench::Options),
    /// Measure what a user of the relay notices of attacks on it, and write docs/siege.md
    Siege(siege::Options),
    /// The provider of measurements, in a process of its own
    #[command(hide = true)]
    Provider,
    /// The readers of measurements, in a process of their own
    #[command(hide = true)]
    Readers,
    /// Who attacks, in a process of his own
    #[command(hide = true)]
    Attacker,
}

fn main() -> ExitCode {
    let done = match Cli::parse().tool {
        Tool::Bench(options) => bench::run(&options),
        Tool::Siege(options) => siege::run(&options),
        Tool::Provider => load::provider::run(),
        Tool::Readers => load::readers::run(),
        Tool::Attacker => siege::attacker::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}
