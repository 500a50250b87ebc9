//! The map of tenants, read as a whole: more entries than are read at once, ours and others'.
//!
//! Needs root. Has a bpffs directory of its own.

#![expect(clippy::unwrap_used, reason = "what fails in a test is to panic there")]

use std::{collections::HashMap, path::PathBuf};

use metadata_proxy::{
    identity::Tenant,
    kernel::{Declared, EbpfKernel, Kernel as _, KernelOptions, NetnsCookie},
};
use metadata_proxy_common::TenantKind;
use uuid::Uuid;

/// Several times what is read at once.
const MANY: u32 = 3_000;

/// The kernel programs, without anything attached; everything is gone after the drop.
struct Loaded {
    kernel: EbpfKernel,
    dir: PathBuf,
}

impl Loaded {
    fn new() -> Self {
        let dir = PathBuf::from(format!("/sys/fs/bpf/mdp-test-map-{}", std::process::id()));
        let kernel = EbpfKernel::load(KernelOptions {
            bpffs_dir: dir.clone(),
            listener_port: 9697,
            listener_v4_only: false,
            max_tenants: MANY + 1,
            rcu_expedited: false,
            debug_log: false,
        })
        .unwrap_or_else(|error| panic!("these tests need root: {error}"));
        Self { kernel, dir }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.kernel.remove_pins();
        assert!(
            !self.dir.exists(),
            "pins are left in {}",
            self.dir.display()
        );
    }
}

fn tenant(number: u32) -> Tenant {
    Tenant {
        kind: TenantKind::Router,
        id: Uuid::from_u128(number.into()),
    }
}

/// Cookies that no namespace has.
fn cookie(number: u32) -> NetnsCookie {
    NetnsCookie(u64::MAX - u64::from(number))
}

/// What is declared; nothing may be told twice.
fn declared(kernel: &EbpfKernel) -> HashMap<NetnsCookie, Declared> {
    let mut found = HashMap::new();
    let mut tell = |cookie, declared| assert_eq!(found.insert(cookie, declared), None);
    kernel.declared(&mut tell).unwrap();
    found
}

#[test]
fn all_that_is_declared_is_read_and_nothing_twice_or_else() {
    let loaded = Loaded::new();
    let kernel = &loaded.kernel;
    assert!(declared(kernel).is_empty());
    for number in 0..MANY {
        kernel.declare(cookie(number), tenant(number)).unwrap();
    }
    let found = declared(kernel);
    assert_eq!(found.len(), MANY as usize);
    for number in 0..MANY {
        let expected = Declared {
            tenant: tenant(number),
            by_agent: true,
        };
        assert_eq!(found.get(&cookie(number)), Some(&expected));
    }
    // What of it is stale goes, and the rest stays.
    let is_tenant = |of: NetnsCookie| of == cookie(7);
    let removed = kernel.remove_stale_declarations(is_tenant).unwrap();
    assert_eq!(removed, MANY as usize - 1);
    let left: Vec<_> = declared(kernel).into_keys().collect();
    assert_eq!(left, [cookie(7)]);
}
