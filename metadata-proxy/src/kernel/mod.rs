//! Steering, seen from user space: the one small trait through which the rest of the agent talks to
//! the kernel programs, and the one module that imports `aya`.
//!
//! Whatever is above this module runs in an ordinary test against a fake of that trait.

mod adopt;
mod commands;
mod ebpf;
mod engine;
mod facts;
#[cfg(test)]
pub(crate) mod fake;
mod grace;
mod logger;
mod mounts;
mod plain;

use std::{io, path::PathBuf};

use metadata_proxy_common::Outcome;

pub use self::{
    ebpf::{EbpfKernel, KernelOptions, ProgramSize, SteerRun},
    engine::{AttachType, Decision, Engine, Refusal, choose_engine},
    facts::{EngineFacts, KernelRelease, Probe},
    grace::GracePeriods,
    mounts::Mounts,
    plain::PlainKernel,
};
use crate::identity::Tenant;
pub use crate::netns::NetnsCookie;

/// A device inside a tenant namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device {
    /// Its name when it was listed.
    pub name: String,
    /// Its index in its namespace.
    pub index: u32,
}

/// `steer` on one device; undone by [`Kernel::detach`], not by dropping it, so that a crash of the
/// process leaves a link that the next start adopts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Where.
    pub device: Device,
    /// How.
    pub attach_type: AttachType,
    /// Whether the `clsact` queueing discipline was made by us.
    pub made_clsact: bool,
}

/// An entry of the map of tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// To whom the namespace belongs.
    pub tenant: Tenant,
    /// Whether we wrote it; otherwise somebody else did.
    pub by_agent: bool,
}

/// Something of ours that somebody else took away, and that was put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Repair {
    /// The local route to the metadata address.
    Route,
    /// The IPv6 metadata address of a router's device.
    Address,
    /// `steer` on a device.
    Filter,
    /// A tenant's entry in `TENANTS`.
    Entry,
    /// A tenant's listener.
    Listener,
    /// A pinned map.
    Map,
    /// A connect hook of the cgroup.
    Hook,
    /// The directory of pins, or the bpffs it is on.
    Bpffs,
    /// The pin of `steer` on a device.
    Pin,
}

impl Repair {
    /// Every one there is.
    pub const ALL: &[Self] = &[
        Self::Route,
        Self::Address,
        Self::Filter,
        Self::Entry,
        Self::Listener,
        Self::Map,
        Self::Hook,
        Self::Bpffs,
        Self::Pin,
    ];

    /// The word for it in logs and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Address => "address",
            Self::Filter => "filter",
            Self::Entry => "entry",
            Self::Listener => "listener",
            Self::Map => "map",
            Self::Hook => "hook",
            Self::Bpffs => "bpffs",
            Self::Pin => "pin",
        }
    }
}

