//! QEMU: fetched from bookworm's backports without installing it, and one run of a machine.
//!
//! A machine here has no network but what is plugged in explicitly, and never outlives us.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::apt::{Apt, Suite};
use super::command;
use super::guest::background::die_with_us;

/// Debian 12's own QEMU would replace packages that its backports' does not.
const PACKAGES: [&str; 4] = [
    "qemu-system-x86/bookworm-backports",
    "qemu-system-common/bookworm-backports",
    "qemu-system-data/bookworm-backports",
    "seabios/bookworm-backports",
];
const SUITES: [Suite; 3] = [
    Suite::Archive("bookworm"),
    Suite::Security("bookworm-security"),
    Suite::Archive("bookworm-backports"),
];

/// How the guest's processor is had.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum Accel {
    /// Translated in software: works everywhere.
    #[default]
    Tcg,
    /// By the host's kernel. `/dev/kvm` may be there and yet not boot a stock kernel.
    Kvm,
}

/// An unpacked QEMU.
pub(super) struct Qemu {
    root: PathBuf,
}

impl Qemu {
    /// Finds the cached QEMU, or fetches it.
    pub(super) fn fetch(cache: &Path) -> anyhow::Result<Self> {
        let qemu = Self {
            root: cache.join("qemu"),
        };
        if qemu.version().is_err() {
            let apt = Apt::open(&cache.join("apt-qemu"), &SUITES)?;
            apt.unpack(&apt.missing(&PACKAGES)?, &qemu.root)?;
        }
        qemu.version().context("this machine cannot run QEMU")?;
        Ok(qemu)
    }

    /// The first line of what it says of itself.
    pub(super) fn version(&self) -> anyhow::Result<String> {
        let text = command::output(self.command(None).arg("-version"))?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    /// The program with its libraries and firmware, and nothing of a machine yet.
    fn command(&self, namespace: Option<&Path>) -> Command {
        let library = |folder: &str| self.root.join(folder).display().to_string();
        let program = self.root.join("usr/bin/qemu-system-x86_64");
        let mut command = match namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command
                    .arg(format!("--net={}", namespace.display()))
                    .arg("--")
                    .arg(program);
                command
            }
        };
        command
            .env(
                "LD_LIBRARY_PATH",
                [
                    library("usr/lib/x86_64-linux-gnu"),
                    library("lib/x86_64-linux-gnu"),
                ]
                .join(":"),
            )
            .env(
                "QEMU_MODULE_DIR",
                self.root.join("usr/lib/x86_64-linux-gnu/qemu"),
            );
        for folder in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(self.root.join(folder));
        }
        command
    }

    /// Starts a machine whose console goes to `log` and to the caller.
    pub(super) fn boot(&self, machine: &Machine, log: &Path) -> anyhow::Result<Running> {
        let mut command = self.command(machine.namespace.as_deref());
        match machine.accel {
            // Without what makes a kernel clear and copy memory byte by byte: fast on a processor, slow here.
            Accel::Tcg => command.args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max,erms=off,fsrm=off",
            ]),
            Accel::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
        };
        command
            .args([
                "-M",
                "q35",
                "-smp",
                "2",
                "-m",
                &machine.memory_mib.to_string(),
            ])
            .args([
                "-nodefaults",
                "-no-reboot",
                "-display",
                "none",
                "-monitor",
                "none",
            ])
            .args(["-serial", "stdio"])
            .arg("-kernel")
            .arg(&machine.kernel)
            .arg("-initrd")
            .arg(&machine.initrd)
            .args(["-append", &machine.command_line])
            .args(&machine.devices);
        Running::start(command, log)
    }
}

/// What is booted.
pub(super) struct Machine {
    pub(super) accel: Accel,
    pub(super) memory_mib: u32,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) command_line: String,
    /// The network namespace in which QEMU runs; ours when there is none.
    pub(super) namespace: Option<PathBuf>,
    /// Further arguments of QEMU.
    pub(super) devices: Vec<String>,
}

