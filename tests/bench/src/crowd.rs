//! Many tenants, made once; as many of them as are wanted are shown to a proxy.
//!
//! A namespace appears to the agent as `ip netns add` makes it appear, by a file that something is
//! mounted on; here that is a namespace which is there already, with its device and its guest, so
//! that nothing but the proxy is timed.

use std::{
    fs::{self, OpenOptions},
    path::PathBuf,
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use metadata_proxy_tests::{Kind, NeutronProxy, Node, TenantFixture, neutron};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::load::Target;

/// Threads that make namespaces.
const MAKERS: usize = 2;

/// Tenants with a guest each, which no agent sees.
pub(crate) struct Crowd {
    pub(crate) tenants: Vec<TenantFixture>,
    pub(crate) targets: Vec<Target>,
}

impl Crowd {
    /// Makes so many, calling `made` now and then with how many there are.
    pub(crate) fn make(node: &Node, count: usize) -> Result<Self> {
        let share = count.div_ceil(MAKERS);
        let make = |from: usize| {
            let node = node.clone();
            move || {
                (from..count.min(from + share))
                    .map(|_| TenantFixture::new(&node, Kind::Router))
                    .collect::<Result<Vec<_>>>()
            }
        };
        let makers: Vec<_> = (0..MAKERS)
            .map(|maker| thread::spawn(make(maker * share)))
            .collect();
        let mut tenants = Vec::with_capacity(count);
        for maker in makers {
            tenants.extend(maker.join().map_err(|_| anyhow!("a thread panicked"))??);
        }
        let targets = tenants.iter().map(Target::guest).collect::<Result<_>>()?;
        Ok(Self { tenants, targets })
    }

    /// Installs the rules of Neutron's L3 agent, which its haproxy needs, for the first so many.
    pub(crate) fn install_rules(&self, tenants: std::ops::Range<usize>) -> Result<()> {
        self.tenants[tenants]
            .iter()
            .try_for_each(|tenant| neutron::install_rules(&tenant.netns, NeutronProxy::Enabled))
    }
}

/// A tenant's namespace as an agent sees it, until this is dropped.
pub(crate) struct Shown(PathBuf);

impl Shown {
    /// Shows a tenant to a node's agent.
    pub(crate) fn to(node: &Node, tenant: &TenantFixture) -> Result<Self> {
        let path = node.netns_dir().join(tenant.netns.name());
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        let shown = Self(path);
        mount(
            Some(tenant.netns.path()),
            &shown.0,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .with_context(|| format!("cannot mount a namespace on {}", shown.0.display()))?;
        Ok(shown)
    }

    /// Shows several.
    pub(crate) fn all(node: &Node, tenants: &[TenantFixture]) -> Result<Vec<Self>> {
        tenants
            .iter()
            .map(|tenant| Self::to(node, tenant))
            .collect()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}
