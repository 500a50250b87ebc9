//! Where the kernel keeps cgroups and pinned objects: what is mounted, from `/proc/self/mountinfo`
//! (see `proc_pid_mountinfo(5)`), and the mount of bpffs where it is missing.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStringExt as _, fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use tracing::info;

use super::KernelError;

/// Where bpffs is mounted on every other system.
const BPFFS: &str = "/sys/fs/bpf";

/// The mounts this process sees, in the order of mounting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts(Vec<Mount>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// Which part of the file system is mounted: `/` for all of it.
    root: PathBuf,
    file_system: String,
}

impl Mounts {
    /// Reads those of this process.
    ///
    /// # Errors
    /// If `/proc/self/mountinfo` cannot be read.
    pub fn of_this_process() -> io::Result<Self> {
        Ok(Self::parse(&fs::read("/proc/self/mountinfo")?))
    }

    /// Parses a `mountinfo` file; lines that are none are passed over.
    #[must_use]
    pub fn parse(mountinfo: &[u8]) -> Self {
        Self(
            mountinfo
                .split(|byte| *byte == b'\n')
                .filter_map(mount)
                .collect(),
        )
    }

    /// Root of cgroup2, wherever it is mounted: the place of its own in a hybrid layout too.
    #[must_use]
    pub fn cgroup2(&self) -> Option<&Path> {
        let mut cgroup2 = self.0.iter().filter(|mount| mount.file_system == "cgroup2");
        // In a container, a part of the tree may be mounted beside the whole.
        let first = cgroup2.clone().next();
        cgroup2
            .find(|mount| mount.root == Path::new("/"))
            .or(first)
            .map(|mount| mount.point.as_path())
    }

    /// The type of the file system that holds a path, whether or not the path exists.
    #[must_use]
    pub fn file_system_of(&self, path: &Path) -> Option<&str> {
        // Of mounts at the same place, the last one hides the others.
        self.0
            .iter()
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|mount| mount.point.components().count())
            .map(|mount| mount.file_system.as_str())
    }

    /// Where bpffs has to be mounted so that a directory is on it; `None` if it is.
    #[must_use]
    pub fn bpffs_missing_for(&self, directory: &Path) -> Option<PathBuf> {
        if self.file_system_of(directory) == Some("bpf") {
            return None;
        }
        let usual = Path::new(BPFFS);
        let point = if directory.starts_with(usual) {
            usual
        } else {
            directory
        };
        Some(point.to_owned())
    }
}

/// Makes sure that a directory exists on a bpffs: mounts one where there is none.
///
/// # Errors
/// [`KernelError::File`] naming the path and what failed.
pub(super) fn ensure_bpffs(directory: &Path) -> Result<(), KernelError> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| KernelError::File { what, path, source }
    };
    let look = failed("cannot look for a bpffs for", directory);
    if let Some(point) = missing_bpffs(directory).map_err(look)? {
        fs::create_dir_all(&point).map_err(failed("cannot make", &point))?;
        let mounted = mount_bpffs(directory, &point);
        if mounted.map_err(failed("cannot mount a bpffs at", &point))? {
            info!(at = %point.display(), "mounted a bpffs");
        }
    }
    // Whoever may write there declares tenants.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed("cannot make", directory))
}

fn missing_bpffs(directory: &Path) -> io::Result<Option<PathBuf>> {
    Ok(Mounts::of_this_process()?.bpffs_missing_for(directory))
}

/// Mounts a bpffs; false if somebody else has done so meanwhile.
fn mount_bpffs(directory: &Path, point: &Path) -> io::Result<bool> {
    // Two that start at the same time would mount one over the other's. The lock is on what the mount
    // hides, where all meet who found nothing mounted.
    let hidden = fs::File::open(point)?;
    hidden.lock()?;
    if missing_bpffs(directory)?.is_none() {
        return Ok(false);
    }
    nix::mount::mount(
        Some("bpf"),
        point,
        Some("bpf"),
        nix::mount::MsFlags::empty(),
        Some("mode=0700"),
    )?;
    Ok(true)
}

/// Whether a directory is on another file system than a bpffs: one statfs(2), not a look at all
/// mounts.
pub(super) fn is_off_bpffs(directory: &Path) -> bool {
    nix::sys::statfs::statfs(directory).map_or(true, |fs| {
        fs.filesystem_type() != nix::sys::statfs::BPF_FS_MAGIC
    })
}

fn mount(line: &[u8]) -> Option<Mount> {
    // id parent major:minor root point options [optional fields] - type source options
    let mut fields = line.split(|byte| *byte == b' ');
    let root = fields.nth(3)?;
    let point = fields.next()?;
    let file_system = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount {
        point: unescape(point),
        root: unescape(root),
        file_system: String::from_utf8_lossy(file_system).into_owned(),
    })
}

/// Blanks and backslashes are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(decoded) = octal {
            path.push(decoded);
            rest = &tail[3..];
        } else {
            path.push(*byte);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"\
22 27 0:21 / /proc rw,relatime - proc proc rw
23 27 0:22 / /sys rw,relatime shared:7 - sysfs sysfs rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
43 27 0:40 / /mnt/with\\040blank rw - bpf bpf rw
garbage
";

    #[test]
    fn cgroup2_is_found_wherever_it_is_mounted() {
        let hybrid = Mounts::parse(HYBRID);
        assert_eq!(hybrid.cgroup2(), Some(Path::new("/sys/fs/cgroup/unified")));
        let unified =
            Mounts::parse(b"30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw");
        assert_eq!(unified.cgroup2(), Some(Path::new("/sys/fs/cgroup")));
        let part = b"1 2 0:26 /box /box rw - cgroup2 c rw\n3 2 0:26 / /whole rw - cgroup2 c rw\n";
        assert_eq!(Mounts::parse(part).cgroup2(), Some(Path::new("/whole")));
        assert_eq!(Mounts::parse(b"").cgroup2(), None);
    }

    #[test]
    fn a_missing_bpffs_is_wanted_where_it_usually_is() {
        let directory = Path::new("/sys/fs/bpf/metadata-proxy");
        let mut mounts = Mounts::parse(HYBRID);
        assert_eq!(
            mounts.bpffs_missing_for(directory),
            Some(PathBuf::from("/sys/fs/bpf"))
        );
        let elsewhere = Path::new("/run/x/bpf");
        assert_eq!(
            mounts.bpffs_missing_for(elsewhere),
            Some(elsewhere.to_owned())
        );
        assert_eq!(
            mounts.bpffs_missing_for(Path::new("/mnt/with blank/x")),
            None
        );
        mounts
            .0
            .extend(Mounts::parse(b"42 23 0:39 / /sys/fs/bpf rw - bpf bpf rw").0);
        assert_eq!(mounts.bpffs_missing_for(directory), None);
    }

    #[test]
    fn a_later_mount_hides_an_earlier_one() {
        let mounts = Mounts::parse(b"1 1 0:1 / /a rw - bpf b rw\n2 1 0:2 / /a rw - tmpfs t rw\n");
        assert_eq!(mounts.file_system_of(Path::new("/a/b")), Some("tmpfs"));
        assert_eq!(mounts.file_system_of(Path::new("/ab")), None);
    }

    #[test]
    fn this_process_has_a_root() {
        let mounts = Mounts::of_this_process().unwrap();
        assert!(mounts.file_system_of(Path::new("/")).is_some());
    }
}
