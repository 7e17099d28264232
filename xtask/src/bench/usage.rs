//! What processes have used, by the operating system's account of them.

use std::fs;
use std::time::Duration;

use crate::Failure;

/// The process and all that it has started.
fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut at = 0;
    while let Some(pid) = family.get(at) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        family.extend(children.unwrap_or_default().split_whitespace().flat_map(str::parse::<u32>));
        at += 1;
    }
    family
}

/// Processor time of a process and its children, to the nanosecond; of threads that have ended it is not counted.
pub(super) fn cpu(pid: u32) -> Result<Duration, Failure> {
    let mut nanos = 0;
    for pid in family(pid) {
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let stat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            nanos += stat.split(' ').next().and_then(|time| time.parse().ok()).unwrap_or(0);
        }
    }
    Ok(Duration::from_nanos(nanos))
}

/// Resident memory of a process and its children in KiB.
pub(super) fn memory(pid: u32) -> u64 {
    let resident = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    family(pid).into_iter().filter_map(resident).sum()
}

/// Processor time of the whole machine: busy, and all there was, in ticks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    busy: u64,
    all: u64,
}

impl Machine {
    pub(super) fn now() -> Result<Self, Failure> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().skip(1).flat_map(str::parse).collect();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        let all: u64 = ticks.iter().take(8).sum();
        Ok(Self { busy: all - idle, all })
    }

    /// The part of all processor time since then that was used, by anybody; between 0 and 1.
    pub(super) fn busy_since(self) -> Result<f64, Failure> {
        let now = Self::now()?;
        Ok((now.busy - self.busy) as f64 / (now.all - self.all).max(1) as f64)
    }
}

/// The machine in a few words.
pub(super) fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<_> = cpus.lines().filter_map(|line| line.strip_prefix("model name")).collect();
    let model =
        models.first().map_or("unknown", |model| model.trim_start_matches([' ', '\t', ':']));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = kernel.split('-').next().unwrap_or_default();
    format!("{} × {model}, Linux {}", models.len(), version.trim())
}
