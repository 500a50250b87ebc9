//! Programs a fixture runs: to the end, or in the background until their guard is dropped.

use std::{
    fs::{self, File},
    io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};

use crate::wait::wait_for;

/// How long a process may take to vanish after SIGKILL.
const KILLED_WITHIN: Duration = Duration::from_secs(10);

/// Runs a program to its end and returns its output.
///
/// # Errors
/// It could not be started.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| cannot_start(command))
}

/// Runs a program to its end and returns what it wrote to standard output.
///
/// # Errors
/// It could not be started or did not exit with 0; the message has what it wrote to standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed ({}): {}",
            shown(command),
            output.status,
            stderr.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn cannot_start(command: &Command) -> String {
    format!(
        "cannot start {}; `cargo xtask setup` installs what is missing",
        shown(command)
    )
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// A program in the background; killed when dropped, its log shown when the test has failed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Running {
    /// Starts a program that writes its output to the file `log`, with no signal blocked.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let stderr = file.try_clone().context("cannot share the log")?;
        Self::start_writing(name, command.stdout(file).stderr(stderr), log)
    }

    /// Starts a program whose output goes where the command says, with no signal blocked; `log` is
    /// shown as its log all the same.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start_writing(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        // SAFETY: between fork and exec only sigprocmask(2) is called, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| SigSet::empty().thread_set_mask().map_err(io::Error::from));
        }
        let child = command
            // Ctrl-C in a terminal is for the fixture, which then ends this program properly.
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| cannot_start(command))?;
        Ok(Self {
            child,
            name: name.to_owned(),
            log: log.to_owned(),
            ended: None,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it has written until now.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self
                .child
                .try_wait()
                .context("cannot ask whether a process has ended")?;
        }
        Ok(self.ended)
    }

    /// Sends a signal; one that has ended already is left alone.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        kill(pid(self.pid())?, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs at the deadline.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait_for(&what, deadline, || self.ended())
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// It still runs after `grace`.
    pub fn stop(&mut self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(grace)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.ended(), Ok(Some(_))) {
            let killed = self.child.kill().and_then(|()| self.child.wait());
            if let Err(error) = killed {
                eprintln!(
                    "cannot kill {} (pid {}): {error}",
                    self.name,
                    self.child.id()
                );
            }
        }
        if thread::panicking() {
            eprintln!("--- log of {} ---\n{}--- end ---", self.name, self.log());
        }
    }
}

/// Kills processes that are not children of this one and waits until they are gone.
///
/// # Errors
/// One is there still after the deadline, or may not be killed.
pub fn kill_and_wait(pids: &[u32]) -> Result<()> {
    for id in pids {
        match kill(pid(*id)?, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => bail!("cannot kill process {id}: {error}"),
        }
    }
    wait_for("the end of killed processes", KILLED_WITHIN, || {
        Ok(pids.iter().all(|id| !is_alive(*id)).then_some(()))
    })
}

/// Whether a process is there and not a zombie.
#[must_use]
pub fn is_alive(id: u32) -> bool {
    // The state is the first field behind the name, which is in parentheses and may hold any byte.
    fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with(['Z', 'X']))
    })
}

/// Ids of all processes there are.
///
/// # Errors
/// `/proc` cannot be read.
pub fn all_pids() -> io::Result<Vec<u32>> {
    Ok(fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

pub(crate) fn pid(id: u32) -> Result<Pid> {
    Ok(Pid::from_raw(
        i32::try_from(id).context("not a process id")?,
    ))
}

/// Whether a process ended because of this signal.
#[must_use]
pub fn ended_by(status: ExitStatus, signal: Signal) -> bool {
    status.signal() == Some(signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(directory: &Path) -> Running {
        Running::start(
            "sleep",
            Command::new("sleep").arg("1000"),
            &directory.join("log"),
        )
        .unwrap()
    }

    #[test]
    fn a_dropped_guard_leaves_no_process() {
        let directory = tempfile::tempdir().unwrap();
        let running = sleeper(directory.path());
        let id = running.pid();
        assert!(is_alive(id));
        drop(running);
        assert!(!is_alive(id));
    }

    #[test]
    fn a_panic_leaves_no_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let (send, receive) = std::sync::mpsc::channel();
        let panicked = thread::spawn(move || {
            let running = sleeper(&path);
            send.send(running.pid()).unwrap();
            panic!("wanted");
        })
        .join();
        assert!(panicked.is_err());
        assert!(!is_alive(receive.recv().unwrap()));
    }

    #[test]
    fn stop_tells_how_it_ended() {
        let directory = tempfile::tempdir().unwrap();
        let status = sleeper(directory.path())
            .stop(Duration::from_secs(5))
            .unwrap();
        assert!(ended_by(status, Signal::SIGTERM), "{status}");
    }

    #[test]
    fn a_signal_blocked_here_reaches_the_program() {
        let directory = tempfile::tempdir().unwrap();
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.thread_block().unwrap();
        let status = sleeper(directory.path()).stop(Duration::from_secs(5));
        set.thread_unblock().unwrap();
        assert!(ended_by(status.unwrap(), Signal::SIGTERM));
    }

    #[test]
    fn a_failing_program_tells_why() {
        let error = run(Command::new("ls").arg("/nonexistent"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("ls /nonexistent failed"), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }
}
