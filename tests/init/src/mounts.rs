//! The file systems a test expects, mounted as a booted Debian has them.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use metadata_proxy_vm_init::manifest::Cgroups;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Where the kernel tells its own types, as BTF.
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// What is needed before the manifest can be read.
pub(crate) fn essential() -> anyhow::Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("tracefs", "/sys/kernel/tracing"),
        ("securityfs", "/sys/kernel/security"),
    ] {
        attach(kind, Path::new(target), None)?;
    }
    Ok(())
}

pub(crate) fn bpffs() -> anyhow::Result<()> {
    attach("bpf", Path::new("/sys/fs/bpf"), Some("mode=700"))
}

pub(crate) fn cgroups(wanted: Cgroups) -> anyhow::Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    match wanted {
        Cgroups::Unified => attach("cgroup2", root, None),
        Cgroups::Hybrid => {
            attach("tmpfs", root, Some("mode=755"))?;
            attach("cgroup2", &root.join("unified"), None)?;
            attach("cgroup", &root.join("systemd"), Some("none,name=systemd"))?;
            let text = fs::read_to_string("/proc/cgroups").context("reading /proc/cgroups")?;
            for controller in text
                .lines()
                .skip(1)
                .filter_map(|line| line.split('\t').next())
            {
                // Newer kernels list controllers that version 1 no longer has.
                if let Err(error) = attach("cgroup", &root.join(controller), Some(controller)) {
                    eprintln!("cgroup version 1 goes without {controller}: {error:#}");
                }
            }
            Ok(())
        }
    }
}

/// Puts a file with nothing in it where the kernel tells its types; they are seen again once this is dropped.
pub(crate) struct HiddenKernelTypes(());

impl HiddenKernelTypes {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let none = None::<&str>;
        mount(
            Some("/dev/null"),
            KERNEL_TYPES,
            none,
            MsFlags::MS_BIND,
            none,
        )
        .with_context(|| format!("hiding {KERNEL_TYPES}"))?;
        Ok(Self(()))
    }
}

impl Drop for HiddenKernelTypes {
    fn drop(&mut self) {
        // What somebody left may hold it open.
        if let Err(errno) = umount2(KERNEL_TYPES, MntFlags::MNT_DETACH) {
            eprintln!("{KERNEL_TYPES} stays hidden: {errno}");
        }
    }
}

fn attach(kind: &str, target: &Path, options: Option<&str>) -> anyhow::Result<()> {
    // The mount points below /sys are the kernel's; it makes what it knows of.
    if !target.exists() {
        fs::create_dir_all(target).with_context(|| format!("creating {}", target.display()))?;
    }
    mount(Some(kind), target, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("mounting {kind} at {}", target.display()))
}
