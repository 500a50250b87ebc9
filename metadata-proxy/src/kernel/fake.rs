//! A kernel for tests that need none: remembers what it was told.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::BorrowedFd,
    sync::Mutex,
};

use metadata_proxy_common::Outcome;

use super::{AttachType, Attachment, Declared, Device, Kernel, KernelError, NetnsCookie, Repair};
use crate::identity::Tenant;

/// Remembers declarations and attachments.
#[derive(Default)]
pub(crate) struct FakeKernel {
    pub(crate) tenants: Mutex<BTreeMap<NetnsCookie, Tenant>>,
    pub(crate) attached: Mutex<BTreeSet<(NetnsCookie, u32)>>,
}

impl Kernel for FakeKernel {
    fn attach(&self, cookie: NetnsCookie, device: &Device) -> Result<Attachment, KernelError> {
        self.attached.lock().unwrap().insert((cookie, device.index));
        Ok(Attachment {
            device: device.clone(),
            attach_type: AttachType::Tcx,
            made_clsact: false,
        })
    }

    fn is_attached(&self, attachment: &Attachment) -> Result<bool, KernelError> {
        let attached = self.attached.lock().unwrap();
        Ok(attached
            .iter()
            .any(|(_, index)| *index == attachment.device.index))
    }

    fn lost_links(&self, _: usize) -> Vec<NetnsCookie> {
        Vec::new()
    }

    fn mend(&self) -> Result<Vec<Repair>, KernelError> {
        Ok(Vec::new())
    }

    fn mend_pins(&self) -> Result<usize, KernelError> {
        Ok(0)
    }

    fn detach(&self, cookie: NetnsCookie, attachment: &Attachment) -> Result<(), KernelError> {
        self.attached
            .lock()
            .unwrap()
            .remove(&(cookie, attachment.device.index));
        Ok(())
    }

    fn forget(&self, cookie: NetnsCookie) {
        self.attached
            .lock()
            .unwrap()
            .retain(|(of, _)| *of != cookie);
    }

    fn attach_lookup(&self, _: NetnsCookie, _: BorrowedFd<'_>) -> Result<(), KernelError> {
        Ok(())
    }

    fn declare(&self, cookie: NetnsCookie, tenant: Tenant) -> Result<(), KernelError> {
        self.tenants.lock().unwrap().insert(cookie, tenant);
        Ok(())
    }

    fn withdraw(&self, cookie: NetnsCookie) -> Result<(), KernelError> {
        self.tenants.lock().unwrap().remove(&cookie);
        Ok(())
    }

    fn tenant(&self, cookie: NetnsCookie) -> Result<Option<Tenant>, KernelError> {
        Ok(self.tenants.lock().unwrap().get(&cookie).copied())
    }

    fn declared(&self, tell: &mut dyn FnMut(NetnsCookie, Declared)) -> Result<(), KernelError> {
        for (cookie, tenant) in self.tenants.lock().unwrap().iter() {
            let declared = Declared {
                tenant: *tenant,
                by_agent: true,
            };
            tell(*cookie, declared);
        }
        Ok(())
    }

    fn outcomes(&self) -> Result<Vec<(Outcome, u64)>, KernelError> {
        Ok(Outcome::ALL.iter().map(|outcome| (*outcome, 0)).collect())
    }
}
