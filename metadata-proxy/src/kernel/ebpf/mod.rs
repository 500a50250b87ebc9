//! The real kernel: loads the embedded object, keeps its maps pinned, attaches and detaches.

mod abi;
mod attach;
mod lookups;
mod mend;
mod tenant_map;

use std::{
    collections::BTreeMap,
    os::fd::{BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, MapError, PerCpuArray},
    programs::{SchedClassifier, TcAttachType, TestRun as _, TestRunOptions, tc},
    util::KernelVersion,
};
use metadata_proxy_common::{Outcome, names};
use tracing::{debug, info};

use self::{
    lookups::Lookups,
    tenant_map::{Entry, Key, TenantMap, Value},
};
use super::{
    AttachType, Attachment, Declared, Device, GracePeriods, Kernel, KernelError, NetnsCookie,
    Repair, adopt,
};
use crate::{identity::Tenant, netlink};

/// The kernel programs, built by the build script.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/metadata-proxy.bpf.o"));

/// First kernel with TCX links.
const TCX_SINCE: KernelVersion = KernelVersion::new(6, 6, 0);

/// The hooks on the cgroup, in the order in which they are attached: an address is only rewritten
/// once it can be restored.
const CGROUP_HOOKS: [&str; 4] = [
    names::GETPEERNAME4,
    names::GETPEERNAME6,
    names::CONNECT4,
    names::CONNECT6,
];

/// What the programs are loaded with.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Directory on a bpffs for pinned maps and links.
    pub bpffs_dir: PathBuf,
    /// Port of the listeners.
    pub listener_port: u16,
    /// Whether listeners are IPv4-only, on a kernel without IPv6.
    pub listener_v4_only: bool,
    /// Places in `TENANTS`.
    pub max_tenants: u32,
    /// Whether grace periods are made short while a device is attached to.
    pub rcu_expedited: bool,
    /// Whether the programs write debug lines.
    pub debug_log: bool,
}

/// What one program costs the kernel.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ProgramSize {
    /// The program's name.
    pub name: String,
    /// Instructions the verifier walked.
    pub verified_instructions: Option<u32>,
    /// Memory the kernel locked for it, bytes.
    pub memory_bytes: Option<u32>,
}

/// What [`EbpfKernel::run_steer`] saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteerRun {
    /// What the program returned: a `TC_ACT_*` value.
    pub verdict: i32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// Mean time of one run.
    pub per_run: std::time::Duration,
}

/// The kernel programs, loaded.
pub struct EbpfKernel {
    options: KernelOptions,
    attach_type: AttachType,
    grace_periods: GracePeriods,
    programs: Mutex<Ebpf>,
    tenants: TenantMap,
    outcomes: PerCpuArray<MapData, u64>,
    /// The same maps once more, to be pinned again.
    pins: [(PathBuf, MapData); 2],
    /// The directory of pins as it was when the maps' were all there.
    maps_whole: Mutex<Option<mend::Stamp>>,
    /// The same of the links'.
    links_whole: Mutex<Option<mend::Stamp>>,
    /// `steer`'s number in the kernel.
    steer_id: u32,
    /// `steer`'s links, by namespace and index of the device. Held, so that a pin that somebody
    /// removes detaches nothing.
    links: Mutex<BTreeMap<(NetnsCookie, u32), OwnedFd>>,
    /// Which of them was looked at last.
    seen: Mutex<(NetnsCookie, u32)>,
    /// How many turns of looking at hooks there were.
    hook_turn: AtomicUsize,
    /// Where the hooks are attached, if they are.
    cgroup: Mutex<Option<PathBuf>>,
    /// The fallback engine's programs.
    lookups: Lookups,
}

