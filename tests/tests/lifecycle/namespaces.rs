//! Tenant namespaces come, go, and come again, and some cannot be served for a while.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use metadata_proxy_tests::{
    Connection, Footprint, Kind, METADATA_V4, Netns, Node, TenantFixture, tenant_map, wait_for,
    wait_until,
};
use nix::mount::{MsFlags, mount};
use uuid::Uuid;

use metadata_proxy_tests::stage::{SOON, Stage, assert_served, assert_served_twice, times_steered};

const NETWORK: Uuid = Uuid::from_u128(0x1234_5678);

#[test]
fn a_namespace_deleted_under_load_is_let_go_at_once() {
    let (stage, gate) = Stage::gated(|agent| agent);
    let tenant = stage.tenant(Kind::Router);
    // One request is with the upstream, one connection idles, and more are dialled all the time.
    let mut waiting = Connection::v4(tenant.guest()).unwrap();
    waiting
        .send("GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n")
        .unwrap();
    gate.wait_arrived(1).unwrap();
    let idle = Connection::v6(tenant.guest()).unwrap();

    let TenantFixture {
        netns,
        subnets,
        kind,
        id,
        ..
    } = tenant;
    let guest = &subnets[0].guests[0];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = guest.curl(METADATA_V4, &["--max-time", "0.2"]);
            }
        });
        drop(netns);
        // The guest's end of the veth goes only when the kernel has freed the namespace: while
        // anybody holds it, it stays.
        let gone = wait_until("the end of the namespace", SOON, || {
            !guest.netns.ip("-o link").unwrap().contains("eth0")
        });
        stop.store(true, Ordering::Relaxed);
        gone.unwrap();
    });
    stage.agent.wait_gone(kind, id).unwrap();
    assert_eq!(tenant_map::read(&stage.node).unwrap().len(), 0);
    gate.open();
    drop((waiting, idle));
}

/// Who is refused because the tenant is going could not acknowledge a farewell any more: the kernel would
/// repeat it for a minute and a half, and keep the namespace.
#[test]
fn of_a_connection_that_is_refused_nothing_stays_in_the_namespace() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let cookie = tenant_map::cookie(&tenant.netns).unwrap();
    tenant_map::delete(&stage.node, cookie).unwrap();
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    // This side stays open.
    assert_eq!(connection.rest().unwrap(), b"");
    let refused = "metadata_proxy_connections_refused_total";
    assert!(
        stage
            .agent
            .metric(refused, &[("reason", "no_tenant")])
            .unwrap()
            >= 1.0
    );
    let port = connection.local().unwrap().port();
    let mut ss = tenant.netns.command("ss").unwrap();
    let left = ss.args(["-Htan", &format!("dport = :{port}")]).output();
    assert_eq!(String::from_utf8_lossy(&left.unwrap().stdout), "");
}

#[test]
fn a_namespace_made_again_under_its_name_is_a_new_tenant() {
    let stage = Stage::new();
    let id = Uuid::new_v4();
    let make = || {
        let tenant = TenantFixture::builder(Kind::Router).id(id);
        stage.served(tenant.build(&stage.node).unwrap())
    };
    let first = make();
    assert_served_twice(&first);
    let cookie = tenant_map::cookie(&first.netns).unwrap();
    for _ in 0..3 {
        let before = make_again(&stage, &make);
        assert_ne!(before, cookie);
    }
}

/// Replaces the tenant and returns the cookie of its new namespace.
fn make_again(stage: &Stage, make: &impl Fn() -> TenantFixture) -> u64 {
    // The one before was dropped by its owner, or is replaced here.
    for entry in fs::read_dir(stage.node.netns_dir()).unwrap() {
        let path = entry.unwrap().path();
        nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).unwrap();
        fs::remove_file(path).unwrap();
    }
    for entry in fs::read_dir(stage.node.guests_dir()).unwrap() {
        let path = entry.unwrap().path();
        nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).unwrap();
        fs::remove_file(path).unwrap();
    }
    let tenant = make();
    assert_served_twice(&tenant);
    let cookie = tenant_map::cookie(&tenant.netns).unwrap();
    let map = tenant_map::read(&stage.node).unwrap();
    assert_eq!(map.keys().collect::<Vec<_>>(), [&cookie]);
    cookie
}

