//! How much memory a process has to itself, and the most it had while watched.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// How often a watched process is looked at.
const PERIOD: Duration = Duration::from_millis(50);

/// Bytes of memory of a process, what it shares counted in parts (`Pss`, proc(5)).
pub(crate) fn of(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .context("cannot ask for a process's memory")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kilobytes.context("the kernel does not tell a process's memory")? << 10)
}

/// Bytes for people.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes % (1 << 20)) * 10) >> 20)
}

/// Watches a process until it is dropped.
pub(crate) struct Watch {
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start(pid: u32) -> Self {
        let (most, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (its_most, its_stop) = (Arc::clone(&most), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !its_stop.load(Ordering::Relaxed) {
                its_most.fetch_max(of(pid).unwrap_or(0), Ordering::Relaxed);
                thread::sleep(PERIOD);
            }
        });
        Self {
            most,
            stop,
            thread: Some(thread),
        }
    }

    /// The most it had until now, bytes; starts anew.
    pub(crate) fn take(&self) -> u64 {
        self.most.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
