//! Network namespaces in a folder of our own, so that nothing on this machine sees them but who
//! is told the folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::vm::command;

/// A network namespace with a name; it is gone, with all its devices, when this is dropped.
pub(super) struct Namespace {
    path: PathBuf,
}

impl Namespace {
    pub(super) fn create(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let path = folder.join(name);
        File::create_new(&path).with_context(|| format!("creating {}", path.display()))?;
        let namespace = Self { path };
        command::run(
            Command::new("unshare")
                .arg(format!("--net={}", namespace.path.display()))
                .arg("true"),
        )
        .with_context(|| format!("creating the network namespace {name}: this needs root"))?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// `program`, to be run inside.
    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path.display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs `ip` inside; the arguments are separated by spaces.
    pub(super) fn ip(&self, arguments: &str) -> anyhow::Result<()> {
        command::run(self.command("ip").args(arguments.split(' ')))
    }

    /// Runs a line inside; the arguments are separated by spaces.
    pub(super) fn run(&self, line: &str) -> anyhow::Result<()> {
        let mut words = line.split(' ');
        let program = words.next().context("an empty line is no command")?;
        command::run(self.command(program).args(words))
    }

    /// Sets a variable below /proc/sys/net, which shows the namespace of who looks.
    pub(super) fn sysctl(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let script = format!("echo {value} > /proc/sys/net/{name}");
        command::run(self.command("sh").args(["-c", &script]))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let unmounted = command::run(Command::new("umount").arg(&self.path));
        if let Err(error) = unmounted {
            eprintln!("{} stays: {error:#}", self.path.display());
        } else if let Err(error) = fs::remove_file(&self.path) {
            eprintln!("{} stays: {error}", self.path.display());
        }
    }
}
