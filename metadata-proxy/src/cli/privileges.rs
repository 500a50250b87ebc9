//! Which capabilities this process has, and which the agent cannot do without.

use std::{fmt, fs, io};

use crate::config::{Config, EngineChoice};

/// A capability, by its number (source: include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Binds ports below 1024.
    NetBindService = 10,
    /// Changes routes, attaches programs, marks sockets.
    NetAdmin = 12,
    /// Enters namespaces and mounts.
    SysAdmin = 21,
    /// Loads programs and makes maps.
    Bpf = 39,
}

impl Capability {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetBindService => "CAP_NET_BIND_SERVICE",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// The effective capabilities of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Those of this process.
    ///
    /// # Errors
    /// If `/proc/self/status` cannot be read, or does not tell.
    pub fn effective() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        Self::from_status(&status)
            .ok_or_else(|| io::Error::other("/proc/self/status has no CapEff line"))
    }

    /// Those that a `status` file of /proc tells.
    #[must_use]
    pub fn from_status(status: &str) -> Option<Self> {
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(mask.trim(), 16).ok().map(Self)
    }

    /// Whether a capability is among them.
    #[must_use]
    pub const fn have(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u8) != 0
    }

    /// What the agent needs under this configuration and this process lacks.
    #[must_use]
    pub fn lacking(self, config: &Config) -> Vec<Lack> {
        let steering = &config.steering;
        let uses_bpf = steering.engine != EngineChoice::Bind || steering.connect_hooks;
        let needs = [
            (
                Capability::SysAdmin,
                true,
                "to enter tenant namespaces and to mount bpffs",
            ),
            (
                Capability::NetAdmin,
                true,
                "to attach programs and to add local routes",
            ),
            // The kernel takes CAP_SYS_ADMIN for it (`bpf_capable`).
            (
                Capability::Bpf,
                uses_bpf && !self.have(Capability::SysAdmin),
                "to load the kernel programs",
            ),
            (
                Capability::NetBindService,
                config.listener.port < 1024,
                "to bind a listener.port below 1024",
            ),
        ];
        needs
            .into_iter()
            .filter(|(capability, needed, _)| *needed && !self.have(*capability))
            .map(|(capability, _, purpose)| Lack {
                capability,
                purpose,
            })
            .collect()
    }
}

/// A capability that is needed and missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lack {
    /// Which.
    pub capability: Capability,
    /// What it is needed for.
    pub purpose: &'static str,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.capability.name(), self.purpose)
    }
}

/// Lists what is lacking, for people.
#[must_use]
pub fn list(lacking: &[Lack]) -> String {
    lacking
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(capabilities: &[Capability]) -> Capabilities {
        Capabilities(
            capabilities
                .iter()
                .fold(0, |mask, capability| mask | 1 << *capability as u8),
        )
    }

    fn lacking(capabilities: &[Capability], config: &Config) -> Vec<Capability> {
        with(capabilities)
            .lacking(config)
            .into_iter()
            .map(|lack| lack.capability)
            .collect()
    }

    #[test]
    fn the_mask_of_proc_is_decoded() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000201000\n";
        let capabilities = Capabilities::from_status(status).unwrap();
        assert_eq!(
            capabilities,
            with(&[Capability::NetAdmin, Capability::SysAdmin])
        );
        assert_eq!(Capabilities::from_status("Name:\tx\n"), None);
    }

    #[test]
    fn what_is_lacking_depends_on_the_configuration() {
        use Capability::{Bpf, NetAdmin, NetBindService, SysAdmin};
        let mut config = Config::default();
        assert_eq!(lacking(&[], &config), [SysAdmin, NetAdmin, Bpf]);
        assert_eq!(lacking(&[SysAdmin], &config), [NetAdmin]);
        assert_eq!(lacking(&[SysAdmin, NetAdmin], &config), []);
        config.listener.port = 80;
        assert_eq!(lacking(&[SysAdmin, NetAdmin], &config), [NetBindService]);
        config.steering.engine = EngineChoice::Bind;
        config.steering.connect_hooks = false;
        assert_eq!(lacking(&[NetAdmin], &config), [SysAdmin, NetBindService]);
    }
}
