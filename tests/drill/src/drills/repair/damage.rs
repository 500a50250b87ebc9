//! What somebody may take away, and how.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use metadata_proxy_tests::{
    Kind, TenantFixture, agent::bpffs_dir, process::run as run_program, tenant_map,
    tenant_map::Entry,
};
use nix::mount::{MntFlags, umount2};
use uuid::Uuid;

use super::Scene;

/// Who notices that something is gone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// The kernel tells.
    Event,
    /// Only the audit finds it.
    Audit,
}

/// One thing that somebody may do.
pub(super) struct Damage {
    pub(super) what: &'static str,
    pub(super) notice: Notice,
    /// What is counted, and that it is counted once.
    pub(super) repairs: &'static [&'static str],
    /// Whether nobody else may notice it.
    pub(super) is_of_one_tenant: bool,
    pub(super) do_it: fn(&Scene, &TenantFixture) -> Result<()>,
}

pub(super) const DAMAGE: &[Damage] = &[
    of_one(
        "a filter's link is detached",
        Notice::Audit,
        &["filter"],
        |scene, tenant| bpftool(&["link", "detach", "pinned", &scene.steer_pin(tenant)?]),
    ),
    of_one(
        "a filter's pin is removed",
        Notice::Audit,
        &["pin"],
        |scene, tenant| fs::remove_file(scene.steer_pin(tenant)?).context("cannot remove a pin"),
    ),
    of_one(
        "the local route is deleted",
        Notice::Event,
        &["route"],
        |_, tenant| ip(tenant, "route del local 169.254.169.254 dev lo table local"),
    ),
    of_one(
        "the IPv6 address is deleted",
        Notice::Event,
        &["address"],
        |_, tenant| {
            ip(
                tenant,
                &format!(
                    "addr del fe80::a9fe:a9fe/128 dev {}",
                    tenant.subnets[0].device
                ),
            )
        },
    ),
    of_one(
        "the entry in TENANTS is deleted",
        Notice::Audit,
        &["entry"],
        |scene, tenant| tenant_map::delete(&scene.node, tenant_map::cookie(&tenant.netns)?),
    ),
    of_one(
        "the entry names another tenant",
        Notice::Audit,
        &["entry"],
        |scene, tenant| {
            let other = Entry {
                kind: Kind::Network,
                id: Uuid::new_v4(),
                is_of_agent: true,
            };
            tenant_map::write(&scene.node, tenant_map::cookie(&tenant.netns)?, other)
        },
    ),
    of_one(
        "the listener is destroyed",
        Notice::Audit,
        &["listener"],
        |_, tenant| {
            let mut ss = tenant.netns.command("ss")?;
            run_program(ss.args(["-K", "-l", "-t", "-n", "sport = :9697"])).map(drop)
        },
    ),
    of_one(
        "the device is renamed, and back",
        Notice::Event,
        &[],
        |_, tenant| {
            let device = &tenant.subnets[0].device;
            ip(tenant, &format!("link set {device} down"))?;
            ip(tenant, &format!("link set {device} name stray"))?;
            ip(tenant, "link set stray up")?;
            ip(tenant, "link set stray down")?;
            ip(tenant, &format!("link set stray name {device}"))?;
            ip(tenant, &format!("link set {device} up"))?;
            // With the device, the kernel took its IPv6 addresses down.
            ip(
                tenant,
                &format!("addr replace fe80::f816:3eff:fe00:1/64 dev {device} nodad"),
            )
        },
    ),
    of_all("the pin of TENANTS is removed", &["map"], |scene, _| {
        fs::remove_file(tenant_map::path(&scene.node)).context("cannot remove a pin")
    }),
    of_all("a connect hook is detached", &["hook"], |scene, _| {
        let pin = bpffs_dir(&scene.node).join("link-connect4");
        bpftool(&["link", "detach", "pinned", &pin.display().to_string()])
    }),
    of_all(
        "the directory of pins is removed",
        &["bpffs", "map", "hook", "pin"],
        |scene, _| {
            fs::remove_dir_all(bpffs_dir(&scene.node))
                .context("cannot remove the directory of pins")
        },
    ),
    of_all(
        "the bpffs is unmounted",
        &["bpffs", "map", "hook", "pin"],
        |scene, _| {
            umount2(&scene.node.bpffs(), MntFlags::MNT_DETACH).context("cannot unmount the bpffs")
        },
    ),
];

const fn of_one(
    what: &'static str,
    notice: Notice,
    repairs: &'static [&'static str],
    do_it: fn(&Scene, &TenantFixture) -> Result<()>,
) -> Damage {
    Damage {
        what,
        notice,
        repairs,
        is_of_one_tenant: true,
        do_it,
    }
}

const fn of_all(
    what: &'static str,
    repairs: &'static [&'static str],
    do_it: fn(&Scene, &TenantFixture) -> Result<()>,
) -> Damage {
    Damage {
        what,
        notice: Notice::Audit,
        repairs,
        is_of_one_tenant: false,
        do_it,
    }
}

fn bpftool(arguments: &[&str]) -> Result<()> {
    run_program(Command::new("bpftool").args(arguments)).map(drop)
}

pub(super) fn ip(tenant: &TenantFixture, arguments: &str) -> Result<()> {
    tenant.netns.ip(arguments).map(drop)
}
