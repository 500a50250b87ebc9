//! A new process takes over from the one that runs.

use std::{fs, os::fd::AsRawFd as _, path::PathBuf, time::Duration};

use metadata_proxy_tests::{
    Agent, Connection, Footprint, Kind, METADATA_V4, NeutronProxy, TenantFixture, neutron,
    tenant_map, wait_until,
};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket,
};

use metadata_proxy_tests::stage::{
    SOON, Stage, assert_served_twice, builder, times_steered, traces_on_node,
};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n";

/// Starts a successor and waits until it has taken over and the old one is gone.
fn upgrade(stage: &mut Stage) {
    let next = builder(&stage.node, &stage.upstream)
        .taking_over()
        .start()
        .unwrap();
    let mut before = std::mem::replace(&mut stage.agent, next);
    let status = before.wait(SOON).unwrap();
    assert!(status.success(), "{status}: {}", before.log());
}

fn takeover_socket(stage: &Stage) -> PathBuf {
    stage.node.directory().join("admin.sock.takeover")
}

fn open_files(agent: &Agent) -> usize {
    fs::read_dir(format!("/proc/{}/fd", agent.pid()))
        .unwrap()
        .count()
}

#[test]
fn a_successor_serves_everybody_and_nothing_is_there_twice() {
    let mut stage = Stage::new();
    let tenants = Kind::ALL.map(|kind| stage.tenant(kind));
    let behind_redirect = TenantFixture::new(&stage.node, Kind::Router).unwrap();
    neutron::install_rules(&behind_redirect.netns, NeutronProxy::Enabled).unwrap();
    let behind_redirect = stage.served(behind_redirect);
    let all = || tenants.iter().chain([&behind_redirect]);
    let inside = |tenant: &TenantFixture| {
        let footprint = Footprint::of_netns(&tenant.netns).unwrap().to_string();
        footprint.lines().count()
    };
    let lines: Vec<_> = all().map(inside).collect();
    let on_node = Footprint::of_node(&stage.node).unwrap().to_string();
    let map = tenant_map::read(&stage.node).unwrap();
    let files = open_files(&stage.agent);
    for _ in 0..3 {
        upgrade(&mut stage);
        for (tenant, lines) in all().zip(&lines) {
            stage.agent.wait_served(tenant).unwrap();
            assert_served_twice(tenant);
            assert_eq!(tenant.curl(METADATA_V4, &[]).unwrap().status, 200);
            assert_eq!(times_steered(&tenant.netns, &tenant.subnets[0].device), 1);
            assert_eq!(inside(tenant), *lines);
        }
        let now = Footprint::of_node(&stage.node).unwrap().to_string();
        assert_eq!(now.lines().count(), on_node.lines().count(), "{now}");
        assert_eq!(tenant_map::read(&stage.node).unwrap(), map);
        wait_until("descriptors as before", SOON, || {
            open_files(&stage.agent) <= files
        })
        .unwrap();
    }
    assert!(stage.agent.stop().unwrap().success());
    assert_eq!(traces_on_node(&stage.node), [""; 0]);
    for file in ["admin.sock", "register.sock", "admin.sock.takeover"] {
        assert!(!stage.node.directory().join(file).exists(), "{file}");
    }
    for tenant in all() {
        let left = Footprint::of_netns(&tenant.netns).unwrap().to_string();
        for trace in [":9697", "proto 169", "tcx on"] {
            assert!(!left.contains(trace), "{trace}:\n{left}");
        }
    }
}

#[test]
fn a_request_in_flight_is_answered_by_the_old_one_and_the_next_by_the_new_one() {
    let (mut stage, gate) = Stage::gated(|agent| agent);
    let tenant = stage.tenant(Kind::Router);
    let mut waiting = Connection::v4(tenant.guest()).unwrap();
    waiting.send(REQUEST).unwrap();
    let mut idle = Connection::v4(tenant.guest()).unwrap();
    gate.wait_arrived(1).unwrap();
    let next = builder(&stage.node, &stage.upstream)
        .taking_over()
        .start()
        .unwrap();
    let mut before = std::mem::replace(&mut stage.agent, next);
    assert_eq!(idle.rest().unwrap(), b"", "who asks nothing is let go");
    // Accepted by the new one while the old one still drains.
    let mut late = Connection::v4(tenant.guest()).unwrap();
    late.send(REQUEST).unwrap();
    gate.wait_arrived(2).unwrap();
    assert!(before.ended().unwrap().is_none());
    gate.open();
    let answer = waiting.answer().unwrap();
    assert_eq!(answer.text(), "let through");
    assert_eq!(waiting.rest().unwrap(), b"");
    assert!(before.wait(SOON).unwrap().success());
    assert_eq!(late.answer().unwrap().text(), "let through");
    assert_eq!(late.get("/").unwrap().status, 200, "and goes on");
}

