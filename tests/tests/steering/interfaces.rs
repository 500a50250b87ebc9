//! Interfaces come, go, and change their names and addresses.

use std::fs;

use metadata_proxy_tests::{
    Kind, METADATA_V4, TenantFixture, agent::bpffs_dir, netns::Netns, wait_until,
};

use metadata_proxy_tests::stage::{
    SOON, Stage, assert_guest_served, assert_not_served, assert_served_twice, times_steered,
};

/// A router that has no interface yet.
fn bare_router(stage: &Stage) -> TenantFixture {
    let router = TenantFixture::builder(Kind::Router)
        .guests(0)
        .build(&stage.node)
        .unwrap();
    stage.served(router)
}

fn wait_steered(netns: &Netns, device: &str, times: usize) {
    let what = format!("steering {times} times on {device}");
    wait_until(&what, SOON, || times_steered(netns, device) == times).unwrap();
}

/// Names of pinned links of devices.
fn pinned_links(stage: &Stage) -> Vec<String> {
    let entries = fs::read_dir(bpffs_dir(&stage.node)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("steer-")).collect()
}

#[test]
fn an_interface_that_comes_late_is_steered() {
    let stage = Stage::new();
    let mut tenant = bare_router(&stage);
    tenant.plug(1).unwrap();
    stage.agent.wait_served(&tenant).unwrap();
    assert_served_twice(&tenant);
    tenant.plug(1).unwrap();
    stage.agent.wait_served(&tenant).unwrap();
    for guest in tenant.guests() {
        assert_guest_served(&tenant, guest);
    }
}

#[test]
fn an_interface_renamed_into_the_pattern_is_steered_and_out_of_it_is_not() {
    let stage = Stage::new();
    let mut tenant = bare_router(&stage);
    tenant.plug(1).unwrap();
    stage.agent.wait_served(&tenant).unwrap();
    let device = tenant.subnets[0].device.clone();

    // Newer kernels rename what is up; older ones want it down.
    tenant
        .netns
        .ip_batch(&format!(
            "link set {device} down\nlink set {device} name other0\nlink set other0 up\n"
        ))
        .unwrap();
    wait_steered(&tenant.netns, "other0", 0);
    assert_not_served(tenant.guest());

    tenant
        .netns
        .ip_batch(&format!(
            "link set other0 down\nlink set other0 name {device}\nlink set {device} up\n"
        ))
        .unwrap();
    stage.agent.wait_served(&tenant).unwrap();
    wait_steered(&tenant.netns, &device, 1);
    wait_until("service over the renamed device", SOON, || {
        let reply = tenant
            .guest()
            .curl(METADATA_V4, &["--max-time", "1"])
            .unwrap();
        reply.status == 200
    })
    .unwrap();
}

#[test]
fn an_interface_that_is_removed_is_forgotten() {
    let stage = Stage::new();
    let mut tenant = TenantFixture::new(&stage.node, Kind::Router).unwrap();
    tenant.plug(1).unwrap();
    let tenant = stage.served(tenant);
    let pins = pinned_links(&stage).len();
    let gone = &tenant.subnets[0].device;
    tenant.netns.ip(&format!("link del {gone}")).unwrap();
    wait_until("the device to be forgotten", SOON, || {
        let status = stage.agent.tenant(&tenant).unwrap().unwrap();
        let interfaces = status["interfaces"].as_array().unwrap();
        interfaces.len() == 1 && interfaces[0]["name"] == tenant.subnets[1].device.as_str()
    })
    .unwrap();
    if stage.is_tcx() {
        wait_until("its link to be unpinned", SOON, || {
            pinned_links(&stage).len() == pins - 1
        })
        .unwrap();
    }
    assert_guest_served(&tenant, &tenant.subnets[1].guests[0]);
}

#[test]
fn an_interface_that_moves_to_another_namespace_takes_no_steering_along() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let elsewhere = Netns::hidden(&stage.node, "elsewhere").unwrap();
    let device = &tenant.subnets[0].device;
    let target = elsewhere.path().display().to_string();
    tenant
        .netns
        .ip(&format!("link set {device} netns {target}"))
        .unwrap();
    wait_steered(&elsewhere, device, 0);
    let status = stage.agent.tenant(&tenant).unwrap().unwrap();
    assert_eq!(
        status["interfaces"].as_array().unwrap().len(),
        0,
        "{status}"
    );
}

#[test]
fn a_router_without_an_addressed_interface_gets_404_and_the_upstream_is_not_asked() {
    let stage = Stage::new();
    let mut tenant = bare_router(&stage);
    for url in [METADATA_V4, "http://[fe80::a9fe:a9fe]"] {
        let reply = tenant.curl(url, &[]).unwrap();
        assert_eq!(reply.status, 404, "{reply:?}");
        assert!(reply.text().contains("no internal network"), "{reply:?}");
    }
    assert_eq!(stage.take_requests(), []);

    tenant.plug(1).unwrap();
    stage.agent.wait_served(&tenant).unwrap();
    assert_served_twice(&tenant);
    stage.take_requests();

    // The address is what counts, not the interface.
    let device = &tenant.subnets[0].device;
    tenant
        .netns
        .ip(&format!("-4 addr flush dev {device}"))
        .unwrap();
    wait_until("404", SOON, || {
        tenant.curl(METADATA_V4, &[]).unwrap().status == 404
    })
    .unwrap();
    stage.take_requests();
    let reply = tenant
        .guest()
        .curl(METADATA_V4, &["--max-time", "1"])
        .unwrap();
    assert_ne!(reply.status, 200, "{reply:?}");
    assert_eq!(stage.take_requests(), []);
}

#[test]
fn a_standby_router_does_not_answer_for_its_master() {
    // The L3 agent gives the standby of a highly available router its interfaces, not its addresses.
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let device = &tenant.subnets[0].device;
    let metadata = "fe80::a9fe:a9fe";
    let addresses = || {
        tenant
            .netns
            .ip(&format!("-6 addr show dev {device}"))
            .unwrap()
    };
    assert!(addresses().contains(metadata));

    tenant
        .netns
        .ip(&format!("-4 addr flush dev {device}"))
        .unwrap();
    wait_until("the standby to be silent", SOON, || {
        !addresses().contains(metadata)
    })
    .unwrap();
    tenant
        .netns
        .ip(&format!("addr add 10.0.0.1/24 dev {device}"))
        .unwrap();
    wait_until("the new master to answer", SOON, || {
        addresses().contains(metadata)
    })
    .unwrap();
    assert_served_twice(&tenant);
}

#[test]
fn a_network_with_ipv4_only_is_served() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Network);
    tenant
        .netns
        .sysctl("net/ipv6/conf/all/disable_ipv6", "1")
        .unwrap();
    metadata_proxy_tests::stage::assert_served(&tenant);
    let router = TenantFixture::builder(Kind::Router)
        .guests(0)
        .build(&stage.node)
        .unwrap();
    router
        .netns
        .sysctl("net/ipv6/conf/all/disable_ipv6", "1")
        .unwrap();
    router
        .netns
        .sysctl("net/ipv6/conf/default/disable_ipv6", "1")
        .unwrap();
    stage.agent.wait_served(&router).unwrap();
}
