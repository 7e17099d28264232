//! What processes have used, by the operating system's account of them.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Failure;

/// How often processes are looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// How long is waited at most for what was started to come to rest.
const PATIENCE: Duration = Duration::from_secs(5);

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

/// Processor time that a process and its children spend, thread by thread and to the nanosecond. Threads come and go, so
/// it has to be looked at now and then: of one that ends, what it spent after the last look is not counted.
#[derive(Debug)]
pub(crate) struct Cpu {
    pid: u32,
    before: HashMap<PathBuf, u64>,
    last: HashMap<PathBuf, u64>,
}

impl Cpu {
    /// From now on.
    pub(crate) fn new(pid: u32) -> Self {
        let mut cpu = Self { pid, before: HashMap::new(), last: HashMap::new() };
        cpu.look();
        cpu.before.clone_from(&cpu.last);
        cpu
    }

    pub(crate) fn look(&mut self) {
        for pid in family(self.pid) {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            for thread in threads.map(|thread| thread.path()) {
                let stat = fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
                if let Some(nanos) = stat.split(' ').next().and_then(|nanos| nanos.parse().ok()) {
                    self.last.insert(thread, nanos);
                }
            }
        }
    }

    pub(crate) fn spent(&self) -> Duration {
        let before = |thread| self.before.get(thread).copied().unwrap_or(0);
        let spent = self.last.iter().map(|(thread, nanos)| nanos.saturating_sub(before(thread)));
        Duration::from_nanos(spent.sum())
    }
}

/// Waits until a process does next to nothing.
pub(crate) fn come_to_rest(pid: Option<u32>) {
    let Some(pid) = pid else { return };
    let since = Instant::now();
    loop {
        let mut cpu = Cpu::new(pid);
        sleep(LOOK * 2);
        cpu.look();
        if cpu.spent() < LOOK / 50 || since.elapsed() > PATIENCE {
            return;
        }
    }
}

/// Resident memory of a process and its children in KiB.
pub(crate) fn memory(pid: u32) -> u64 {
    let resident = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    family(pid).into_iter().filter_map(resident).sum()
}

/// Processor time of the whole machine: busy, and all there was, in ticks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    busy: u64,
    all: u64,
}

impl Machine {
    pub(crate) fn now() -> Result<Self, Failure> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().skip(1).flat_map(str::parse).collect();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        let all: u64 = ticks.iter().take(8).sum();
        Ok(Self { busy: all - idle, all })
    }

    /// The part of all processor time since then that was used, by anybody; between 0 and 1.
    pub(crate) fn busy_since(self) -> Result<f64, Failure> {
        let now = Self::now()?;
        Ok((now.busy - self.busy) as f64 / (now.all - self.all).max(1) as f64)
    }
}

/// The machine in a few words.
pub(crate) fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<_> = cpus.lines().filter_map(|line| line.strip_prefix("model name")).collect();
    let model =
        models.first().map_or("unknown", |model| model.trim_start_matches([' ', '\t', ':']));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = kernel.split('-').next().unwrap_or_default();
    format!("{} × {model}, Linux {}", models.len(), version.trim())
}
