//! The work that the compiler is shown (`cargo xtask pgo`): what an agent does on a node, each way of
//! asking, and the embedded service. Nothing is measured.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result};
use metadata_proxy_tests::{Node, TenantFixture};
use serde_json::json;

use super::{Lab, wrk};
use crate::{
    crowd::{Crowd, Shown},
    load::{self, Load, Mode},
    proxies::{Ours, Via},
};

/// Tenants that every agent serves; most of them are idle.
const TENANTS: usize = 200;
/// Busy tenants.
const BUSY: [usize; 2] = [1, 16];
const CONNECTIONS: usize = 32;
/// How long each way of asking goes on.
const WORK: Duration = Duration::from_secs(2);
/// How long nothing is asked: what goes on then happens every few seconds.
const IDLE: Duration = Duration::from_secs(20);
const READY_WITHIN: Duration = Duration::from_secs(30);
/// What is asked of the embedded service.
const EMBEDDED_PATHS: [&str; 5] = [
    "/openstack",
    "/openstack/latest/meta_data.json",
    "/openstack/latest/vendor_data2.json",
    "/latest/meta-data/",
    "/latest/meta-data/local-ipv4",
];
/// How long all of it takes.
pub(super) const SECONDS: u64 = 4 * (IDLE.as_secs() + 10) + 5 * 2 * WORK.as_secs() + 20;

pub(super) fn run(lab: &Lab<'_>) -> Result<()> {
    lab.progress
        .step(&format!("making {TENANTS} tenants with guests"), 10);
    let pool = Node::new()?;
    let crowd = Crowd::make(&pool, TENANTS)?;
    for via in Via::ALL {
        lab.progress.step(via.word(), IDLE.as_secs() + 20);
        let node = &lab.ours;
        let shown = Shown::all(node, &crowd.tenants)?;
        let ours = Ours::start(lab, node, via)?;
        ours.wait_serving(TENANTS, READY_WITHIN)?;
        load::until_answered(&crowd.targets, READY_WITHIN)?;
        ask(&crowd)?;
        // They leave while it runs.
        drop(shown);
        ours.wait_serving(0, READY_WITHIN)?;
    }
    embedded(lab, &crowd)
}

/// Every way of asking, and then none.
fn ask(crowd: &Crowd) -> Result<()> {
    for mode in [Mode::Close, Mode::Keep] {
        for busy in BUSY {
            let load = Load {
                mode,
                connections: CONNECTIONS,
                rate: None,
                warm_up: Duration::ZERO,
                window: WORK,
                at_most: usize::MAX,
            };
            load::run(&crowd.targets[..busy], load, || Ok(()))?;
        }
    }
    thread::sleep(IDLE);
    Ok(())
}

/// The agent that answers by itself.
fn embedded(lab: &Lab<'_>, crowd: &Crowd) -> Result<()> {
    lab.progress.step("embedded", IDLE.as_secs() + 20);
    let node = &lab.ours;
    let file = node.directory().join("instances.json");
    let tenants: Vec<_> = crowd.tenants.iter().map(declared).collect();
    // JSON is YAML.
    fs::write(&file, json!({ "tenants": tenants }).to_string())
        .with_context(|| format!("cannot write {}", file.display()))?;
    let _shown = Shown::all(node, &crowd.tenants)?;
    let ours = Ours::start_embedded(lab, node, &file)?;
    ours.wait_serving(TENANTS, READY_WITHIN)?;
    for path in EMBEDDED_PATHS {
        for mode in [Mode::Close, Mode::Keep] {
            wrk::rate(&crowd.tenants[0], path, mode, CONNECTIONS, WORK)?;
        }
    }
    Ok(())
}

/// A tenant and its guest, as the embedded service's file has them.
fn declared(tenant: &TenantFixture) -> serde_json::Value {
    let guest = tenant.guest();
    json!({
        tenant.kind.word(): tenant.id,
        "instances": [{ "name": "guest", "addresses": [guest.v4, guest.link_local] }],
    })
}
