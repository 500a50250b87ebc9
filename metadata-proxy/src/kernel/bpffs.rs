//! Where the kernel keeps pinned objects and cgroups: finds the mounts, makes the missing one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::KernelError;

/// Makes sure that `dir` exists on a bpffs: mounts one at its parent where there is none.
///
/// Returns whether a bpffs was mounted.
///
/// # Errors
/// [`KernelError::File`] naming the directory and what failed.
pub fn ensure_bpffs(dir: &Path) -> Result<bool, KernelError> {
    let error = |what, path: &Path, source: std::io::Error| KernelError::File {
        what,
        path: path.to_owned(),
        source,
    };
    let parent = dir.parent().unwrap_or(dir);
    let mut mounted = false;
    if !is_bpffs(parent) {
        fs::create_dir_all(parent).map_err(|e| error("cannot make", parent, e))?;
        mount(Some("bpf"), parent, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .map_err(|e| error("cannot mount a bpffs at", parent, e.into()))?;
        mounted = true;
    }
    fs::create_dir_all(dir).map_err(|e| error("cannot make", dir, e))?;
    Ok(mounted)
}

/// Whether a path lies on a bpffs.
#[must_use]
pub(super) fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

/// Mount point of the cgroup v2 hierarchy, wherever it is: `/sys/fs/cgroup`, or beside v1
/// hierarchies (source: `/proc/self/mountinfo`, proc(5)).
#[must_use]
pub fn cgroup2_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        filesystem.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}
