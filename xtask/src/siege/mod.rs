//! `cargo xtask siege`: what a normal user of the relay notices while somebody tries to tie it up.
//!
//! A round of an attack has three cases in random order: calm, the attack on the relay, and the same attack elsewhere, on an
//! nginx beside it. Attacker, user, provider and relay share one machine, and an attacker who is busy takes processor time
//! from everybody whatever the relay does: the third case shows how much, and what is above it is the relay's own.

mod attack;
pub(crate) mod attacker;
mod report;
mod run;

use std::path::PathBuf;

use clap::Args;

use crate::Failure;
use crate::load::servers;
use attack::Attack;
use report::Report;
use run::{CASES, Seen, Siege};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only that attack; may be given several times
    #[arg(long)]
    only: Vec<String>,
    /// How often each case is run
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// For how long the user is looked at in a run
    #[arg(long, default_value_t = 10)]
    seconds: usize,
    /// Short runs, to see that all works; nothing is written
    #[arg(long)]
    quick: bool,
    /// Measure also while the machine is busy with something else, and say so
    #[arg(long)]
    force: bool,
    /// The relay to besiege, instead of one that is built first
    #[arg(long)]
    relay: Option<PathBuf>,
}

/// Runs the attacks, prints what was measured, and writes docs/siege.md unless it was quick or only a part.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let relay = options.relay.clone().map_or_else(servers::built_relay, Ok)?;
    let seconds = if options.quick { 2 } else { options.seconds };
    let rounds = if options.quick { 1 } else { options.rounds };
    let mut report = Report::default();
    for attack in attack::all() {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == attack.name) {
            continue;
        }
        let siege = Siege::new(&relay, seconds)?;
        let mut seen = Vec::new();
        for round in 1..=rounds {
            eprintln!("{}: round {round} of {rounds}", attack.name);
            seen.push(run_round(&siege, &attack, options.force, &mut report)?);
        }
        print!("{}", report.add(&attack, &seen));
        // As far as it has come.
        if !options.quick && options.only.is_empty() {
            report.write(rounds)?;
        }
    }
    Ok(())
}

/// Each case once, in random order; what was seen, in the order of the cases.
fn run_round(
    siege: &Siege,
    attack: &Attack,
    is_forced: bool,
    report: &mut Report,
) -> Result<[Seen; CASES.len()], Failure> {
    let mut order: Vec<_> = CASES.into_iter().enumerate().collect();
    fastrand::shuffle(&mut order);
    let mut seen = <[Seen; CASES.len()]>::default();
    for (at, case) in order {
        report.surroundings.wait_for_calm(is_forced)?;
        seen[at] = siege.measure(attack, case)?;
    }
    Ok(seen)
}
