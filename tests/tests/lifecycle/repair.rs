//! What somebody else takes away from a served namespace is put back.

use std::process::Command;

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

/// Takes `steer` off the tenant's device, as another program would.
fn detach(stage: &Stage, tenant: &TenantFixture) {
    let device = &tenant.subnets[0].device;
    if !stage.is_tcx() {
        return tc(tenant, &format!("qdisc del dev {device} clsact"));
    }
    let cookie = tenant_map::cookie(&tenant.netns).unwrap();
    let index = tenant
        .netns
        .run(|| Ok(nix::net::if_::if_nametoindex(device.as_str())?))
        .unwrap();
    let pin = bpffs_dir(&stage.node).join(format!("steer-{cookie}-{index}"));
    run(Command::new("bpftool")
        .args(["link", "detach", "pinned"])
        .arg(pin))
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
