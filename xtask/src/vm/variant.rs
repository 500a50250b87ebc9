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
    /// The kernel keeps its secrets, and its integrity, from root too.
    Lockdown,
    /// The agent without one capability after the other, all in one guest.
    Capabilities,
}

/// A capability that some part of the agent may need.
pub(super) struct Capability {
    /// Its name in `linux/capability.h`, without `CAP_`.
    pub(super) name: &'static str,
    /// Its number there.
    pub(super) number: u32,
}

/// Those that the agent needs and those that one might think it needs.
pub(super) const CAPABILITIES: [Capability; 9] = [
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

/// All but the plain one.
const ALL: [Variant; 6] = [
    Variant::JitHarden,
    Variant::UnprivilegedBpfOff,
    Variant::HybridCgroups,
    Variant::NoBpffs,
    Variant::Lockdown,
    Variant::Capabilities,
];

/// Programs of the suite, with those of their modules that are meant.
type Programs = &'static [(&'static str, &'static [&'static str])];
/// Programs that start every engine and serve by it, which is for every condition.
const ALWAYS: [&str; 2] = ["agent", "engines"];
/// Modules of a program: none named are all.
const ALL_OF_IT: &[&str] = &[];

impl Variant {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::JitHarden => "jit-harden",
            Self::UnprivilegedBpfOff => "unprivileged-bpf-off",
            Self::HybridCgroups => "hybrid-cgroups",
            Self::NoBpffs => "no-bpffs",
            Self::Lockdown => "lockdown",
            Self::Capabilities => "capabilities",
        }
    }

    /// What the kernel is told beyond what a plain guest's is.
    pub(super) fn kernel_parameters(self) -> &'static str {
        match self {
            Self::Lockdown => " lockdown=confidentiality",
            _ => "",
        }
    }

    /// Whether what a program of the suite tests can come out otherwise under this condition, and which of
    /// its functions, by the modules they are in; none named are all. The rest is as on the plain
    /// guest of the same kernel, and takes minutes in each.
    pub(super) fn bears_on(self, program: &str) -> Option<&'static [&'static str]> {
        match self.suite() {
            None => Some(ALL_OF_IT),
            Some(_) if ALWAYS.contains(&program) => Some(ALL_OF_IT),
            Some(suite) => suite
                .iter()
                .find(|(name, _)| *name == program)
                .map(|(_, modules)| *modules),
        }
    }

    /// The programs beside [`ALWAYS`], with their modules; `None` is everything.
    fn suite(self) -> Option<Programs> {
        let programs: Programs = match self {
            Self::Plain | Self::Capabilities => return None,
            // What the kernel made of our programs: each of them sees every kind of frame and socket.
            Self::JitHarden => &[
                ("facts", ALL_OF_IT),
                ("steer", ALL_OF_IT),
                ("steering", ALL_OF_IT),
            ],
            // Who may call bpf(2), and when: at the start, in repairs, with few capabilities left.
            Self::UnprivilegedBpfOff => &[
                ("facts", ALL_OF_IT),
                ("tenant_map", ALL_OF_IT),
                ("lifecycle", &["confined", "repair", "restart"]),
            ],
            // Where the hooks of processes are attached, found again and removed.
            Self::HybridCgroups => &[
                ("steering", &["processes"]),
                ("lifecycle", &["drain", "restart", "takeover"]),
            ],
            // Where pins are kept, found again and removed.
            Self::NoBpffs => &[
                ("tenant_map", ALL_OF_IT),
                (
                    "lifecycle",
                    &["drain", "map", "repair", "restart", "takeover"],
                ),
            ],
            // What the kernel lets be loaded, and be read of itself.
            Self::Lockdown => &[
                ("facts", ALL_OF_IT),
                ("steer", ALL_OF_IT),
                ("tenant_map", ALL_OF_IT),
                ("lifecycle", &["confined", "restart"]),
            ],
        };
        Some(programs)
    }

    /// The variants a user named; `all` stands for every one but `plain`.
    pub(super) fn parse(names: &[String]) -> anyhow::Result<Vec<Self>> {
        let mut chosen = Vec::new();
        for name in names {
            if name == "all" {
                chosen.extend(ALL);
                continue;
            }
            let found = ALL
                .into_iter()
                .chain([Self::Plain])
                .find(|known| known.name() == name);
            chosen.push(found.with_context(|| {
                let names = ALL.map(Self::name).join(", ");
                format!("there is no variant {name}; known are all, plain, {names}")
            })?);
        }
        Ok(chosen)
    }

    /// Changes a plain guest's manifest.
    pub(super) fn apply(self, manifest: &mut Manifest) {
        manifest.environment.insert(
            "METADATA_PROXY_VM_VARIANT".to_owned(),
            self.name().to_owned(),
        );
        let mut sysctl = |name: &str, value: &str| {
            manifest
                .sysctls
                .insert(PathBuf::from(name), value.to_owned());
        };
        match self {
            // The tests run without capabilities, the guest has them all.
            Self::Plain | Self::Lockdown | Self::Capabilities => {}
            Self::JitHarden => sysctl("net/core/bpf_jit_harden", "2"),
            Self::UnprivilegedBpfOff => sysctl("kernel/unprivileged_bpf_disabled", "1"),
            Self::HybridCgroups => manifest.cgroups = Cgroups::Hybrid,
            Self::NoBpffs => manifest.bpffs = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace;

    /// A name that nothing has would be a test that never runs.
    #[test]
    fn what_a_variant_bears_on_is_there() {
        let crates = ["tests/tests", "tests/init/tests", "metadata-proxy/tests"];
        let is_there = |path: &str| {
            let mut crates = crates.iter();
            crates.any(|its| workspace::root().join(its).join(path).exists())
        };
        let chosen = ALL
            .into_iter()
            .filter_map(Variant::suite)
            .flatten()
            .copied();
        let always = ALWAYS.map(|program| (program, ALL_OF_IT));
        for (program, modules) in chosen.chain(always) {
            let main = if modules.is_empty() && is_there(&format!("{program}.rs")) {
                format!("{program}.rs")
            } else {
                format!("{program}/main.rs")
            };
            assert!(is_there(&main), "{program}");
            for module in modules {
                assert!(
                    is_there(&format!("{program}/{module}.rs")),
                    "{program} {module}"
                );
            }
        }
    }

    #[test]
    fn every_variant_is_found_by_its_name_and_all_names_them_all() {
        for variant in ALL {
            assert_eq!(
                Variant::parse(&[variant.name().into()]).expect("known"),
                [variant]
            );
        }
        assert_eq!(Variant::parse(&["all".into()]).expect("all"), ALL);
        assert!(Variant::parse(&["locked-up".into()]).is_err());
    }
}
