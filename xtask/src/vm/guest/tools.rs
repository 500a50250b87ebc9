//! Programs that make and serve the test guests, unpacked from Debian packages, not installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::vm::apt::{Apt, Suite};

const PACKAGES: [&str; 3] = ["debootstrap", "dnsmasq-base", "radvd"];
const SUITES: [Suite; 2] = [
    Suite::Archive("bookworm"),
    Suite::Security("bookworm-security"),
];

/// A folder with the tools in it.
pub(super) struct Tools {
    root: PathBuf,
}

impl Tools {
    pub(super) fn fetch(cache: &Path) -> anyhow::Result<Self> {
        let root = cache.join("tools");
        if !root.exists() {
            let apt = Apt::open(&cache.join("apt-tools"), &SUITES)?;
            apt.unpack(&apt.missing(&PACKAGES)?, &root)?;
        }
        Ok(Self { root })
    }

    /// The path of `program`, and what has to be in its environment.
    pub(super) fn program(&self, program: &str) -> PathBuf {
        self.root.join("usr/sbin").join(program)
    }

    /// Lets `command` find the tools' libraries and scripts.
    pub(super) fn equip(&self, command: &mut Command) {
        let folders = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        let libraries = folders.map(|folder| self.root.join(folder).display().to_string());
        command
            .env("LD_LIBRARY_PATH", libraries.join(":"))
            .env("DEBOOTSTRAP_DIR", self.root.join("usr/share/debootstrap"));
    }
}