#[test]
fn a_successor_where_nobody_runs_starts_as_any_other() {
    let mut stage = Stage::new();
    let tenant = stage.tenant(Kind::Network);
    assert!(stage.agent.stop().unwrap().success());
    stage.agent = builder(&stage.node, &stage.upstream)
        .taking_over()
        .start()
        .unwrap();
    stage.agent.wait_served(&tenant).unwrap();
    assert_served_twice(&tenant);
    stage.agent.crash().unwrap();
    stage.agent = builder(&stage.node, &stage.upstream)
        .taking_over()
        .start()
        .unwrap();
    stage.agent.wait_served(&tenant).unwrap();
    assert_served_twice(&tenant);
}

#[test]
fn what_was_added_by_hand_is_handed_over() {
    let mut stage = Stage::new();
    let build = |name: &str| {
        let tenant = TenantFixture::builder(Kind::Router).name(name);
        tenant.build(&stage.node).unwrap()
    };
    let (by_name, by_pid) = (build("by-name"), build("by-pid"));
    let mut process = by_pid.guest().start("sleep", &["1000"]).unwrap();
    let mut sleeper = by_pid.netns.command("sleep").unwrap();
    let mut sleeper = sleeper.arg("1000").spawn().unwrap();
    process.signal(Signal::SIGKILL).unwrap();
    let pid = sleeper.id().to_string();
    for (tenant, option, value) in [
        (&by_name, "--netns", "by-name"),
        (&by_pid, "--pid", pid.as_str()),
    ] {
        let id = tenant.id.to_string();
        let add = [
            "tenants", "add", "--kind", "router", "--id", &id, option, value,
        ];
        stage.agent.cli(&add).unwrap();
        stage.agent.wait_served(tenant).unwrap();
    }
    for _ in 0..2 {
        upgrade(&mut stage);
        for tenant in [&by_name, &by_pid] {
            stage.agent.wait_served(tenant).unwrap();
            assert_served_twice(tenant);
            let status = stage.agent.tenant(tenant).unwrap().unwrap();
            assert_eq!(status["provider"], "admin");
        }
    }
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    stage.agent.wait_gone(by_pid.kind, by_pid.id).unwrap();
    let id = by_name.id.to_string();
    let remove = ["tenants", "remove", "--kind", "router", "--id", &id];
    stage.agent.cli(&remove).unwrap();
    stage.agent.wait_gone(by_name.kind, by_name.id).unwrap();
}

#[test]
fn a_guest_that_had_used_up_its_rate_has_still() {
    let limited = |agent: metadata_proxy_tests::agent::Builder| {
        agent
            .set("rate_limit.rate_limit_enabled", true)
            .set("rate_limit.base_window_duration", 600)
            .set("rate_limit.base_query_rate_limit", 3)
            .set("rate_limit.burst_window_duration", 600)
            .set("rate_limit.burst_query_rate_limit", 3)
    };
    let mut stage = Stage::with(limited);
    let tenant = stage.tenant(Kind::Router);
    let ask = || tenant.guest().curl(METADATA_V4, &[]).unwrap().status;
    assert_eq!([ask(), ask(), ask(), ask()], [200, 200, 200, 429]);
    let next = limited(builder(&stage.node, &stage.upstream)).taking_over();
    let next = next.start().unwrap();
    let mut before = std::mem::replace(&mut stage.agent, next);
    before.wait(SOON).unwrap();
    assert_eq!(ask(), 429);
}

