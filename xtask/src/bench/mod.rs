//! `cargo xtask bench`: what the relay costs beside nginx and the direct connection, measured in one run.
//!
//! A scenario has cases; a round runs each of them once, in random order, so that what else the machine does weighs on all
//! alike, and what is told is the ratio within a round. The provider, the readers and whatever is between them are processes
//! of their own, and what is between is new each time.

mod report;
mod run;
mod scenario;

use std::path::PathBuf;

use clap::Args;

use crate::Failure;
use crate::load::servers;
use report::Report;
use run::{Bench, Measured};
use scenario::Scenario;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only that scenario, or those whose name begins so before a hyphen; may be given several times
    #[arg(long)]
    only: Vec<String>,
    /// How often each case is run
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// For how long tokens come in a run
    #[arg(long, default_value_t = 10)]
    seconds: usize,
    /// Short runs, to see that all works; nothing is written
    #[arg(long)]
    quick: bool,
    /// Measure also while the machine is busy with something else, and say so
    #[arg(long)]
    force: bool,
    /// The relay to measure, instead of one that is built first
    #[arg(long)]
    relay: Option<PathBuf>,
    /// Another relay to measure beside it, one of before a change, say
    #[arg(long)]
    against: Option<PathBuf>,
}

/// Runs the scenarios, prints what was measured, and writes docs/benchmarks.md and its picture unless it was quick or only a
/// part.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let relay = options.relay.clone().map_or_else(servers::built_relay, Ok)?;
    let seconds = if options.quick { 2 } else { options.seconds };
    let scenarios = scenario::all(seconds, options.against.is_some());
    let is_wanted = |scenario: &Scenario| {
        let is_meant = |only: &String| {
            scenario.name == only
                || scenario
                    .name
                    .strip_prefix(only.as_str())
                    .is_some_and(|rest| rest.starts_with('-'))
        };
        options.only.is_empty() || options.only.iter().any(is_meant)
    };
    let scenarios: Vec<_> = scenarios.into_iter().filter(is_wanted).collect();
    let mut bench = Bench::new(relay, options.against.clone())?;
    let mut report = Report::default();
    let is_written = !options.quick && options.only.is_empty() && options.against.is_none();
    for scenario in scenarios {
        let mut rounds = Vec::new();
        for round in 1..=options.rounds {
            eprintln!("{}: round {round} of {}", scenario.name, options.rounds);
            match run_round(&mut bench, &scenario, options.force, &mut report) {
                Ok(round) => rounds.push(round),
                // What cannot be measured once may be measured the next time, and the others in any case.
                Err(failure) => eprintln!("{}: {failure}", scenario.name),
            }
        }
        if rounds.is_empty() {
            return Err(format!("{} cannot be measured", scenario.name).into());
        }
        print!("{}", report.add(scenario, rounds));
        // As far as it has come.
        if is_written {
            report.write()?;
        }
    }
    Ok(())
}

/// Each case once, in random order; what was measured, in the order of the cases.
fn run_round(
    bench: &mut Bench,
    scenario: &Scenario,
    is_forced: bool,
    report: &mut Report,
) -> Result<Vec<Measured>, Failure> {
    let mut order: Vec<_> = (0..scenario.cases.len()).collect();
    fastrand::shuffle(&mut order);
    let mut measured = vec![Measured::default(); order.len()];
    for at in order {
        report.surroundings.wait_for_calm(is_forced)?;
        measured[at] = bench.measure(&scenario.cases[at])?;
    }
    Ok(measured)
}