#[test]
fn a_stale_file_is_left_out_until_a_namespace_is_mounted_on_it() {
    let stage = Stage::new();
    let elsewhere = TenantFixture::builder(Kind::Router)
        .name("elsewhere")
        .build(&stage.node)
        .unwrap();
    // What `ip netns` leaves when its mount is gone.
    let plain = stage
        .node
        .netns_dir()
        .join(format!("qrouter-{}", elsewhere.id));
    fs::write(&plain, "").unwrap();
    let other = stage.tenant(Kind::Network);
    assert_served(&other);
    wait_until("the file to be left out", SOON, || {
        stage.agent.log().contains("left out")
    })
    .unwrap();
    assert_eq!(stage.agent.tenant(&elsewhere).unwrap(), None);

    let source = format!("/proc/self/fd/{}", elsewhere.netns.file().as_raw_fd());
    mount(
        Some(source.as_str()),
        &plain,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap();
    // No event tells of a mount; the next scan does.
    stage.agent.wait_served(&elsewhere).unwrap();
    assert_served_twice(&elsewhere);
    nix::mount::umount2(&plain, nix::mount::MntFlags::MNT_DETACH).unwrap();
    stage.agent.wait_gone(elsewhere.kind, elsewhere.id).unwrap();
    fs::remove_file(&plain).unwrap();
}

#[test]
fn a_namespace_whose_port_is_taken_is_failing_is_tried_again_and_recovers() {
    let stage = Stage::new();
    let other = stage.tenant(Kind::Router);
    let tenant = TenantFixture::builder(Kind::Network)
        .name("later")
        .build(&stage.node)
        .unwrap();
    // Without SO_REUSEPORT, unlike haproxy: nobody else gets the port.
    let squatter = wait_for("the port", SOON, || {
        tenant.netns.run(|| Ok(TcpListener::bind("[::]:9697").ok()))
    })
    .unwrap();
    let named = stage.node.netns_dir().join(format!("qdhcp-{}", tenant.id));
    fs::rename(tenant.netns.path(), &named).unwrap_err();
    fs::write(&named, "").unwrap();
    let source = format!("/proc/self/fd/{}", tenant.netns.file().as_raw_fd());
    mount(
        Some(source.as_str()),
        &named,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap();

    let before = Footprint::of_netns(&tenant.netns).unwrap();
    let status = wait_for("a second failure", SOON, || {
        let status = stage.agent.tenant(&tenant)?;
        Ok(status.filter(|it| it["state"] == "failing" && it["attempts"].as_u64() >= Some(2)))
    })
    .unwrap();
    let reason = status["reason"].as_str().unwrap();
    assert!(
        reason.contains("cannot listen on") && reason.contains("9697"),
        "{reason}"
    );
    assert_eq!(
        Footprint::of_netns(&tenant.netns).unwrap(),
        before,
        "nothing is left half done"
    );
    assert_eq!(tenant_map::read(&stage.node).unwrap().len(), 1);
    let table = stage.agent.cli(&["status"]).unwrap();
    assert!(table.contains("cannot listen on"), "{table}");
    // Nobody else is harmed.
    assert_served_twice(&other);

    drop(squatter);
    stage.agent.wait_served(&tenant).unwrap();
    assert_served_twice(&tenant);
    nix::mount::umount2(&named, nix::mount::MntFlags::MNT_DETACH).unwrap();
    fs::remove_file(named).unwrap();
}

#[test]
fn namespaces_that_come_and_go_leave_nothing_with_the_agent() {
    let stage = Stage::new();
    let lasting = stage.tenant(Kind::Router);
    assert_served(&lasting);
    let descriptors = || {
        let entries = fs::read_dir(format!("/proc/{}/fd", stage.agent.pid()));
        entries.unwrap().count()
    };
    let pins = || Footprint::of_node(&stage.node).unwrap();
    let (descriptors_before, pins_before) = (descriptors(), pins());
    for _ in 0..4 {
        let tenants = Kind::ALL.map(|kind| TenantFixture::new(&stage.node, kind).unwrap());
        stage.agent.wait_served(&tenants[2]).unwrap();
        // Some go before the agent has got to them.
        let hasty = TenantFixture::new(&stage.node, Kind::Router).unwrap();
        drop((hasty, tenants));
    }
    Footprint::wait_for_return(&pins_before, SOON, || Ok(pins())).unwrap();
    wait_until("all of them to be forgotten", SOON, || {
        tenant_map::read(&stage.node).unwrap().len() == 1
            && stage.agent.admin_json("/v1/tenants").unwrap()["tenants"]
                .as_array()
                .unwrap()
                .len()
                == 1
    })
    .unwrap();
    // The admin socket's connection that is just going may count for a moment.
    wait_until("files to be closed", SOON, || {
        descriptors() <= descriptors_before
    })
    .unwrap();
    assert_served(&lasting);
}

#[test]
fn a_directory_of_namespaces_that_comes_late_is_found() {
    let node = Node::new().unwrap();
    fs::remove_dir(node.netns_dir()).unwrap();
    let stage = Stage::on(node, |agent| agent);
    fs::create_dir(stage.node.netns_dir()).unwrap();
    let tenant = stage.tenant(Kind::OvnNetwork);
    assert_served_twice(&tenant);
}

#[test]
fn a_network_with_a_namespace_for_each_segment_is_served_in_each() {
    let stage = Stage::new();
    let segments = ["", "-1001", "-1002"].map(|suffix| {
        let segment = TenantFixture::builder(Kind::Network)
            .id(NETWORK)
            .suffix(suffix);
        segment.build(&stage.node).unwrap()
    });
    let cookies: BTreeSet<_> = segments
        .iter()
        .map(|segment| tenant_map::cookie(&segment.netns).unwrap())
        .collect();
    wait_until("service of all segments", SOON, || {
        let map = tenant_map::read(&stage.node).unwrap();
        map.keys().copied().collect::<BTreeSet<_>>() == cookies
            && map.values().all(|entry| entry.id == NETWORK)
    })
    .unwrap();
    for segment in &segments {
        wait_until("steering", SOON, || {
            times_steered(&segment.netns, &segment.subnets[0].device) == 1
        })
        .unwrap();
        assert_served_twice(segment);
    }
    let [first, second, _third] = segments;
    drop(first);
    wait_until("the end of one segment", SOON, || {
        tenant_map::read(&stage.node).unwrap().len() == 2
    })
    .unwrap();
    assert_served_twice(&second);
}

#[test]
fn a_namespace_is_not_kept_alive_by_the_agent_when_nothing_was_asked() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::OvnNetwork);
    let TenantFixture { netns, subnets, .. } = tenant;
    drop::<Netns>(netns);
    let guest = &subnets[0].guests[0];
    wait_until("the end of the namespace", SOON, || {
        !guest.netns.ip("-o link").unwrap().contains("eth0")
    })
    .unwrap();
}