#[test]
fn a_successor_that_cannot_go_on_leaves_the_old_one_serving() {
    let stage = Stage::new();
    let tenants = [stage.tenant(Kind::Router), stage.tenant(Kind::Network)];
    let before = Footprint::of_node(&stage.node).unwrap();
    // Its listeners would be of no use to it.
    let other_port = builder(&stage.node, &stage.upstream).set("listener.port", 9700);
    let error = other_port.taking_over().start().unwrap_err();
    assert!(format!("{error:#}").contains("listener.port"), "{error:#}");
    // It has replaced the hooks by the time it fails.
    let no_answer = builder(&stage.node, &stage.upstream)
        .set("upstream.kind", "\"embedded\"")
        .set("upstream.embedded.file", "\"/nonexistent\"");
    no_answer.taking_over().start().unwrap_err();
    for tenant in &tenants {
        assert_served_twice(tenant);
        assert_eq!(tenant.curl(METADATA_V4, &[]).unwrap().status, 200);
    }
    assert_eq!(Footprint::of_node(&stage.node).unwrap(), before);
    // And it changes again what is to be changed.
    let new = stage.tenant(Kind::OvnNetwork);
    assert_served_twice(&new);
}

#[test]
fn a_successor_of_another_protocol_is_refused_before_anything_changed() {
    let mut stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let before = Footprint::of_node(&stage.node).unwrap();
    let other = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let address = UnixAddr::new(&takeover_socket(&stage)).unwrap();
    connect(other.as_raw_fd(), &address).unwrap();
    let hello = br#"{"message":"hello","protocol":99,"version":"99"}"#;
    send(other.as_raw_fd(), hello, MsgFlags::empty()).unwrap();
    let mut heard = String::new();
    loop {
        let mut buffer = [0; 4096];
        let length = recv(other.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap_or(0);
        if length == 0 {
            break;
        }
        heard += &String::from_utf8_lossy(&buffer[..length]);
    }
    assert!(heard.contains("\"protocol\":1"), "{heard}");
    assert!(heard.contains("refused"), "{heard}");
    assert_eq!(Footprint::of_node(&stage.node).unwrap(), before);
    assert!(!stage.agent.log().contains("a successor takes over"));
    assert_served_twice(&tenant);
    // It does not hold up one that it understands.
    upgrade(&mut stage);
    assert_served_twice(&tenant);
}

#[test]
fn a_stop_does_not_wait_for_a_successor_that_hangs() {
    let mut stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let other = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let address = UnixAddr::new(&takeover_socket(&stage)).unwrap();
    connect(other.as_raw_fd(), &address).unwrap();
    let hello = br#"{"message":"hello","protocol":1,"version":"1"}"#;
    send(other.as_raw_fd(), hello, MsgFlags::empty()).unwrap();
    send(
        other.as_raw_fd(),
        br#"{"message":"give"}"#,
        MsgFlags::empty(),
    )
    .unwrap();
    wait_until("the hand-over", SOON, || {
        stage.agent.log().contains("a successor takes over")
    })
    .unwrap();
    assert_served_twice(&tenant);
    stage.agent.signal(Signal::SIGTERM).unwrap();
    assert!(stage.agent.wait(Duration::from_secs(5)).unwrap().success());
    assert_eq!(traces_on_node(&stage.node), [""; 0]);
}

#[test]
fn every_engine_hands_over() {
    for engine in ["\"sk-lookup\"", "\"bind\""] {
        let mut stage = Stage::with(|agent| agent.set("steering.engine", engine));
        let tenants = Kind::ALL.map(|kind| TenantFixture::new(&stage.node, kind).unwrap());
        // No device is attached to by these, so that the state is all there is to wait for.
        wait_until("service", SOON, || {
            let is_served = |tenant| {
                let status = stage.agent.tenant(tenant).unwrap();
                status.is_some_and(|status| status["state"] == "serving")
            };
            tenants.iter().all(is_served)
        })
        .unwrap();
        for _ in 0..2 {
            let next = builder(&stage.node, &stage.upstream)
                .set("steering.engine", engine)
                .taking_over()
                .start()
                .unwrap();
            let mut before = std::mem::replace(&mut stage.agent, next);
            for tenant in &tenants {
                assert_served_twice(tenant);
            }
            assert!(before.wait(SOON).unwrap().success());
            for tenant in &tenants {
                assert_served_twice(tenant);
                assert_eq!(tenant.curl(METADATA_V4, &[]).unwrap().status, 200);
            }
        }
        assert!(stage.agent.stop().unwrap().success());
        assert_eq!(traces_on_node(&stage.node), [""; 0]);
    }
}
