//! Conditions under which a node may run us, each made on a guest of its own.

use std::path::PathBuf;

use anyhow::Context as _;
use metadata_proxy_vm_init::manifest::{Cgroups, Manifest};

/// Named in result tables and to the tests, as `METADATA_PROXY_VM_VARIANT`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Variant {
    /// As Debian boots.
    Plain,
    /// The JIT blinds constants, also for root.
    JitHarden,
    /// `bpf(2)` is for the privileged, and that cannot be taken back before a reboot.
    UnprivilegedBpfOff,
    /// Version 1 controllers, and version 2 at `/sys/fs/cgroup/unified`.
    HybridCgroups,
    /// Nothing at `/sys/fs/bpf`.
    NoBpffs,
    /// Tests without one capability.
    Without(Capability),
}

/// A capability that some part of the agent may need.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Capability {
    name: &'static str,
    /// Its number in `linux/capability.h`.
    number: u32,
}

const CAPABILITIES: [Capability; 9] = [
    Capability {
        name: "dac-override",
        number: 1,
    },
    Capability {
        name: "kill",
        number: 5,
    },
    Capability {
        name: "net-bind-service",
        number: 10,
    },
    Capability {
        name: "net-admin",
        number: 12,
    },
    Capability {
        name: "net-raw",
        number: 13,
    },
    Capability {
        name: "sys-ptrace",
        number: 19,
    },
    Capability {
        name: "sys-admin",
        number: 21,
    },
    Capability {
        name: "perfmon",
        number: 38,
    },
    Capability {
        name: "bpf",
        number: 39,
    },
];

impl Variant {
    /// All but the plain one.
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![
            Self::JitHarden,
            Self::UnprivilegedBpfOff,
            Self::HybridCgroups,
            Self::NoBpffs,
        ];
        all.extend(CAPABILITIES.map(Self::Without));
        all
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Plain => "plain".to_owned(),
            Self::JitHarden => "jit-harden".to_owned(),
            Self::UnprivilegedBpfOff => "unprivileged-bpf-off".to_owned(),
            Self::HybridCgroups => "hybrid-cgroups".to_owned(),
            Self::NoBpffs => "no-bpffs".to_owned(),
            Self::Without(capability) => format!("without-cap-{}", capability.name),
        }
    }

    /// The variants a user named; `all` stands for every one but `plain`.
    pub(super) fn parse(names: &[String]) -> anyhow::Result<Vec<Self>> {
        let mut chosen = Vec::new();
        for name in names {
            if name == "all" {
                chosen.extend(Self::all());
                continue;
            }
            let mut known = Self::all();
            known.push(Self::Plain);
            let found = known.iter().find(|variant| variant.name() == *name);
            chosen.push(*found.with_context(|| {
                let names: Vec<_> = known.iter().map(|variant| variant.name()).collect();
                format!(
                    "there is no variant {name}; known are all, {}",
                    names.join(", ")
                )
            })?);
        }
        Ok(chosen)
    }

    /// Changes a plain guest's manifest.
    pub(super) fn apply(self, manifest: &mut Manifest) {
        manifest
            .environment
            .insert("METADATA_PROXY_VM_VARIANT".to_owned(), self.name());
        let mut sysctl = |name: &str, value: &str| {
            manifest
                .sysctls
                .insert(PathBuf::from(name), value.to_owned());
        };
        match self {
            Self::Plain => {}
            Self::JitHarden => sysctl("net/core/bpf_jit_harden", "2"),
            Self::UnprivilegedBpfOff => sysctl("kernel/unprivileged_bpf_disabled", "1"),
            Self::HybridCgroups => manifest.cgroups = Cgroups::Hybrid,
            Self::NoBpffs => manifest.bpffs = false,
            Self::Without(capability) => manifest.without_capabilities.push(capability.number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_is_found_by_its_name_and_all_names_them_all() {
        for variant in Variant::all() {
            assert_eq!(
                Variant::parse(&[variant.name()]).expect("a known name"),
                [variant]
            );
        }
        assert_eq!(
            Variant::parse(&["all".into()]).expect("all"),
            Variant::all()
        );
        assert!(Variant::parse(&["lockdown".into()]).is_err());
    }
}