/// What the kernel refused, on what.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Loading the programs or maps failed.
    #[error("cannot load the kernel programs: {0}")]
    Load(String),
    /// A device could not be attached to.
    #[error("cannot attach steer to device {device}: {reason}")]
    Attach {
        /// The device's name.
        device: String,
        /// What the kernel said.
        reason: String,
    },
    /// A device could not be detached from.
    #[error("cannot detach steer from device {device}: {reason}")]
    Detach {
        /// The device's name.
        device: String,
        /// What the kernel said.
        reason: String,
    },
    /// The tenant map refused.
    #[error("the TENANTS map refused {what}: {reason}")]
    Tenants {
        /// What was to be done.
        what: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// The tenant map has no place left.
    #[error("the TENANTS map is full: raise steering.max_tenants above {max}, then restart")]
    TenantsFull {
        /// How many it holds.
        max: u32,
    },
    /// Somebody else has declared that the namespace belongs to another tenant.
    #[error(
        "somebody else has declared in the TENANTS map that this namespace belongs to {found}: \
         they are to remove that entry, or it is no namespace of {wanted}"
    )]
    TenantsTaken {
        /// The tenant that was to be declared.
        wanted: Tenant,
        /// What the map says; nothing known where the entry is none that makes sense.
        found: String,
    },
    /// The cgroup hooks could not be attached.
    #[error("cannot attach the connect hooks to cgroup {cgroup}: {reason}")]
    Cgroup {
        /// The cgroup's path.
        cgroup: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// A file under bpffs or a mount could not be made, read or removed.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What the agent asks of the kernel programs.
pub trait Kernel: Send + Sync + 'static {
    /// Attaches `steer` to a device of the namespace the calling thread is in, or adopts what an
    /// earlier process left there. Idempotent.
    ///
    /// # Errors
    /// [`KernelError::Attach`].
    fn attach(&self, cookie: NetnsCookie, device: &Device) -> Result<Attachment, KernelError>;

    /// Whether `steer` is still on the device; the calling thread is in its namespace.
    ///
    /// # Errors
    /// [`KernelError::Attach`] when the kernel cannot be asked.
    fn is_attached(&self, attachment: &Attachment) -> Result<bool, KernelError>;

    /// Looks at the next share of all links, which are as many as `shares`, and tells of which
    /// namespaces one is detached. A link that is detached makes no netlink event; a classic filter
    /// does, and is not looked at.
    fn lost_links(&self, shares: usize) -> Vec<NetnsCookie>;

    /// Puts back whatever all tenants share and somebody took away, and says what it was.
    ///
    /// # Errors
    /// [`KernelError`] of the first thing that could not be put back.
    fn mend(&self) -> Result<Vec<Repair>, KernelError>;

    /// Puts back the pins of links that somebody took away, by which a later process finds them, and
    /// says how many; takes away those of devices that are not attached to.
    ///
    /// # Errors
    /// [`KernelError::File`] of the first that could not be put back.
    fn mend_pins(&self) -> Result<usize, KernelError>;

    /// Takes `steer` off a device. The calling thread is in its namespace; the device may be gone.
    ///
    /// # Errors
    /// [`KernelError::Detach`].
    fn detach(&self, cookie: NetnsCookie, attachment: &Attachment) -> Result<(), KernelError>;

    /// Lets go of a namespace, which may be gone, from any thread: its links, if any are left, and
    /// its lookup.
    fn forget(&self, cookie: NetnsCookie);

    /// Starts the fallback engine's lookup in the calling thread's namespace for one listener.
    ///
    /// # Errors
    /// [`KernelError::Attach`].
    fn attach_lookup(
        &self,
        cookie: NetnsCookie,
        listener: std::os::fd::BorrowedFd<'_>,
    ) -> Result<(), KernelError>;

    /// Declares that a namespace belongs to a tenant. Where somebody else has declared the same, it
    /// stays theirs.
    ///
    /// # Errors
    /// [`KernelError::TenantsFull`], [`KernelError::TenantsTaken`] or [`KernelError::Tenants`].
    fn declare(&self, cookie: NetnsCookie, tenant: Tenant) -> Result<(), KernelError>;

    /// Withdraws a declaration of ours; nothing happens if there is none, or if it is somebody
    /// else's.
    ///
    /// # Errors
    /// [`KernelError::Tenants`].
    fn withdraw(&self, cookie: NetnsCookie) -> Result<(), KernelError>;

    /// The tenant a namespace belongs to, if it belongs to one.
    ///
    /// # Errors
    /// [`KernelError::Tenants`]; callers fail closed.
    fn tenant(&self, cookie: NetnsCookie) -> Result<Option<Tenant>, KernelError>;

    /// Tells all that is declared.
    ///
    /// # Errors
    /// [`KernelError::Tenants`]; what was told before it is not all.
    fn declared(&self, tell: &mut dyn FnMut(NetnsCookie, Declared)) -> Result<(), KernelError>;

    /// How packets and connects ended since the counters were made, summed over CPUs.
    ///
    /// # Errors
    /// [`KernelError::Load`] when the counters cannot be read.
    fn outcomes(&self) -> Result<Vec<(Outcome, u64)>, KernelError>;
}
