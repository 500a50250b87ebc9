//! What the kernel says that processes cost.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use metadata_proxy_tests::Node;

/// CPU time of processes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuTime {
    /// All of it.
    pub(crate) all: Duration,
    /// What of it was spent in the kernel.
    pub(crate) kernel: Duration,
}

impl CpuTime {
    /// Of all processes that a node's cgroup ever held.
    pub(crate) fn of(node: &Node) -> Result<Self> {
        let path = node.cgroup().join("cpu.stat");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let micros = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
                .map(Duration::from_micros)
                .with_context(|| format!("{} does not tell {key}", path.display()))
        };
        Ok(Self {
            all: micros("usage_usec ")?,
            kernel: micros("system_usec ")?,
        })
    }

    /// What came since `earlier`.
    pub(crate) const fn since(self, earlier: Self) -> Self {
        Self {
            all: self.all.saturating_sub(earlier.all),
            kernel: self.kernel.saturating_sub(earlier.kernel),
        }
    }
}

/// Memory of all processes in a node's cgroup, bytes: what several share is shared out among them.
pub(crate) fn memory(node: &Node) -> Result<u64> {
    node.processes()?.into_iter().map(memory_of).sum()
}

fn memory_of(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("cannot read the memory of process {pid}"))?;
    let kib: u64 = text
        .lines()
        .find_map(|line| {
            line.strip_prefix("Pss:")?
                .trim()
                .strip_suffix(" kB")?
                .trim()
                .parse()
                .ok()
        })
        .context("the kernel does not tell PSS")?;
    Ok(kib * 1024)
}

/// Open files of all processes in a node's cgroup.
pub(crate) fn open_files(node: &Node) -> Result<usize> {
    node.processes()?
        .into_iter()
        .map(|pid| Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count()))
        .sum()
}

/// How much of the machine's time went to other guests of its host, and to whatever else ran on it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Machine {
    busy: u64,
    stolen: u64,
    all: u64,
}

impl Machine {
    /// Now, since the machine started.
    pub(crate) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let line = text.lines().next().context("/proc/stat is empty")?;
        let ticks: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|word| word.parse().ok())
            .collect();
        // user nice system idle iowait irq softirq steal (proc(5)).
        let all: u64 = ticks.iter().sum();
        let idle = ticks.get(3).copied().unwrap_or(0) + ticks.get(4).copied().unwrap_or(0);
        let stolen = ticks.get(7).copied().unwrap_or(0);
        Ok(Self {
            busy: all - idle - stolen,
            stolen,
            all,
        })
    }

    /// Shares of the time since `earlier`: busy, and stolen by the host.
    pub(crate) fn shares_since(self, earlier: Self) -> (f64, f64) {
        let all = f64_of(self.all - earlier.all).max(1.0);
        (
            f64_of(self.busy - earlier.busy) / all,
            f64_of(self.stolen - earlier.stolen) / all,
        )
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "ticks and bytes here are far below 2^52"
)]
pub(crate) const fn f64_of(number: u64) -> f64 {
    number as f64
}
