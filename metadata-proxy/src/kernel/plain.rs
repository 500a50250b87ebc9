//! No kernel programs at all: for a node that allows none, with the `bind` engine.
//!
//! What `TENANTS` holds elsewhere is held here, so the proof of identity is the same.

use std::{
    collections::HashMap,
    os::fd::BorrowedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use metadata_proxy_common::Outcome;

use super::{Attachment, Declared, Device, Kernel, KernelError, NetnsCookie, Repair};
use crate::identity::Tenant;

/// A kernel that is asked for nothing.
#[derive(Default)]
pub struct PlainKernel {
    tenants: Mutex<HashMap<NetnsCookie, Tenant>>,
}

impl PlainKernel {
    fn tenants(&self) -> MutexGuard<'_, HashMap<NetnsCookie, Tenant>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing can be attached; the `bind` engine never asks for it.
fn nothing_to_attach(device: &str) -> KernelError {
    KernelError::Attach {
        device: device.to_owned(),
        reason: "no kernel programs are loaded".to_owned(),
    }
}

impl Kernel for PlainKernel {
    fn attach(&self, _: NetnsCookie, device: &Device) -> Result<Attachment, KernelError> {
        Err(nothing_to_attach(&device.name))
    }

    fn is_attached(&self, _: &Attachment) -> Result<bool, KernelError> {
        Ok(false)
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

    fn detach(&self, _: NetnsCookie, _: &Attachment) -> Result<(), KernelError> {
        Ok(())
    }

    fn forget(&self, _: NetnsCookie) {}

    fn attach_lookup(&self, _: NetnsCookie, _: BorrowedFd<'_>) -> Result<(), KernelError> {
        Err(nothing_to_attach("socket lookup"))
    }

    fn declare(&self, cookie: NetnsCookie, tenant: Tenant) -> Result<(), KernelError> {
        self.tenants().insert(cookie, tenant);
        Ok(())
    }

    fn withdraw(&self, cookie: NetnsCookie) -> Result<(), KernelError> {
        self.tenants().remove(&cookie);
        Ok(())
    }

    fn tenant(&self, cookie: NetnsCookie) -> Result<Option<Tenant>, KernelError> {
        Ok(self.tenants().get(&cookie).copied())
    }

    fn declared(&self, tell: &mut dyn FnMut(NetnsCookie, Declared)) -> Result<(), KernelError> {
        for (cookie, tenant) in self.tenants().iter() {
            let declared = Declared {
                tenant: *tenant,
                by_agent: true,
            };
            tell(*cookie, declared);
        }
        Ok(())
    }

    fn outcomes(&self) -> Result<Vec<(Outcome, u64)>, KernelError> {
        Ok(Vec::new())
    }
}