impl EbpfKernel {
    /// Loads programs and maps; takes over maps an earlier process left, if they fit.
    ///
    /// # Errors
    /// [`KernelError::Load`] with the verifier's words, or [`KernelError::File`].
    pub fn load(options: KernelOptions) -> Result<Self, KernelError> {
        abi::check(OBJECT)?;
        super::mounts::ensure_bpffs(&options.bpffs_dir)?;
        let tenants_pin = options.bpffs_dir.join(names::TENANTS);
        let outcomes_pin = options.bpffs_dir.join(names::OUTCOMES);
        adopt::remove_other_layouts(&options.bpffs_dir, &[&tenants_pin, &outcomes_pin])?;
        adopt::remove_unfit_map(
            &tenants_pin,
            size_of::<Key>(),
            size_of::<Value>(),
            options.max_tenants,
        )?;
        adopt::remove_unfit_map(
            &outcomes_pin,
            size_of::<u32>(),
            size_of::<u64>(),
            Outcome::COUNT,
        )?;

        let mut programs = loader(&options)
            .map_max_entries(names::TENANTS, options.max_tenants)
            .map_pin_path(names::TENANTS, &tenants_pin)
            .map_pin_path(names::OUTCOMES, &outcomes_pin)
            .load(OBJECT)
            .map_err(|e| KernelError::Load(chain(&e)))?;
        if options.debug_log {
            super::logger::start(&mut programs);
        }
        adopt::mark_layout(&options.bpffs_dir)?;
        let tenants = take_map(&mut programs, names::TENANTS)?;
        let tenants = TenantMap::new(tenants, options.max_tenants);
        let outcomes = take_map(&mut programs, names::OUTCOMES)?;
        let steer: &mut SchedClassifier = program(&mut programs, names::STEER)?;
        steer.load().map_err(|e| KernelError::Load(chain(&e)))?;
        let steer_id = steer.info().map_err(|e| KernelError::Load(chain(&e)))?.id();
        let pins = mend::pinned([tenants_pin, outcomes_pin])?;
        let attach_type = match KernelVersion::current() {
            Ok(version) if version >= TCX_SINCE => AttachType::Tcx,
            _ => AttachType::Clsact,
        };
        let grace_periods =
            GracePeriods::open(options.rcu_expedited && attach_type == AttachType::Tcx);
        Ok(Self {
            options,
            attach_type,
            grace_periods,
            programs: Mutex::new(programs),
            tenants,
            outcomes,
            pins,
            maps_whole: Mutex::default(),
            links_whole: Mutex::default(),
            steer_id,
            links: Mutex::default(),
            seen: Mutex::new((NetnsCookie(0), 0)),
            hook_turn: AtomicUsize::default(),
            cgroup: Mutex::default(),
            lookups: Lookups::default(),
        })
    }

    /// How devices are attached to on this kernel.
    #[must_use]
    pub const fn attach_type(&self) -> AttachType {
        self.attach_type
    }

    /// Removes everything of ours from bpffs, which detaches the cgroup hooks. The map of tenants
    /// stays while somebody else's declarations are in it: they are served again after a start.
    pub fn remove_pins(&self) {
        for name in CGROUP_HOOKS {
            adopt::unpin(&self.cgroup_pin(name));
        }
        adopt::unpin(&self.options.bpffs_dir.join(names::OUTCOMES));
        // If that cannot be told, nothing of anybody's is lost.
        let has_foreign = |entries: Vec<Entry>| entries.iter().any(|entry| !entry.is_of_agent);
        if self.tenants.entries().map_or(true, has_foreign) {
            info!("the map of tenants stays: it holds declarations of others");
            return;
        }
        adopt::unpin(&self.options.bpffs_dir.join(names::TENANTS));
        adopt::remove_layout_marks(&self.options.bpffs_dir);
        if let Err(error) = std::fs::remove_dir(&self.options.bpffs_dir) {
            debug!(%error, dir = %self.options.bpffs_dir.display(), "left the bpffs directory");
        }
    }

    /// Removes links that an earlier process pinned for namespaces that are no tenants any more.
    pub fn remove_orphans(&self, is_tenant: impl Fn(NetnsCookie) -> bool) {
        adopt::remove_orphan_links(&self.options.bpffs_dir, is_tenant);
    }

