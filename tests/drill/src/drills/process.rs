//! What a process holds and has used.

use std::{fmt, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Use {
    /// Open files.
    pub(crate) files: usize,
    /// Threads.
    pub(crate) threads: usize,
    /// Memory that is its own, bytes.
    pub(crate) memory: u64,
}

impl Use {
    /// Of a process, now.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let count = |what: &str| -> Result<usize> {
            let entries = fs::read_dir(format!("/proc/{pid}/{what}")).context("no such process")?;
            Ok(entries.count())
        };
        let status =
            fs::read_to_string(format!("/proc/{pid}/status")).context("no such process")?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(Self {
            files: count("fd")?,
            threads: count("task")?,
            memory: kilobytes.context("no memory in its status")? * 1024,
        })
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kilobytes = self.memory / 1024;
        write!(
            f,
            "{} files, {} threads, {kilobytes} KiB",
            self.files, self.threads
        )
    }
}

/// Processor time of a process until now.
pub(crate) fn processor_time(pid: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("no such process")?;
    for task in tasks {
        let path = task
            .context("cannot list threads")?
            .path()
            .join("schedstat");
        let text = fs::read_to_string(path).context("a thread has ended")?;
        let first = text
            .split(' ')
            .next()
            .and_then(|word| word.parse::<u64>().ok());
        nanoseconds += first.context("no time in schedstat")?;
    }
    ensure!(
        nanoseconds > 0,
        "the kernel keeps no account of processor time"
    );
    Ok(Duration::from_nanos(nanoseconds))
}
