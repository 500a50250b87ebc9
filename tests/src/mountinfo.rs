//! Where file systems are mounted.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Finds the root of the cgroup2 hierarchy, wherever it is mounted.
///
/// # Errors
/// It is not mounted.
pub fn cgroup2_root() -> Result<PathBuf> {
    mounts()?
        .into_iter()
        .find_map(|(point, kind)| (kind == "cgroup2").then_some(point))
        .context("cgroup2 is not mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified`")
}

/// Whether something is mounted at this path.
///
/// # Errors
/// The kernel does not say.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    Ok(mounts()?.iter().any(|(point, _)| point == path))
}

/// Mount points and their file systems. Paths with blanks are left escaped, as the kernel has them.
fn mounts() -> Result<Vec<(PathBuf, String)>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<(PathBuf, String)> {
    // Optional fields end with a single dash (proc(5)).
    let (before, after) = line.split_once(" - ")?;
    let point = before.split(' ').nth(4)?;
    let kind = after.split(' ').next()?;
    Some((PathBuf::from(point), kind.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_fields_do_not_hide_the_type() {
        let line = "41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 master:1 - cgroup2 cgroup2 rw";
        let expected = (
            PathBuf::from("/sys/fs/cgroup/unified"),
            "cgroup2".to_owned(),
        );
        assert_eq!(parse(line), Some(expected));
    }

    #[test]
    fn proc_is_a_mount_point_and_its_files_are_not() {
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/proc/version")).unwrap());
    }
}