    /// Forgets declarations that an earlier process of ours left for namespaces that are gone, and
    /// says how many. Declarations written by others are left alone.
    ///
    /// # Errors
    /// [`KernelError::Tenants`].
    pub fn remove_stale_declarations(
        &self,
        is_tenant: impl Fn(NetnsCookie) -> bool,
    ) -> Result<usize, KernelError> {
        let mut stale = self.tenants.entries()?;
        stale.retain(|entry| entry.is_of_agent && !is_tenant(entry.cookie));
        stale
            .iter()
            .try_for_each(|entry| self.tenants.withdraw(entry.cookie))?;
        Ok(stale.len())
    }

    /// What each loaded program costs.
    #[must_use]
    pub fn program_sizes(&self) -> Vec<ProgramSize> {
        lock(&self.programs)
            .programs()
            .filter_map(|(name, program)| {
                let info = program.info().ok()?;
                Some(ProgramSize {
                    name: name.to_owned(),
                    verified_instructions: info.verified_instruction_count(),
                    memory_bytes: info.memory_locked().ok(),
                })
            })
            .collect()
    }

    /// Runs `steer` on a frame as if it had arrived on the loopback device of the calling thread's
    /// namespace, `repeat` times: for tests and measurements.
    ///
    /// # Errors
    /// [`KernelError::Load`] with what the kernel said.
    pub fn run_steer(&self, frame: &[u8], repeat: u32) -> Result<SteerRun, KernelError> {
        let mut programs = lock(&self.programs);
        let steer: &mut SchedClassifier = program(&mut programs, names::STEER)?;
        let mut out = vec![0; frame.len() + 256];
        let result = steer
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                repeat,
                ..TestRunOptions::new()
            })
            .map_err(|e| KernelError::Load(chain(&e)))?;
        out.truncate(result.data_size_out as usize);
        Ok(SteerRun {
            verdict: result.return_value.cast_signed(),
            frame: out,
            per_run: result.duration,
        })
    }
}

impl Kernel for EbpfKernel {
    fn attach(&self, cookie: NetnsCookie, device: &Device) -> Result<Attachment, KernelError> {
        let made_clsact = match self.attach_type {
            AttachType::Tcx => self.attach_tcx(cookie, device).map(|()| false)?,
            AttachType::Clsact => self.attach_clsact(device)?,
        };
        Ok(Attachment {
            device: device.clone(),
            attach_type: self.attach_type,
            made_clsact,
        })
    }

    fn is_attached(&self, attachment: &Attachment) -> Result<bool, KernelError> {
        let device = &attachment.device;
        let error = |reason: String| KernelError::Attach {
            device: device.name.clone(),
            reason,
        };
        match attachment.attach_type {
            AttachType::Tcx => {
                let (_, programs) = SchedClassifier::query_tcx(&device.name, TcAttachType::Ingress)
                    .map_err(|e| error(chain(&e)))?;
                Ok(programs.iter().any(|program| program.id() == self.steer_id))
            }
            AttachType::Clsact => {
                netlink::has_filter(device.index, names::STEER).map_err(|e| error(e.to_string()))
            }
        }
    }

    fn lost_links(&self, shares: usize) -> Vec<NetnsCookie> {
        self.find_lost_links(shares)
    }

    fn mend(&self) -> Result<Vec<Repair>, KernelError> {
        self.mend_shared()
    }

    fn mend_pins(&self) -> Result<usize, KernelError> {
        self.mend_link_pins()
    }

    fn detach(&self, cookie: NetnsCookie, attachment: &Attachment) -> Result<(), KernelError> {
        let device = &attachment.device;
        match attachment.attach_type {
            AttachType::Tcx => {
                let link = lock(&self.links).remove(&(cookie, device.index));
                let _short = self.grace_periods.expedite();
                adopt::detach(link, &self.link_pin(cookie, device.index));
            }
            AttachType::Clsact => {
                // Gone with its device, or deleted by somebody else: either way it is off.
                if let Err(reason) =
                    tc::qdisc_detach_program(&device.name, TcAttachType::Ingress, names::STEER)
                {
                    debug!(device = device.name, %reason, "no filter of ours to detach");
                }
                if attachment.made_clsact && netlink::has_no_filters(device.index).unwrap_or(false)
                {
                    netlink::delete_clsact(device.index).map_err(|e| KernelError::Detach {
                        device: device.name.clone(),
                        reason: e.to_string(),
                    })?;
                }
            }
        }
        Ok(())
    }

