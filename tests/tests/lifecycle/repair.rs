//! What somebody else takes away from a served namespace is put back.

use std::{fs, path::PathBuf, process::Command};

use metadata_proxy_tests::{
    Kind, METADATA_V4, TenantFixture, agent::bpffs_dir, process::run, tenant_map, wait_until,
};

use metadata_proxy_tests::stage::{
    SOON, Stage, assert_not_served, assert_served, assert_served_twice, times_steered,
};

fn tc(tenant: &TenantFixture, arguments: &str) {
    let mut tc = tenant.netns.command("tc").unwrap();
    run(tc.args(arguments.split(' '))).unwrap();
}

/// Where the link of `steer` on the tenant's device is pinned.
fn pin(stage: &Stage, tenant: &TenantFixture) -> PathBuf {
    let device = &tenant.subnets[0].device;
    let cookie = tenant_map::cookie(&tenant.netns).unwrap();
    let index = tenant
        .netns
        .run(|| Ok(nix::net::if_::if_nametoindex(device.as_str())?))
        .unwrap();
    bpffs_dir(&stage.node).join(format!("steer-{cookie}-{index}"))
}

/// Takes `steer` off the tenant's device, as another program would.
fn detach(stage: &Stage, tenant: &TenantFixture) {
    let device = &tenant.subnets[0].device;
    if !stage.is_tcx() {
        return tc(tenant, &format!("qdisc del dev {device} clsact"));
    }
    run(Command::new("bpftool")
        .args(["link", "detach", "pinned"])
        .arg(pin(stage, tenant)))
    .unwrap();
}

fn wait_answer(tenant: &TenantFixture, url: &str) {
    wait_until("an answer", SOON, || {
        let reply = tenant.guest().curl(url, &["--max-time", "1"]).unwrap();
        reply.status == 200
    })
    .unwrap();
}

#[test]
fn steering_that_somebody_detached_is_put_back() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let device = &tenant.subnets[0].device;
    for _ in 0..2 {
        detach(&stage, &tenant);
        wait_until("steering to be back", SOON, || {
            times_steered(&tenant.netns, device) == 1
        })
        .unwrap();
        assert_served_twice(&tenant);
    }
}

/// It is what a later process finds the link by; this one holds it.
#[test]
fn a_pin_that_somebody_removed_is_put_back_and_nothing_is_detached_meanwhile() {
    let stage = Stage::new();
    if !stage.is_tcx() {
        return;
    }
    let tenant = stage.tenant(Kind::Router);
    let pin = pin(&stage, &tenant);
    let outdated = pin.with_file_name(format!("{}0", pin.file_name().unwrap().display()));
    fs::remove_file(&pin).unwrap();
    assert_served_twice(&tenant);
    wait_until("the pin to be back", SOON, || pin.exists()).unwrap();
    // One of a device that is not there any more.
    run(Command::new("bpftool")
        .args(["link", "pin", "pinned"])
        .args([&pin, &outdated]))
    .unwrap();
    wait_until("the outdated pin to be gone", SOON, || !outdated.exists()).unwrap();
    assert!(pin.exists());
    assert_eq!(times_steered(&tenant.netns, &tenant.subnets[0].device), 1);
    assert_served_twice(&tenant);
}

#[test]
fn a_clsact_of_somebody_else_may_come_and_go() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let device = &tenant.subnets[0].device;
    if stage.is_tcx() {
        tc(&tenant, &format!("qdisc add dev {device} clsact"));
        assert_served_twice(&tenant);
    }
    tc(&tenant, &format!("qdisc del dev {device} clsact"));
    wait_answer(&tenant, METADATA_V4);
    assert_eq!(times_steered(&tenant.netns, device), 1);
}

#[test]
fn a_flushed_local_route_is_put_back() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let route = "local 169.254.169.254 dev lo table local";
    for _ in 0..2 {
        tenant.netns.ip(&format!("route del {route}")).unwrap();
        wait_answer(&tenant, METADATA_V4);
        let routes = tenant.netns.ip("route show table local").unwrap();
        assert_eq!(routes.matches("169.254.169.254").count(), 1, "{routes}");
    }
}

#[test]
fn a_deleted_ipv6_address_is_put_back() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let device = &tenant.subnets[0].device;
    tenant
        .netns
        .ip(&format!("addr del fe80::a9fe:a9fe/128 dev {device}"))
        .unwrap();
    wait_answer(&tenant, &tenant.guest().metadata_v6());
    assert_served_twice(&tenant);
}

#[test]
fn a_device_that_was_down_is_served_again() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let device = &tenant.subnets[0].device;
    tenant.netns.ip(&format!("link set {device} down")).unwrap();
    assert_not_served(tenant.guest());
    tenant.netns.ip(&format!("link set {device} up")).unwrap();
    // With the device, the kernel took its IPv6 addresses down, also the router's own.
    tenant
        .netns
        .ip(&format!(
            "addr add fe80::f816:3eff:fe00:1/64 dev {device} nodad"
        ))
        .unwrap();
    wait_answer(&tenant, METADATA_V4);
    wait_answer(&tenant, &tenant.guest().metadata_v6());
}

#[test]
fn a_device_that_is_replaced_under_its_name_is_steered() {
    let stage = Stage::new();
    let mut tenant = stage.tenant(Kind::Router);
    let device = tenant.subnets[0].device.clone();
    tenant.netns.ip(&format!("link del {device}")).unwrap();
    tenant.subnets.clear();
    tenant.plug(1).unwrap();
    assert_eq!(tenant.subnets[0].device, device);
    wait_answer(&tenant, METADATA_V4);
    assert_served(&tenant);
    assert_eq!(times_steered(&tenant.netns, &device), 1);
}
