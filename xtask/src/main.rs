//! The project's own tools: `cargo xtask bench` measures the relay beside nginx.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool of the command line tells what it does"
)]

mod bench;

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
    /// The benchmark's provider, in a process of its own
    #[command(hide = true)]
    Provider,
    /// The benchmark's readers, in a process of their own
    #[command(hide = true)]
    Readers,
}

fn main() -> ExitCode {
    let done = match Cli::parse().tool {
        Tool::Bench(options) => bench::run(&options),
        Tool::Provider => bench::provider::run(),
        Tool::Readers => bench::readers::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}
