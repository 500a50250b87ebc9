//! One pretended node: private directories for namespaces and pins, a private cgroup.
//!
//! Suites that run at once, and whatever else lives on the machine, never meet: nothing here uses
//! `/run/netns`, `/sys/fs/bpf`, or a cgroup that was there before.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::geteuid,
};

use crate::{mountinfo, netns, process::kill_and_wait, wait::wait_until};

/// What the names of everything a test leaves outside of namespaces begin with.
pub(crate) const PREFIX: &str = "mdp-test-";

const RUN: &str = "/run";
const CGROUP_EMPTY_WITHIN: Duration = Duration::from_secs(10);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A node of its own; everything is removed when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    cgroup: PathBuf,
    procs: File,
    /// Tells others that the owner lives: the kernel unlocks when it dies, however it dies.
    _lock: Flock<File>,
}

impl Node {
    /// Makes a node, after removing those whose process has died without cleaning up.
    ///
    /// # Errors
    /// Not root, no cgroup2, or the kernel refused something.
    pub fn new() -> Result<Self> {
        if !geteuid().is_root() {
            bail!("this test makes network namespaces and cgroups: run it as root");
        }
        remove_stale()?;
        let name = format!(
            "{PREFIX}{}-{}",
            process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = Path::new(RUN).join(&name);
        // Locked before it has its name, or another test would take it for one that was left.
        let unfinished = Path::new(RUN).join(format!(".{name}"));
        fs::create_dir(&unfinished)
            .with_context(|| format!("cannot create {}", unfinished.display()))?;
        let lock = lock(&unfinished)?;
        fs::rename(&unfinished, &directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        for child in ["netns", "guests", "bpf"] {
            fs::create_dir(directory.join(child))
                .with_context(|| format!("cannot create {child}"))?;
        }
        let bpf = directory.join("bpf");
        mount(
            Some("bpf"),
            &bpf,
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )
        .with_context(|| format!("cannot mount bpffs on {}", bpf.display()))?;
        let cgroup = mountinfo::cgroup2_root()?.join(&name);
        fs::create_dir(&cgroup).with_context(|| format!("cannot create {}", cgroup.display()))?;
        let procs = OpenOptions::new()
            .write(true)
            .open(cgroup.join("cgroup.procs"))
            .context("cannot open the cgroup's process list")?;
        Ok(Self(Arc::new(Inner {
            directory,
            cgroup,
            procs,
            _lock: lock,
        })))
    }

    /// A directory for whatever a test writes.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// Where tenant namespaces are, as `/run/netns` on a real node.
    #[must_use]
    pub fn netns_dir(&self) -> PathBuf {
        self.0.directory.join("netns")
    }

    /// Where guests' namespaces are: on a real node nothing stands for a guest.
    #[must_use]
    pub fn guests_dir(&self) -> PathBuf {
        self.0.directory.join("guests")
    }

    /// A bpffs of this node only.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.0.directory.join("bpf")
    }

    /// The cgroup that stands for the node's root cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.0.cgroup
    }

    /// Lets a program start inside the node's cgroup.
    ///
    /// # Errors
    /// The cgroup's process list cannot be shared with it.
    pub fn enter_cgroup(&self, command: &mut Command) -> Result<()> {
        let procs = self
            .0
            .procs
            .try_clone()
            .context("cannot share the cgroup's process list")?;
        // SAFETY: between fork and exec only write(2) is called, which is async-signal-safe.
        unsafe {
            command.pre_exec(move || (&procs).write_all(b"0"));
        }
        Ok(())
    }

    /// Ids of the processes inside the node's cgroup.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn processes(&self) -> Result<Vec<u32>> {
        processes_of(&self.0.cgroup)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("(removing the node {})", self.directory.display());
        }
        if let Err(error) = remove(&self.directory, &self.cgroup) {
            eprintln!("cannot remove {}: {error:#}", self.directory.display());
        }
    }
}

fn lock(directory: &Path) -> Result<Flock<File>> {
    let file = File::create(directory.join("lock")).context("cannot create the lock")?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| error)
        .with_context(|| format!("{} belongs to a living test", directory.display()))
}

/// Removes a node: processes first, then what they may have held.
fn remove(directory: &Path, cgroup: &Path) -> Result<()> {
    for child in ["netns", "guests"] {
        let Ok(entries) = fs::read_dir(directory.join(child)) else {
            continue;
        };
        for entry in entries {
            netns::remove(&entry.context("cannot list namespaces")?.path())?;
        }
    }
    if cgroup.exists() {
        kill_and_wait(&processes_of(cgroup)?)?;
        remove_cgroup(cgroup)?;
    }
    let bpf = directory.join("bpf");
    if mountinfo::is_mount_point(&bpf)? {
        umount2(&bpf, MntFlags::MNT_DETACH).context("cannot unmount bpffs")?;
    }
    match fs::remove_dir_all(directory) {
        // Another test removed the same stale node.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.context("cannot remove the directory"),
    }
}

/// Removes a cgroup and those inside it; the kernel frees a process's place a moment after its end.
fn remove_cgroup(cgroup: &Path) -> Result<()> {
    for entry in fs::read_dir(cgroup).context("cannot list the cgroup")? {
        let path = entry.context("cannot list the cgroup")?.path();
        if path.is_dir() {
            remove_cgroup(&path)?;
        }
    }
    let what = format!("removal of {}", cgroup.display());
    wait_until(&what, CGROUP_EMPTY_WITHIN, || {
        fs::remove_dir(cgroup).is_ok()
    })
}

fn processes_of(cgroup: &Path) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    let text = fs::read_to_string(cgroup.join("cgroup.procs"))
        .with_context(|| format!("cannot read the process list of {}", cgroup.display()))?;
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(cgroup).context("cannot list the cgroup")? {
        let path = entry.context("cannot list the cgroup")?.path();
        if path.is_dir() {
            found.extend(processes_of(&path)?);
        }
    }
    Ok(found)
}

/// Removes nodes whose owner has died: their lock is free.
fn remove_stale() -> Result<()> {
    for (directory, _held) in stale()? {
        let name = directory.file_name().context("a node has no name")?;
        remove(&directory, &mountinfo::cgroup2_root()?.join(name))?;
    }
    Ok(())
}

/// Directories of nodes whose owner has died, each with its lock.
fn stale() -> io::Result<Vec<(PathBuf, Flock<File>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(RUN)? {
        let path = entry?.path();
        let ours = path
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.starts_with(PREFIX));
        // One without a lock file is being made, or removed, at this moment.
        if !ours || !path.join("lock").exists() {
            continue;
        }
        if let Ok(held) = lock(&path) {
            found.push((path, held));
        }
    }
    Ok(found)
}
