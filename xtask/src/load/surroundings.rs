//! On what, and beside what, was measured: a number without these says nothing.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use super::spread::median;
use super::usage::{self, Machine};
use crate::Failure;

/// How busy the machine may be before a run, as a part of all its processor time.
const BUSY_MAX: f64 = 0.1;

/// How long it is looked at, and how often it may turn out busy before the measurement is given up.
const LOOK: Duration = Duration::from_millis(500);
const LOOKS_MAX: usize = 20;

/// How busy the machine was before each run, by what is not measured.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    loads: Vec<f64>,
    /// What is measured: asked before the first run, because what is measured is written into the folder.
    commit: Option<String>,
}

impl Surroundings {
    /// Waits until nothing else uses the machine, or fails after a while; if it is forced, it only looks.
    pub(crate) fn wait_for_calm(&mut self, is_forced: bool) -> Result<(), Failure> {
        if self.commit.is_none() {
            let described =
                Command::new("git").args(["describe", "--always", "--dirty"]).output()?;
            self.commit = Some(String::from_utf8(described.stdout)?.trim().to_owned());
        }
        for _ in 0..LOOKS_MAX {
            let before = Machine::now()?;
            sleep(LOOK);
            let busy = before.busy_since()?;
            if busy <= BUSY_MAX || is_forced {
                self.loads.push(busy);
                return Ok(());
            }
        }
        Err("the machine is busy with something else, and what would be measured is that. Come back later, or say --force".into())
    }

    /// The commit, the machine and what else it did, with a warning if that was much.
    pub(crate) fn tell(&mut self, rounds: usize) -> Result<String, Failure> {
        let load = median(&mut self.loads);
        let warning = if load > BUSY_MAX {
            "**The machine was busy with something else: take ratios with their spread, and times for upper bounds.** "
        } else {
            ""
        };
        Ok(format!(
            "{warning}Commit {}, {rounds} rounds, on {}. Before a run {:.0} % of the machine was used by something else (at most {:.0} %).",
            self.commit.as_deref().unwrap_or("unknown"),
            usage::machine(),
            load * 100.0,
            self.loads.iter().copied().fold(0.0, f64::max) * 100.0,
        ))
    }
}
