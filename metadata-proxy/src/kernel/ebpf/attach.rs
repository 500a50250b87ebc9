//! Attaches `steer` to devices and the hooks to a cgroup, or adopts what is attached already.

use std::{
    fs::File,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc,
};
use metadata_proxy_common::names;

use super::{CGROUP_HOOKS, EbpfKernel, chain, lock, program};
use crate::{
    kernel::{Device, KernelError, NetnsCookie, adopt, commands},
    netlink,
};

impl EbpfKernel {
    pub(super) fn attach_tcx(
        &self,
        cookie: NetnsCookie,
        device: &Device,
    ) -> Result<(), KernelError> {
        let error = |reason: String| KernelError::Attach {
            device: device.name.clone(),
            reason,
        };
        let pin = self.link_pin(cookie, device.index);
        let _short = self.grace_periods.expedite();
        let mut programs = lock(&self.programs);
        let steer: &mut SchedClassifier = program(&mut programs, names::STEER)?;
        // A link of an earlier process is switched to this program in one step. It cannot be if its
        // device is gone, or if somebody detached it: then it is replaced.
        let adopted = PinnedLink::from_pin(&pin)
            .ok()
            .and_then(|link| FdLink::from(link).try_into().ok())
            .and_then(|link| steer.attach_to_link(link).ok());
        let was_adopted = adopted.is_some();
        let id = match adopted {
            Some(id) => id,
            None => steer
                .attach(&device.name, TcAttachType::Ingress)
                .map_err(|e| error(chain(&e)))?,
        };
        let link = steer.take_link(id).map_err(|e| error(chain(&e)))?;
        let link = FdLink::try_from(link).map_err(|e| error(chain(&e)))?;
        let number = link.info().map_err(|e| error(chain(&e)))?.id();
        let held = commands::open_link(number).map_err(|e| error(e.to_string()))?;
        if !was_adopted {
            adopt::pin_link(link, &pin)?;
        }
        lock(&self.links).insert((cookie, device.index), held);
        Ok(())
    }

    pub(super) fn attach_clsact(&self, device: &Device) -> Result<bool, KernelError> {
        let error = |reason: String| KernelError::Attach {
            device: device.name.clone(),
            reason,
        };
        let had_clsact = tc::qdisc_add_clsact(&device.name).is_err();
        // What an earlier process left under our name is ours; if nothing else was there, so was
        // the queueing discipline.
        let was_ours = tc::qdisc_detach_program(&device.name, TcAttachType::Ingress, names::STEER)
            .is_ok()
            && netlink::has_no_filters(device.index).unwrap_or(false);
        let mut programs = lock(&self.programs);
        let steer: &mut SchedClassifier = program(&mut programs, names::STEER)?;
        let id = steer
            .attach(&device.name, TcAttachType::Ingress)
            .map_err(|e| error(chain(&e)))?;
        let link = steer.take_link(id).map_err(|e| error(chain(&e)))?;
        // A classic filter stays until it is deleted by name: the link must not be dropped, which
        // would detach it from whatever namespace this thread happens to be in by then.
        std::mem::forget(link);
        Ok(!had_clsact || was_ours)
    }

    /// Attaches the connect and getpeername hooks to a cgroup and pins their links.
    ///
    /// New links are in place before those of an earlier process go, so no connect slips through.
    ///
    /// # Errors
    /// [`KernelError::Cgroup`] or [`KernelError::Load`].
    pub fn attach_cgroup_hooks(&self, cgroup: &Path) -> Result<(), KernelError> {
        let error = |reason: String| KernelError::Cgroup {
            cgroup: cgroup.to_owned(),
            reason,
        };
        *lock(&self.cgroup) = Some(cgroup.to_owned());
        let dir = File::open(cgroup).map_err(|e| error(e.to_string()))?;
        let mut programs = lock(&self.programs);
        for name in CGROUP_HOOKS {
            let hook: &mut CgroupSockAddr = program(&mut programs, name)?;
            if hook.fd().is_err() {
                hook.load().map_err(|e| KernelError::Load(chain(&e)))?;
            }
            // The only mode a link takes; links of several programs live side by side all the same.
            let link = hook
                .attach(dir.as_fd(), CgroupAttachMode::Single)
                .and_then(|id| hook.take_link(id))
                .map_err(|e| error(chain(&e)))?;
            let link = FdLink::try_from(link).map_err(|e| error(chain(&e)))?;
            adopt::pin_link(link, &self.cgroup_pin(name))?;
        }
        Ok(())
    }

    pub(super) fn link_pin(&self, cookie: NetnsCookie, ifindex: u32) -> PathBuf {
        self.options
            .bpffs_dir
            .join(adopt::link_name(cookie, ifindex))
    }

    pub(super) fn cgroup_pin(&self, name: &str) -> PathBuf {
        self.options.bpffs_dir.join(format!("link-{name}"))
    }
}
