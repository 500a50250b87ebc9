//! The part of the initramfs that is the same for every kernel: PID 1, the tests, the programs of
//! this machine that they call, and every shared library of all these.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::command;
use super::cpio::Archive;

/// Programs of this machine that the tests call, and the packages that have them.
const TOOLS: [(&str, &str); 25] = [
    ("bpftool", "bpftool"),
    ("busybox", "busybox-static"),
    ("cat", "coreutils"),
    ("curl", "curl"),
    ("dash", "dash"),
    ("false", "coreutils"),
    ("haproxy", "haproxy"),
    ("id", "coreutils"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("iptables-restore", "iptables"),
    ("iptables-save", "iptables"),
    ("ip6tables", "iptables"),
    ("ip6tables-restore", "iptables"),
    ("ip6tables-save", "iptables"),
    ("ls", "coreutils"),
    ("mount", "mount"),
    ("nsenter", "util-linux"),
    ("nft", "nftables"),
    ("setpriv", "util-linux"),
    ("sleep", "coreutils"),
    ("ss", "iproute2"),
    ("sysctl", "procps"),
    ("tc", "iproute2"),
    ("true", "coreutils"),
];
/// Folders of plug-ins that those programs load by themselves.
const PLUGINS: [&str; 1] = ["/usr/lib/x86_64-linux-gnu/xtables"];
/// The folders that are links on a Debian with a merged /usr.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// The archive while it is being filled.
pub(super) struct Payload {
    archive: Archive,
    /// Files of this machine whose libraries are still to be added.
    linked: BTreeSet<PathBuf>,
}

impl Payload {
    /// Begins with the skeleton of a system, `init` and the tools.
    pub(super) fn new(init: &Path) -> anyhow::Result<Self> {
        let mut archive = Archive::default();
        for folder in [
            "/dev", "/etc", "/proc", "/root", "/run", "/sys", "/tmp", "/var/lib",
        ] {
            archive.directory(folder)?;
        }
        for folder in MERGED {
            archive.directory(&format!("/usr/{folder}"))?;
            archive.symlink(&format!("/{folder}"), &format!("usr/{folder}"))?;
        }
        archive.symlink("/var/run", "/run")?;
        // The kernel opens it for PID 1 before anything is mounted.
        archive.character_device("/dev/console", 5, 1)?;
        for (path, text) in [
            (
                "/etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
            ),
            ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
            ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
            (
                "/etc/nsswitch.conf",
                "passwd: files\ngroup: files\nhosts: files\n",
            ),
        ] {
            archive.file(path, 0o644, text.as_bytes())?;
        }
        archive.symlink("/usr/bin/sh", "dash")?;
        let mut payload = Self {
            archive,
            linked: BTreeSet::new(),
        };
        payload.program("/init", init)?;
        let mut absent = BTreeSet::new();
        for (tool, package) in TOOLS {
            match find(tool) {
                Some(path) => {
                    let inside = inside(&path)?;
                    payload.program(&inside, &path)?;
                }
                None => {
                    absent.insert(package);
                }
            }
        }
        if !absent.is_empty() {
            let packages: Vec<_> = absent.into_iter().collect();
            bail!(
                "programs that the tests call are missing: apt-get install {}",
                packages.join(" ")
            );
        }
        for folder in PLUGINS {
            payload.plugins(Path::new(folder))?;
        }
        Ok(payload)
    }

    /// Adds an executable of this machine, and later its libraries.
    pub(super) fn program(&mut self, path: &str, source: &Path) -> anyhow::Result<()> {
        self.linked.insert(source.to_path_buf());
        self.archive.copy(path, source)
    }

    fn plugins(&mut self, folder: &Path) -> anyhow::Result<()> {
        for entry in
            fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?
        {
            let path = entry
                .with_context(|| format!("listing {}", folder.display()))?
                .path();
            self.program(&inside(&path)?, &path)?;
        }
        Ok(())
    }

    /// Adds the libraries, and gives the archive.
    pub(super) fn finish(mut self) -> anyhow::Result<Vec<u8>> {
        for library in libraries(&self.linked)? {
            let inside = inside(&library)?;
            if !self.archive.contains(&inside) {
                self.archive.copy(&inside, &library)?;
            }
        }
        self.archive.finish()
    }
}

/// Finds a program as a root shell would.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| {
            fs::metadata(path)
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 1 != 0)
        })
}

/// Where a file of this machine lies in the guest: at the same place, with /usr merged.
fn inside(path: &Path) -> anyhow::Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    let first = text.trim_start_matches('/').split('/').next();
    let merged = first.is_some_and(|first| MERGED.contains(&first));
    Ok(if merged {
        format!("/usr{text}")
    } else {
        text.to_owned()
    })
}

/// What the dynamic linker would load for all of `files`.
fn libraries(files: &BTreeSet<PathBuf>) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for file in files {
        // It fails for a static program, which needs nothing.
        let output = Command::new("ldd")
            .arg(file)
            .env("LC_ALL", "C")
            .output()
            .context("ldd")?;
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text.lines() {
            if line.contains("not found") {
                bail!("{} lacks a library: {}", file.display(), line.trim());
            }
            let target = line.split_once("=> ").map_or(line, |(_, target)| target);
            if let Some(path) = target.split_whitespace().next()
                && path.starts_with('/')
                && !path.ends_with(':')
            {
                found.insert(PathBuf::from(path));
            }
        }
    }
    Ok(found)
}

/// A copy of `program` without what only a debugger needs: half the size, half the time to boot.
pub(super) fn stripped(program: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let name = program.file_name().context("a program has a name")?;
    let target = folder.join(name);
    command::run(
        Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(&target)
            .arg(program),
    )
    .context("package binutils")?;
    Ok(target)
}
