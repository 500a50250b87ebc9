//! Network namespaces, made as `ip netns add` makes them but in a directory of the node's own.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{MetadataExt as _, OpenOptionsExt as _},
            process::CommandExt as _,
        },
    },
    panic,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use socket2::{Domain, Socket, Type};

use crate::{
    node::Node,
    process::{all_pids, kill_and_wait, run},
};

/// Settings of a new namespace: none of its addresses waits for duplicate address detection.
const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
];

/// A network namespace; when dropped, its processes are killed and it is removed.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
    /// Keeps the directory the namespace is in.
    _node: Node,
}

impl Netns {
    /// Makes a namespace of this name among the node's tenant namespaces, its loopback up.
    ///
    /// # Errors
    /// The name is taken or the kernel refused.
    pub fn tenant(node: &Node, name: &str) -> Result<Self> {
        Self::create(node, node.netns_dir().join(name))
    }

    /// Makes a namespace that the agent does not see: a guest's, or that of a switch.
    ///
    /// # Errors
    /// The name is taken or the kernel refused.
    pub fn hidden(node: &Node, name: &str) -> Result<Self> {
        Self::create(node, node.guests_dir().join(name))
    }

    fn create(node: &Node, path: PathBuf) -> Result<Self> {
        // First the file, then the mount, as iproute2: whoever watches sees an empty file first.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o000)
            .open(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        let made = on_new_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            mount(
                Some("/proc/thread-self/ns/net"),
                &path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .with_context(|| format!("cannot mount a namespace on {}", path.display()))?;
            bring_up_loopback().context("cannot bring loopback up")?;
            SYSCTLS
                .iter()
                .try_for_each(|(key, value)| write_sysctl(key, value))
        });
        let opened = made.and_then(|()| File::open(&path).context("cannot open the namespace"));
        match opened {
            Ok(file) => Ok(Self {
                path,
                file,
                _node: node.clone(),
            }),
            Err(error) => {
                let _ = remove(&path);
                Err(error)
            }
        }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name: the last part of its path.
    #[must_use]
    pub fn name(&self) -> String {
        self.path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// The namespace itself, for system calls that take one.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Its inode number, which tells it from another of the same name.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn inode(&self) -> Result<u64> {
        Ok(self
            .file
            .metadata()
            .context("cannot ask for a namespace's inode")?
            .ino())
    }

    /// Calls a function on a new thread inside the namespace. Sockets it returns stay inside.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the function failed.
    ///
    /// # Panics
    /// When the function panics.
    pub fn run<T: Send>(&self, function: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_new_thread(|| {
            self.enter()?;
            function()
        })
    }

    /// Moves the calling thread into the namespace, for good: it must be used for nothing else.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter {}", self.path.display()))
    }

    /// Prepares a program that will run inside the namespace.
    ///
    /// # Errors
    /// The namespace cannot be shared with it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let file = self.file.try_clone().context("cannot share a namespace")?;
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only setns(2) is called, which is async-signal-safe.
        unsafe {
            command
                .pre_exec(move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
        }
        Ok(command)
    }

    /// Runs `ip` with these arguments inside the namespace and returns what it printed.
    ///
    /// # Errors
    /// It failed.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        // Started from inside: that takes no fork, which copies what a test has of memory.
        self.run(|| run(Command::new("ip").args(arguments.split_whitespace())))
    }

    /// Runs many `ip` commands, one a line, inside the namespace.
    ///
    /// # Errors
    /// One failed; those after it were not run.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], lines)
    }

    /// Runs a program inside the namespace that reads `input`.
    ///
    /// # Errors
    /// It failed.
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.run(|| {
            command
                .spawn()
                .with_context(|| format!("cannot start {program}; run `cargo xtask setup`"))
        })?;
        let mut stdin = child.stdin.take().context("no pipe to the program")?;
        // One that ends early says why; that is better than "broken pipe".
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child
            .wait_with_output()
            .with_context(|| format!("{program} was lost"))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!(
                "{program} in {} failed: {}\n{input}",
                self.name(),
                stderr.trim()
            );
        }
        Ok(())
    }

    /// Writes a setting of the namespace, named as a path below `/proc/sys`.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| write_sysctl(key, value))
    }

    /// Ids of the processes inside.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<u32>> {
        processes_inside(&self.file)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("cannot remove {}: {error:#}", self.path.display());
        }
    }
}

/// Kills what runs in a namespace and removes it; one that is not there is removed already.
pub(crate) fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // One that was never mounted is an ordinary file that cannot be anybody's namespace.
    if let Ok(file) = File::open(path) {
        kill_and_wait(&processes_inside(&file)?)?;
    }
    let _ = umount2(path, MntFlags::MNT_DETACH);
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
}

fn processes_inside(namespace: &File) -> Result<Vec<u32>> {
    let wanted = namespace
        .metadata()
        .context("cannot ask for a namespace's inode")?;
    let inside = all_pids()
        .context("cannot list processes")?
        .into_iter()
        .filter(|pid| {
            *pid != process::id()
                && fs::metadata(format!("/proc/{pid}/ns/net"))
                    .is_ok_and(|its| its.ino() == wanted.ino() && its.dev() == wanted.dev())
        });
    Ok(inside.collect())
}

/// Brings up the loopback device of the calling thread's namespace.
fn bring_up_loopback() -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // SAFETY: integers and bytes, of which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    // SAFETY: the request is valid, and names a device by a string that ends.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `/proc/sys/net` shows the namespace of whoever opens it.
fn write_sysctl(key: &str, value: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys").join(key), value)
        .with_context(|| format!("cannot set {key} to {value}"))
}

/// Calls a function on a thread that ends with it, since a thread that changed namespaces is not to
/// be used for anything else.
fn on_new_thread<T: Send>(function: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .spawn_scoped(scope, function)
            .map_err(|error| anyhow!("cannot start a thread: {error}"))?
            .join()
            .unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    })
}
