//! The guest's disk: Debian 12 made by debootstrap, with cloud-init and Debian's cloud kernel,
//! as an ext4 file system in a file.
//!
//! It is made once and cached. A guest writes to a temporary overlay of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::tools::Tools;
use crate::vm::cache::Cache;
use crate::vm::command;

const MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const PACKAGES: [&str; 14] = [
    "cloud-init",
    "curl",
    "dbus",
    "ethtool",
    "initramfs-tools",
    "iproute2",
    // cloud-init runs its client before the network is up.
    "isc-dhcp-client",
    "linux-image-cloud-amd64",
    "netbase",
    "openssh-server",
    // debootstrap does not find a package by what it provides, and python3-cryptography needs it.
    "python3-cffi-backend",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
];
/// Files that a maker of images for OpenStack writes, and one of ours to spare an emulated
/// processor RSA keys and locales.
const FILES: [(&str, &str); 4] = [
    (
        "etc/cloud/cloud.cfg.d/90_image.cfg",
        "ssh_genkeytypes: [ed25519]\n\
         locale: C.UTF-8\n\
         datasource:\n  OpenStack:\n    metadata_urls:\n      - http://169.254.169.254\n      \
         - http://[fe80::a9fe:a9fe%eth0]\n",
    ),
    // Where there is no IPv4, a guest need not wait the usual minute for an address.
    (
        "etc/dhcp/dhclient.conf",
        "timeout 15;\nrequest subnet-mask, broadcast-address, routers, \
      interface-mtu, rfc3442-classless-static-routes, domain-name, domain-name-servers;\n\
      option rfc3442-classless-static-routes code 121 = array of unsigned integer 8;\n",
    ),
    ("etc/machine-id", ""),
    ("etc/hostname", "debian\n"),
];
const SIZE: &str = "1600M";

/// What a guest boots from.
pub(super) struct Image {
    pub(super) disk: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

impl Image {
    /// Takes the cached image, or makes it; that needs root and takes about two minutes.
    pub(super) fn ensure(cache: &Cache, tools: &Tools) -> anyhow::Result<Self> {
        let folder = cache.root().join("guest");
        let image = Self {
            disk: folder.join("disk.ext4"),
            kernel: folder.join("vmlinuz"),
            initrd: folder.join("initrd.img"),
        };
        let recipe = format!("{PACKAGES:?} {FILES:?} {SIZE}");
        let made_by = folder.join("recipe");
        if fs::read_to_string(&made_by).is_ok_and(|made_by| made_by == recipe) {
            return Ok(image);
        }
        let scratch =
            tempfile::tempdir_in(cache.scratch()?).context("creating a folder for the image")?;
        let root = scratch.path().join("root");
        debootstrap(tools, &root)?;
        for (path, content) in FILES {
            let path = root.join(path);
            fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        }
        command::run(
            Command::new("systemctl")
                .arg(format!("--root={}", root.display()))
                .args(["--quiet", "enable", "systemd-networkd.service"]),
        )?;
        remove_host_keys(&root)?;

        let fresh = scratch.path().join("guest");
        fs::create_dir(&fresh).context("creating the image's folder")?;
        for (prefix, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd.img")] {
            let source = only_file(&root.join("boot"), prefix)?;
            fs::copy(&source, fresh.join(name))
                .with_context(|| format!("copying {}", source.display()))?;
        }
        command::run(
            Command::new("mke2fs")
                .args(["-q", "-t", "ext4", "-O", "^has_journal", "-L", "root", "-d"])
                .arg(&root)
                .arg(fresh.join("disk.ext4"))
                .arg(SIZE),
        )?;
        fs::write(fresh.join("recipe"), recipe).context("noting how the image was made")?;
        if folder.exists() {
            fs::remove_dir_all(&folder).context("removing the old image")?;
        }
        fs::rename(&fresh, &folder).context("moving the image to the cache")?;
        Ok(image)
    }
}

/// In a mount namespace of its own, where what it mounts ends with it.
fn debootstrap(tools: &Tools, root: &Path) -> anyhow::Result<()> {
    eprintln!("making the guest's Debian: about two minutes");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--"])
        .arg(tools.program("debootstrap"))
        .args(["--variant=minbase", "--keyring", KEYRING])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg("bookworm")
        .arg(root)
        .arg(MIRROR)
        .env("LC_ALL", "C");
    tools.equip(&mut command);
    // Its own programs run in the chroot, with the chroot's libraries.
    command.env_remove("LD_LIBRARY_PATH");
    command::quiet(&mut command).context("debootstrap, which needs root")
}

/// A guest makes its own at its first boot.
fn remove_host_keys(root: &Path) -> anyhow::Result<()> {
    let folder = root.join("etc/ssh");
    for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry.context("listing host keys")?;
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            fs::remove_file(entry.path()).context("removing a host key")?;
        }
    }
    Ok(())
}

fn only_file(folder: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry.context("listing the image's kernel")?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    ensure!(
        found.len() == 1,
        "{} has {found:?} for {prefix}",
        folder.display()
    );
    found.pop().context("one file was found")
}
