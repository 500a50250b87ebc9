//! The agent crashes and is started again.

use std::fs;

use metadata_proxy_tests::{
    Footprint, Kind, METADATA_V4, TenantFixture, agent::bpffs_dir, process::output, tenant_map,
};

use metadata_proxy_tests::stage::{
    SOON, Stage, assert_served_twice, builder, times_steered, traces_on_node,
};

#[test]
fn the_successor_of_a_killed_agent_adopts_what_it_left_and_serves() {
    let mut stage = Stage::new();
    let tenants = Kind::ALL.map(|kind| stage.tenant(kind));
    let look_inside = |tenant: &TenantFixture| Footprint::of_netns(&tenant.netns).unwrap();
    let node_before = Footprint::of_node(&stage.node)
        .unwrap()
        .to_string()
        .lines()
        .count();
    let cookies = tenant_map::read(&stage.node).unwrap();
    let inside: Vec<_> = tenants
        .iter()
        .map(|tenant| look_inside(tenant).to_string().lines().count())
        .collect();
    for _ in 0..2 {
        stage.agent.crash().unwrap();
        stage.agent = builder(&stage.node, &stage.upstream).start().unwrap();
        for (tenant, before) in tenants.iter().zip(&inside) {
            stage.agent.wait_served(tenant).unwrap();
            assert_served_twice(tenant);
            assert_eq!(tenant.curl(METADATA_V4, &[]).unwrap().status, 200);
            assert_eq!(times_steered(&tenant.netns, &tenant.subnets[0].device), 1);
            let now = look_inside(tenant);
            assert_eq!(
                now.to_string().lines().count(),
                *before,
                "nothing twice:\n{now}"
            );
        }
        // One program on each hook, one pin for each link and map.
        let node = Footprint::of_node(&stage.node).unwrap().to_string();
        assert_eq!(node.lines().count(), node_before, "{node}");
        assert_eq!(tenant_map::read(&stage.node).unwrap(), cookies);
    }
    // The successor removes what its predecessors added.
    assert!(stage.agent.stop().unwrap().success());
    assert_eq!(traces_on_node(&stage.node), [""; 0]);
    for tenant in &tenants {
        let left = look_inside(tenant).to_string();
        for trace in [":9697", "proto 169", "tcx on", "clsact"] {
            assert!(!left.contains(trace), "{trace}:\n{left}");
        }
        let routers_own = left.contains("fe80::a9fe:a9fe");
        assert_eq!(routers_own, tenant.kind != Kind::Router, "{left}");
    }
}

#[test]
fn what_a_killed_agent_left_of_a_tenant_that_is_gone_is_removed() {
    let mut stage = Stage::new();
    let (stays, goes) = (stage.tenant(Kind::Router), stage.tenant(Kind::Router));
    let cookie = tenant_map::cookie(&goes.netns).unwrap();
    stage.agent.crash().unwrap();
    drop(goes);
    assert!(tenant_map::read(&stage.node).unwrap().contains_key(&cookie));
    stage.agent = builder(&stage.node, &stage.upstream).start().unwrap();
    assert!(!tenant_map::read(&stage.node).unwrap().contains_key(&cookie));
    let pins = fs::read_dir(bpffs_dir(&stage.node)).unwrap();
    for pin in pins {
        let name = pin.unwrap().file_name().into_string().unwrap();
        assert!(!name.contains(&cookie.to_string()), "{name}");
    }
    assert_served_twice(&stays);
}

#[test]
fn guests_of_an_agent_that_was_killed_are_not_left_hanging() {
    let mut stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    stage.agent.crash().unwrap();
    let reply = tenant
        .guest()
        .curl(METADATA_V4, &["--max-time", "5"])
        .unwrap();
    assert_eq!(reply.exit, 7, "refused at once: {reply:?}");
}

#[test]
fn a_second_agent_refuses_to_start_and_names_the_first() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Network);
    let before = Footprint::of_node(&stage.node).unwrap();
    let second = output(&mut stage.agent.command(&["run"])).unwrap();
    let complaint = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{complaint}");
    let named = format!("another agent (pid {})", stage.agent.pid());
    assert!(complaint.contains(&named), "{complaint}");
    assert_eq!(Footprint::of_node(&stage.node).unwrap(), before);
    assert_served_twice(&tenant);
    // The first one's sockets are still its own.
    stage.agent.admin("/healthz").unwrap();
}

#[test]
fn a_configuration_that_was_changed_between_two_runs_counts() {
    let mut stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    stage.agent.crash().unwrap();
    // Another port of the listeners, and room for fewer tenants: nothing that was left fits.
    stage.agent = builder(&stage.node, &stage.upstream)
        .set("listener.port", 9700)
        .set("steering.max_tenants", 64)
        .start()
        .unwrap();
    stage.agent.wait_served(&tenant).unwrap();
    assert_served_twice(&tenant);
    assert_eq!(tenant.curl(METADATA_V4, &[]).unwrap().status, 200);
    assert!(stage.agent.stop().unwrap().success());
    assert_eq!(traces_on_node(&stage.node), [""; 0]);
}

#[test]
fn a_tenant_too_many_for_the_map_is_failing_and_served_once_there_is_room() {
    let stage = Stage::with(|agent| agent.set("steering.max_tenants", 1));
    let first = stage.tenant(Kind::Router);
    let second = TenantFixture::new(&stage.node, Kind::Router).unwrap();
    let status = metadata_proxy_tests::wait_for("a failure", SOON, || {
        let status = stage.agent.tenant(&second)?;
        Ok(status.filter(|it| it["state"] == "failing"))
    })
    .unwrap();
    let reason = status["reason"].as_str().unwrap();
    assert!(reason.contains("steering.max_tenants"), "{reason}");
    assert_served_twice(&first);
    drop(first);
    stage.agent.wait_served(&second).unwrap();
    assert_served_twice(&second);
}
