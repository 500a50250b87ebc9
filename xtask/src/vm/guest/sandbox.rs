//! A mount namespace for this process and all it starts, with a folder in memory that exists only
//! there.
//!
//! Namespaces are kept alive by mounts, pins by a bpffs: when we end, however we end, the last
//! process of this mount namespace ends with us, and all of it is gone.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::vm::command;

/// Where the folder is; what is there outside is not seen inside.
const FOLDER: &str = "/run";

/// Enters the mount namespace. To be called before the first thread is started, since it is the
/// calling thread that enters, and threads it starts afterwards.
pub(super) fn enter() -> anyhow::Result<PathBuf> {
    // SAFETY: unshare takes a number and touches no memory of ours.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    ensure!(
        result == 0,
        "a mount namespace was refused ({}): guests are plugged in by root",
        std::io::Error::last_os_error()
    );
    command::run(Command::new("mount").args(["--make-rprivate", "/"]))
        .context("keeping our mounts to ourselves")?;
    let options = ["-t", "tmpfs", "-o", "mode=0755", "vm-guest", FOLDER];
    command::run(Command::new("mount").args(options)).context("mounting a folder in memory")?;
    let folder = Path::new(FOLDER).join("vm-guest");
    std::fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}
