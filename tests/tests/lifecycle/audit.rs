//! What no event tells is found by the audit, and told in `status`.

use metadata_proxy_tests::{
    Kind, TenantFixture,
    stage::{SOON, Stage, assert_not_served, assert_served_twice},
    tenant_map, wait_for, wait_until,
};

/// A stage whose agent audits often, and scans never.
fn stage() -> Stage {
    Stage::with(|agent| {
        agent
            .set("audit.interval", "\"1s\"")
            .set("audit.connect_interval", "\"1s\"")
            .set("discovery.scan_interval", "\"1h\"")
    })
}

#[test]
fn every_kind_of_tenant_is_proved_and_its_guests_are_not_charged_for_it() {
    let stage = stage();
    let tenants = Kind::ALL.map(|kind| stage.tenant(kind));
    for tenant in &tenants {
        wait_until("a proof", SOON, || {
            stage.agent.tenant(tenant).unwrap().unwrap()["proved_unix"].is_u64()
        })
        .unwrap();
        let status = stage.agent.tenant(tenant).unwrap().unwrap();
        assert_eq!(status["connections"]["total"], 0, "{status}");
        assert!(status["fault"].is_null(), "{status}");
    }
    assert_eq!(stage.take_requests(), [], "nothing of it leaves the node");
    let refused = "metadata_proxy_connections_refused_total";
    assert!(stage.agent.metric(refused, &[]).unwrap().abs() < 0.5);
}

#[test]
fn a_namespace_that_nobody_can_be_served_in_is_told_and_left_as_it_is() {
    let stage = stage();
    let tenant = stage.tenant(Kind::Router);
    // No local route can be there without it.
    tenant.netns.ip("link set lo down").unwrap();
    let fault = wait_for("a fault", SOON, || {
        let status = stage.agent.tenant(&tenant)?;
        Ok(status.and_then(|it| it["fault"].as_str().map(str::to_owned)))
    })
    .unwrap();
    let told = ["not accepted", "not local"];
    assert!(told.iter().any(|told| fault.contains(told)), "{fault}");
    let status = stage.agent.cli(&["status"]).unwrap();
    assert!(status.contains(&tenant.id.to_string()), "{status}");
    let repairs = stage
        .agent
        .metric("metadata_proxy_repairs_total", &[("what", "listener")]);
    assert!(
        repairs.unwrap().abs() < 0.5,
        "nobody's connections are ended for that"
    );
    tenant.netns.ip("link set lo up").unwrap();
    wait_until("a proof", SOON, || {
        stage.agent.tenant(&tenant).unwrap().unwrap()["fault"].is_null()
    })
    .unwrap();
    assert_served_twice(&tenant);
}

#[test]
fn a_deleted_entry_is_written_again_and_counted_once() {
    let stage = stage();
    let tenant = stage.tenant(Kind::Network);
    let cookie = tenant_map::cookie(&tenant.netns).unwrap();
    let before = tenant_map::read(&stage.node).unwrap();
    tenant_map::delete(&stage.node, cookie).unwrap();
    wait_until("the entry", SOON, || {
        tenant_map::read(&stage.node).unwrap() == before
    })
    .unwrap();
    assert_served_twice(&tenant);
    let count = stage
        .agent
        .metric("metadata_proxy_repairs_total", &[("what", "entry")]);
    assert!((count.unwrap() - 1.0).abs() < 0.5);
    let log = stage.agent.log();
    assert_eq!(
        log.matches("somebody took away what is ours").count(),
        1,
        "{log}"
    );
}

/// Long before the audit would find it.
#[test]
fn an_entry_by_which_a_guest_is_refused_is_put_right_for_its_next_request() {
    let stage = Stage::with(|agent| {
        agent
            .set("audit.interval", "\"1h\"")
            .set("discovery.scan_interval", "\"1h\"")
    });
    let (tenant, other) = (stage.tenant(Kind::Router), stage.tenant(Kind::Network));
    let before = tenant_map::read(&stage.node).unwrap();
    let cookie = |of: &TenantFixture| tenant_map::cookie(&of.netns).unwrap();
    let of_other = before[&cookie(&other)];
    let wrongs: [&dyn Fn(); 2] = [
        &|| tenant_map::delete(&stage.node, cookie(&tenant)).unwrap(),
        &|| tenant_map::write(&stage.node, cookie(&tenant), of_other).unwrap(),
    ];
    for wrong in wrongs {
        wrong();
        assert_not_served(tenant.guest());
        wait_until("the entry", SOON, || {
            tenant_map::read(&stage.node).unwrap() == before
        })
        .unwrap();
        assert_served_twice(&tenant);
    }
}
