//! What a kernel offers: asked for, never tried out on anything that stays.
//!
//! Programs and maps made here are gone when the question is answered; nothing is attached,
//! mounted, pinned or written.

use std::{fmt, fs, io, path::Path, str::FromStr};

use aya::{
    programs::ProgramType,
    sys::{SyscallError, is_program_supported},
};
use nix::sys::utsname::uname;

use crate::listener;

/// The answer to whether a node has something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It has.
    Yes,
    /// It has not; what says so.
    No(String),
    /// It could not be found out; why.
    Unknown(String),
}

impl Probe {
    /// Whether it is there for certain, and if not, why.
    pub(crate) fn as_result(&self) -> Result<(), String> {
        match self {
            Self::Yes => Ok(()),
            Self::No(why) | Self::Unknown(why) => Err(why.clone()),
        }
    }
}

/// A kernel's release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRelease {
    text: String,
    major: u32,
    minor: u32,
}

impl KernelRelease {
    /// Whether it is this version or a later one.
    #[must_use]
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

impl FromStr for KernelRelease {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok(Self {
                text: text.to_owned(),
                major,
                minor,
            }),
            _ => Err(io::Error::other(format!(
                "{text:?} is no release of a kernel"
            ))),
        }
    }
}

impl fmt::Display for KernelRelease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What the choice of an engine rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineFacts {
    /// The kernel's release.
    pub kernel: KernelRelease,
    /// Whether a socket tells the cookie of its namespace (5.14).
    pub netns_cookie: Probe,
    /// Whether TC programs may be loaded.
    pub bpf_tc: Probe,
    /// Whether socket lookup programs may be loaded (5.9).
    pub bpf_sk_lookup: Probe,
    /// Whether connect hooks may be loaded.
    pub bpf_connect: Probe,
    /// Whether the clsact qdisc and BPF classifiers are there, or modules that bring them.
    pub clsact: Probe,
}

impl EngineFacts {
    /// Asks this node.
    ///
    /// # Errors
    /// If the kernel does not even say which release it is.
    pub fn ask() -> io::Result<Self> {
        let release = uname()?.release().to_string_lossy().into_owned();
        let modules = Path::new("/lib/modules").join(&release);
        Ok(Self {
            kernel: release.parse()?,
            netns_cookie: netns_cookie(),
            bpf_tc: program(ProgramType::SchedClassifier),
            bpf_sk_lookup: program(ProgramType::SkLookup),
            bpf_connect: program(ProgramType::CgroupSockAddr),
            clsact: clsact(&modules, Path::new("/sys/module")),
        })
    }
}

/// Asks a fresh socket for the cookie of its namespace.
fn netns_cookie() -> Probe {
    match listener::netns_cookie() {
        Ok(_) => Probe::Yes,
        Err(error) => Probe::No(error.to_string()),
    }
}

/// Whether the kernel loads programs of a type: a program of two instructions is loaded and let go.
fn program(kind: ProgramType) -> Probe {
    match is_program_supported(kind) {
        Ok(true) => Probe::Yes,
        Ok(false) => Probe::No(format!("this kernel has no programs of type {kind:?}")),
        Err(aya::programs::ProgramError::SyscallError(SyscallError { io_error, .. }))
            if io_error.kind() == io::ErrorKind::PermissionDenied =>
        {
            Probe::Unknown(String::from(
                "bpf(2) is not permitted to this process (CAP_BPF or CAP_SYS_ADMIN is missing, or \
                 the kernel is locked down)",
            ))
        }
        Err(error) => Probe::No(format!(
            "loading a program of type {kind:?} failed: {error}"
        )),
    }
}

/// Looks for what TC before TCX needs, without making the kernel load it.
fn clsact(modules: &Path, loaded: &Path) -> Probe {
    let lists: Vec<_> = ["modules.builtin", "modules.dep"]
        .iter()
        .filter_map(|list| fs::read_to_string(modules.join(list)).ok())
        .collect();
    let missing: Vec<_> = ["sch_ingress", "cls_bpf"]
        .into_iter()
        .filter(|module| {
            let file = format!("/{module}.ko");
            !loaded.join(module).exists() && !lists.iter().any(|list| list.contains(&file))
        })
        .collect();
    match (&*missing, &*lists) {
        ([], _) => Probe::Yes,
        (_, []) => Probe::Unknown(format!(
            "{} does not tell whether the kernel has {}",
            modules.display(),
            missing.join(" and ")
        )),
        _ => Probe::No(format!("this kernel has no {}", missing.join(" and no "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        let release = |text: &str| text.parse::<KernelRelease>().unwrap();
        assert!(release("5.14.0-427.el9.x86_64").at_least(5, 14));
        assert!(release("6.1").at_least(5, 14));
        assert!(!release("5.9.16").at_least(5, 14));
        assert!(release("10.0.1").at_least(6, 6));
        assert!("linux".parse::<KernelRelease>().is_err());
    }

    #[test]
    fn modules_are_looked_for_where_they_would_be() {
        let root = tempfile::tempdir().unwrap();
        let (modules, loaded) = (root.path().join("modules"), root.path().join("module"));
        assert!(matches!(clsact(&modules, &loaded), Probe::Unknown(_)));

        fs::create_dir_all(&modules).unwrap();
        fs::write(
            modules.join("modules.builtin"),
            "kernel/net/sched/cls_bpf.ko\n",
        )
        .unwrap();
        assert_eq!(
            clsact(&modules, &loaded),
            Probe::No("this kernel has no sch_ingress".into())
        );

        let dep = "kernel/net/sched/sch_ingress.ko.xz: kernel/x.ko\n";
        fs::write(modules.join("modules.dep"), dep).unwrap();
        assert_eq!(clsact(&modules, &loaded), Probe::Yes);

        fs::remove_file(modules.join("modules.dep")).unwrap();
        fs::create_dir_all(loaded.join("sch_ingress")).unwrap();
        assert_eq!(clsact(&modules, &loaded), Probe::Yes);
    }
}