/// A machine that runs. It is stopped when this is dropped.
pub(super) struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    /// Starts a program whose output is a console, kept in `log` as well.
    fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        die_with_us(&mut command);
        let mut child = command.spawn().context("starting QEMU")?;
        let console = child.stdout.take().context("QEMU's console is piped")?;
        let complaints = child.stderr.take().context("QEMU's errors are piped")?;
        Ok(Self {
            child,
            lines: lines(console, complaints, log)?,
        })
    }

    /// The next line of the console; `None` when the machine is off, an error at the deadline.
    pub(super) fn next_line(&self, deadline: Instant) -> Result<Option<String>, Hangs> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(Hangs),
        }
    }
}

/// Nothing more came from the guest in time.
#[derive(Debug)]
pub(super) struct Hangs;

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already when the guest powered off.
        if let Err(error) = self.child.kill() {
            eprintln!("QEMU (pid {}) was not stopped: {error}", self.child.id());
        }
        if let Err(error) = self.child.wait() {
            eprintln!("QEMU (pid {}) was not waited for: {error}", self.child.id());
        }
    }
}

/// Copies console and error output to `log`, and hands the lines on as they come.
fn lines(
    console: impl std::io::Read + Send + 'static,
    complaints: impl std::io::Read + Send + 'static,
    log: &Path,
) -> anyhow::Result<Receiver<String>> {
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let (sender, receiver) = mpsc::channel();
    let copy = |from: Box<dyn std::io::Read + Send>| -> anyhow::Result<()> {
        let mut file = file.try_clone().context("the console's log")?;
        let sender = sender.clone();
        thread::spawn(move || {
            let begun = Instant::now();
            for line in BufReader::new(from).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line)
                    .trim_end_matches('\r')
                    .to_owned();
                let seconds = begun.elapsed().as_secs_f64();
                // Without the log or a listener there is still the other one.
                let written = writeln!(file, "{seconds:8.3} {line}");
                if sender.send(line).is_err() && written.is_err() {
                    break;
                }
            }
        });
        Ok(())
    };
    copy(Box::new(console))?;
    copy(Box::new(complaints))?;
    Ok(receiver)
}

/// How long a machine may take from its start to PID 1's first line.
pub(super) const BOOT: Duration = Duration::from_mins(1);

/// Fails early, with a reason, where `--accel kvm` cannot work.
pub(super) fn ensure_usable(accel: Accel) -> anyhow::Result<()> {
    if matches!(accel, Accel::Kvm) {
        let opened = File::options().read(true).write(true).open("/dev/kvm");
        ensure!(
            opened.is_ok(),
            "/dev/kvm cannot be opened ({opened:?}): use --accel tcg"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_says_nothing_more_hangs_and_is_stopped_and_its_console_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("console.log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo booting; exec sleep 1000"]);
        let running = Running::start(command, &log).expect("sh");
        let soon = || Instant::now() + Duration::from_secs(10);
        let line = running.next_line(soon()).expect("a line");
        assert_eq!(line.as_deref(), Some("booting"));
        let hangs = running.next_line(Instant::now() + Duration::from_millis(50));
        assert!(hangs.is_err(), "{hangs:?}");
        let process = PathBuf::from(format!("/proc/{}", running.child.id()));
        assert!(process.exists());
        drop(running);
        assert!(!process.exists());
        let console = fs::read_to_string(&log).expect("the console's log");
        assert!(console.contains("booting"), "{console}");
    }

    #[test]
    fn a_machine_that_ends_is_not_taken_for_one_that_hangs() {
        let folder = tempfile::tempdir().expect("a folder");
        let running = Running::start(Command::new("true"), &folder.path().join("log"));
        let line = running
            .expect("true")
            .next_line(Instant::now() + Duration::from_secs(10));
        assert!(matches!(line, Ok(None)), "{line:?}");
    }
}
