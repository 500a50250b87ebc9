//! Debian packages: asked for by what they bring, installed together, started by nobody.

use std::{
    env,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::Found;
use crate::{step, workspace::is_root};

/// A file that a package brings, and the package.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    probe: Probe,
    package: String,
}

/// How to see whether a package is there.
#[derive(Clone, Debug)]
enum Probe {
    /// A program on PATH or among those for root.
    Program(String),
    /// A file.
    File(PathBuf),
}

impl Wanted {
    /// A program and the package it is in.
    pub(super) fn program(program: &str, package: &str) -> Self {
        Self {
            probe: Probe::Program(program.to_owned()),
            package: package.to_owned(),
        }
    }

    /// A file and the package it is in.
    pub(super) fn file(path: impl Into<PathBuf>, package: impl Into<String>) -> Self {
        Self {
            probe: Probe::File(path.into()),
            package: package.into(),
        }
    }

    fn is_there(&self) -> bool {
        match &self.probe {
            Probe::Program(name) => find_program(name).is_some(),
            Probe::File(path) => path.exists(),
        }
    }
}

/// Programs that the demo runs, and their packages.
pub(super) const DEMO_PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("ss", "iproute2"),
    ("nsenter", "util-linux"),
    ("curl", "curl"),
];

/// Programs that the tests run, and their packages.
pub(super) const TEST_PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("ss", "iproute2"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("curl", "curl"),
    ("haproxy", "haproxy"),
    ("wrk", "wrk"),
    ("iperf3", "iperf3"),
    ("jq", "jq"),
    ("valgrind", "valgrind"),
    ("tcpdump", "tcpdump"),
    ("bpftool", "bpftool"),
    ("cloud-init", "cloud-init"),
];

/// Programs that make test guests or are copied into them, beyond those of the tests.
pub(super) const VM_PROGRAMS: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("dash", "dash"),
    ("dpkg-deb", "dpkg"),
    ("mke2fs", "e2fsprogs"),
    ("nft", "nftables"),
    ("setpriv", "util-linux"),
    ("strip", "binutils"),
    ("sysctl", "procps"),
    ("xz", "xz-utils"),
];

/// Tells cloud-init, where only tests want it, to leave the machine alone at boot.
const CLOUD_INIT_DISABLED: &str = "/etc/cloud/cloud-init.disabled";

/// Asked by Debian's packages whether they may start what they bring.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs packages; fetches the lists once, when the first is missing.
#[derive(Default)]
pub(super) struct Packages {
    updated: bool,
}

impl Packages {
    /// Makes sure that these programs are there.
    pub(super) fn ensure(&mut self, programs: &[(&str, &str)]) -> Result<Found> {
        let wanted: Vec<_> = programs
            .iter()
            .map(|(program, package)| Wanted::program(program, package))
            .collect();
        self.ensure_all(&wanted)
    }

    /// Makes sure that all of these are there.
    pub(super) fn ensure_all(&mut self, wanted: &[Wanted]) -> Result<Found> {
        let mut missing: Vec<_> = wanted
            .iter()
            .filter(|wanted| !wanted.is_there())
            .map(|wanted| wanted.package.as_str())
            .collect();
        missing.dedup();
        if missing.is_empty() {
            let mut all: Vec<_> = wanted
                .iter()
                .map(|wanted| wanted.package.as_str())
                .collect();
            all.dedup();
            return Ok(Found::Present(all.join(" ")));
        }
        let names = missing.join(" ");
        let command = format!("apt-get install --no-install-recommends {names}");
        if find_program("apt-get").is_none() {
            return Ok(Found::Needed(format!("install what Debian calls {names}")));
        }
        if !is_root() {
            return Ok(Found::Needed(format!("run as root: {command}")));
        }
        self.install(&missing)?;
        if let Some(lacking) = wanted.iter().find(|wanted| !wanted.is_there()) {
            let why = format!("{} does not bring {:?}", lacking.package, lacking.probe);
            return Ok(Found::Needed(format!("{command} did not help: {why}")));
        }
        Ok(Found::Installed(names))
    }

    fn install(&mut self, packages: &[&str]) -> Result<()> {
        if !self.updated {
            step::run_quietly("apt-get update", Command::new("apt-get").arg("update"))?;
            self.updated = true;
        }
        if packages.contains(&"cloud-init") {
            disable_cloud_init()?;
        }
        let _nothing_starts = NothingStarts::new()?;
        step::run_quietly(
            &format!("apt-get install {}", packages.join(" ")),
            Command::new("apt-get")
                .args(["install", "--yes", "--no-install-recommends"])
                .args(packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    }
}

fn disable_cloud_init() -> Result<()> {
    let path = Path::new(CLOUD_INIT_DISABLED);
    let directory = path
        .parent()
        .context("no folder for cloud-init's settings")?;
    fs::create_dir_all(directory)
        .and_then(|()| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map(drop)
        })
        .with_context(|| format!("cannot create {CLOUD_INIT_DISABLED}"))
}

/// While it lives, no package starts a service; unless the machine has a policy of its own.
struct NothingStarts {
    ours: bool,
}

impl NothingStarts {
    fn new() -> Result<Self> {
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY);
        match created {
            Ok(mut file) => {
                let guard = Self { ours: true };
                file.write_all(b"#!/bin/sh\nexit 101\n")
                    .context("cannot write the policy")?;
                Ok(guard)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Self { ours: false }),
            Err(error) => Err(error).context("cannot keep packages from starting services"),
        }
    }
}

impl Drop for NothingStarts {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("cannot remove {POLICY}: {error}");
        }
    }
}

/// Finds a program on PATH, or where only root has its programs.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|path| {
            fs::metadata(path)
                .is_ok_and(|its| its.is_file() && its.permissions().mode() & 0o111 != 0)
        })
}
