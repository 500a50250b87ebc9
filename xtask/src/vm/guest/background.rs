//! Processes that serve a test guest, stopped when their guard is dropped.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A running process; it is ended, kindly first, when this is dropped.
pub(super) struct Background {
    name: String,
    child: Child,
}

impl Background {
    /// Starts `command`; what it prints goes to the file `log`.
    pub(super) fn start(name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let file =
            std::fs::File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let errors = file.try_clone().context("a log for two streams")?;
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        die_with_us(command);
        let child = command
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
        })
    }

    /// Waits until `ready` says yes, as long as the process lives.
    pub(super) fn wait_until(
        &mut self,
        what: &str,
        time: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + time;
        while !ready() {
            if let Some(status) = self.child.try_wait().context("looking at a process")? {
                bail!("{} ended with {status} before {what}", self.name);
            }
            if Instant::now() >= deadline {
                bail!("{}: not {what} after {} s", self.name, time.as_secs());
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.child.id())?;
        // SAFETY: kill has no memory of ours; the child is not waited for, so its pid is its own.
        if unsafe { libc::kill(pid, libc::SIGTERM) } != 0 {
            return Err(std::io::Error::last_os_error()).context("ending it");
        }
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            thread::sleep(POLL);
        }
        self.child.kill()?;
        self.child.wait()?;
        bail!("it did not end within {} s of SIGTERM", GRACE.as_secs());
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{} (pid {}): {error:#}", self.name, self.child.id());
        }
    }
}

/// Ends the process also when we are killed and can drop nothing.
pub(in crate::vm) fn die_with_us(command: &mut Command) {
    // SAFETY: prctl is a system call without memory of ours, between fork and exec.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}