    fn forget(&self, cookie: NetnsCookie) {
        let mut links = lock(&self.links);
        let of_cookie: Vec<_> = links
            .range((cookie, 0)..=(cookie, u32::MAX))
            .map(|((_, index), _)| *index)
            .collect();
        for index in of_cookie {
            links.remove(&(cookie, index));
            adopt::unpin(&self.link_pin(cookie, index));
        }
        drop(links);
        self.lookups.detach(cookie);
    }

    fn attach_lookup(
        &self,
        cookie: NetnsCookie,
        listener: BorrowedFd<'_>,
    ) -> Result<(), KernelError> {
        self.lookups.attach(&self.options, cookie, listener)
    }

    fn declare(&self, cookie: NetnsCookie, tenant: Tenant) -> Result<(), KernelError> {
        self.tenants.declare(cookie, tenant)
    }

    fn withdraw(&self, cookie: NetnsCookie) -> Result<(), KernelError> {
        self.tenants.withdraw(cookie)
    }

    fn tenant(&self, cookie: NetnsCookie) -> Result<Option<Tenant>, KernelError> {
        self.tenants.tenant(cookie)
    }

    fn declared(&self, tell: &mut dyn FnMut(NetnsCookie, Declared)) -> Result<(), KernelError> {
        self.tenants.for_each(|entry| {
            if let Some(tenant) = entry.tenant {
                let by_agent = entry.is_of_agent;
                tell(entry.cookie, Declared { tenant, by_agent });
            }
        })
    }

    fn outcomes(&self) -> Result<Vec<(Outcome, u64)>, KernelError> {
        Outcome::ALL
            .iter()
            .map(|outcome| {
                let per_cpu = self
                    .outcomes
                    .get(&outcome.index(), 0)
                    .map_err(|e| KernelError::Load(chain(&e)))?;
                Ok((*outcome, per_cpu.iter().sum()))
            })
            .collect()
    }
}

/// A loader of the object, which borrows the values of its globals for the rest of the process: a few bytes
/// for each kernel that is loaded.
fn loader(options: &KernelOptions) -> EbpfLoader<'static> {
    let port: &'static u16 = Box::leak(Box::new(options.listener_port));
    let flag = |is_set: bool| -> &'static u8 { if is_set { &1 } else { &0 } };
    let mut loader = EbpfLoader::new();
    loader
        // The programs ask for no type of the kernel's, which the loader has read all the same: megabytes.
        .btf(None)
        .override_global(names::LISTENER_PORT, port, true)
        .override_global(
            names::LISTENER_V4_ONLY,
            flag(options.listener_v4_only),
            true,
        )
        .override_global(names::DEBUG_LOG, flag(options.debug_log), true);
    loader
}

fn take_map<M: TryFrom<aya::maps::Map, Error = MapError>>(
    programs: &mut Ebpf,
    name: &str,
) -> Result<M, KernelError> {
    let map = programs
        .take_map(name)
        .ok_or_else(|| KernelError::Load(format!("the object has no map {name}")))?;
    M::try_from(map).map_err(|e| KernelError::Load(format!("map {name}: {}", chain(&e))))
}

fn program<'a, P>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    programs
        .program_mut(name)
        .ok_or_else(|| KernelError::Load(format!("the object has no program {name}")))?
        .try_into()
        .map_err(|e| KernelError::Load(format!("program {name}: {}", chain(&e))))
}

/// An error with what caused it, in one line: aya's own messages leave the cause out.
pub(in crate::kernel) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these; if it did, the maps would still be whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
