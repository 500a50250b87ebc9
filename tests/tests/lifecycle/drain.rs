//! SIGTERM: what is in flight is finished, then nothing is left.

use std::time::Duration;

use metadata_proxy_tests::{
    Agent, Connection, Footprint, Kind, METADATA_V4, NeutronProxy, Node, TenantFixture, connection,
    metadata_agent::Answer, neutron, wait_until,
};
use nix::sys::signal::Signal;
use socket2::Socket;

use metadata_proxy_tests::stage::{
    SOON, Stage, assert_served_twice, builder, traces_on_node, upstream,
};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n";

fn wait_draining(agent: &Agent) {
    wait_until("draining", SOON, || agent.log().contains("draining")).unwrap();
}

/// A connection whose request is with the upstream.
fn in_flight(tenant: &TenantFixture) -> Connection {
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    connection.send(REQUEST).unwrap();
    connection
}

#[test]
fn a_clean_stop_leaves_nothing() {
    let node = Node::new().unwrap();
    let mut tenants = Vec::from(Kind::ALL.map(|kind| TenantFixture::new(&node, kind).unwrap()));
    for proxy in [NeutronProxy::Enabled, NeutronProxy::Disabled] {
        let mut router = TenantFixture::new(&node, Kind::Router).unwrap();
        router.plug(1).unwrap();
        neutron::install_rules(&router.netns, proxy).unwrap();
        tenants.push(router);
    }
    let look = || Footprint::of_node(&node).unwrap();
    let look_inside = |tenant: &TenantFixture| Footprint::of_netns(&tenant.netns);
    let before = look();
    let inside_before: Vec<_> = tenants.iter().map(|it| look_inside(it).unwrap()).collect();
    let upstream = upstream(&node);
    let mut agent = builder(&node, &upstream).start().unwrap();
    for tenant in &tenants {
        agent.wait_served(tenant).unwrap();
        assert_served_twice(tenant);
        assert_eq!(tenant.curl(METADATA_V4, &[]).unwrap().status, 200);
    }
    let status = agent.stop().unwrap();
    assert!(status.success(), "{status}: {}", agent.log());
    for (tenant, before) in tenants.iter().zip(&inside_before) {
        Footprint::wait_for_return(before, SOON, || look_inside(tenant)).unwrap();
    }
    Footprint::wait_for_return(&before, SOON, || Ok(look())).unwrap();
    for file in ["admin.sock", "register.sock"] {
        assert!(!node.directory().join(file).exists(), "{file}");
    }
}

#[test]
fn a_clean_stop_leaves_what_was_there_before() {
    let node = Node::new().unwrap();
    let tenant = TenantFixture::new(&node, Kind::Router).unwrap();
    let device = &tenant.subnets[0].device;
    // What we would add is there already, made by somebody else.
    tenant
        .netns
        .ip_batch(&format!(
            "route add local 169.254.169.254/32 dev lo table local\n\
             addr add fe80::a9fe:a9fe/128 dev {device} nodad\n"
        ))
        .unwrap();
    let mut tc = tenant.netns.command("tc").unwrap();
    tc.args(["qdisc", "add", "dev", device, "clsact"]);
    metadata_proxy_tests::process::run(&mut tc).unwrap();
    let look = || Footprint::of_netns(&tenant.netns);
    let before = look().unwrap();
    let mut stage = Stage::on(node, |agent| agent);
    stage.agent.wait_served(&tenant).unwrap();
    assert_served_twice(&tenant);
    stage.agent.stop().unwrap();
    Footprint::wait_for_return(&before, SOON, look).unwrap();
}

#[test]
fn a_request_in_flight_is_answered_before_the_end() {
    let (mut stage, gate) = Stage::gated(|agent| agent);
    let tenant = stage.tenant(Kind::Router);
    let mut waiting = in_flight(&tenant);
    let mut idle = Connection::v4(tenant.guest()).unwrap();
    gate.wait_arrived(1).unwrap();
    stage.agent.signal(Signal::SIGTERM).unwrap();
    wait_draining(&stage.agent);

    assert_eq!(
        idle.rest().unwrap(),
        b"",
        "who has asked nothing is closed at once"
    );
    let late = tenant
        .guest()
        .curl(METADATA_V4, &["--max-time", "5"])
        .unwrap();
    assert_eq!(late.exit, 7, "who comes now is refused at once: {late:?}");
    gate.open();
    let reply = waiting.answer().unwrap();
    assert_eq!(reply.text(), "let through", "{reply:?}");
    assert_eq!(waiting.rest().unwrap(), b"", "and its connection is closed");
    assert!(stage.agent.wait(SOON).unwrap().success());
}

#[test]
fn a_guest_behind_a_redirect_is_refused_at_once_while_the_agent_drains() {
    let (mut stage, gate) = Stage::gated(|agent| agent);
    let tenant = TenantFixture::new(&stage.node, Kind::Router).unwrap();
    neutron::install_rules(&tenant.netns, NeutronProxy::Enabled).unwrap();
    let tenant = stage.served(tenant);
    let mut waiting = in_flight(&tenant);
    gate.wait_arrived(1).unwrap();
    stage.agent.signal(Signal::SIGTERM).unwrap();
    wait_draining(&stage.agent);
    wait_until("a refusal", SOON, || {
        let late = tenant
            .guest()
            .curl(METADATA_V4, &["--max-time", "5"])
            .unwrap();
        late.exit == 7
    })
    .unwrap();
    gate.open();
    assert_eq!(waiting.answer().unwrap().text(), "let through");
    assert!(stage.agent.wait(SOON).unwrap().success());
}

#[test]
fn a_slow_guest_gets_its_whole_answer_before_the_end() {
    // More than the guest takes before it reads, less than the kernel takes from the agent at once.
    const ANSWER: usize = 12 << 10;
    let answer = || Answer::ok(vec![b'x'; ANSWER]);
    let mut stage = Stage::answering(|agent| agent, move |_| answer());
    let tenant = stage.tenant(Kind::Router);
    let to = connection::METADATA_V4_SOCKET.into();
    let prepare = |socket: &Socket| socket.set_recv_buffer_size(2048);
    let mut slow = Connection::with(&tenant.guest().netns, to, prepare).unwrap();
    slow.send(REQUEST).unwrap();
    let asked = || !stage.upstream.requests().is_empty();
    wait_until("the upstream's answer", SOON, asked).unwrap();
    stage.agent.signal(Signal::SIGTERM).unwrap();
    wait_draining(&stage.agent);
    // Nothing but this guest is left to be waited for.
    stage.agent.wait(Duration::from_millis(500)).unwrap_err();
    let reply = slow.answer().unwrap();
    assert_eq!(reply.body.len(), ANSWER);
    assert!(stage.agent.wait(SOON).unwrap().success());
}

#[test]
fn a_second_sigterm_ends_at_once_and_leaves_nothing() {
    let (mut stage, gate) = Stage::gated(|agent| agent);
    let tenant = stage.tenant(Kind::Network);
    let mut waiting = in_flight(&tenant);
    gate.wait_arrived(1).unwrap();
    stage.agent.signal(Signal::SIGTERM).unwrap();
    wait_draining(&stage.agent);
    assert_eq!(gate.arrived(), 1);
    stage.agent.signal(Signal::SIGTERM).unwrap();
    // Far less than the grace period of 30 s.
    assert!(stage.agent.wait(Duration::from_secs(10)).unwrap().success());
    assert_eq!(
        waiting.rest().unwrap(),
        b"",
        "the guest is not kept waiting either"
    );
    assert_nothing_left(&stage, &tenant);
}

#[test]
fn the_grace_period_ends_what_does_not_end() {
    let (mut stage, gate) = Stage::gated(|agent| agent.set("shutdown.grace", "\"300ms\""));
    let tenant = stage.tenant(Kind::OvnNetwork);
    let mut waiting = in_flight(&tenant);
    gate.wait_arrived(1).unwrap();
    assert!(stage.agent.stop().unwrap().success());
    assert_eq!(waiting.rest().unwrap(), b"");
    assert!(stage.agent.log().contains("grace period over"));
    assert_nothing_left(&stage, &tenant);
}

/// Nothing in the namespace, the bpffs or the cgroup tells of the agent that has ended.
fn assert_nothing_left(stage: &Stage, tenant: &TenantFixture) {
    let inside = Footprint::of_netns(&tenant.netns).unwrap().to_string();
    for trace in [":9697", "proto 169", "tcx on", " steer "] {
        assert!(!inside.contains(trace), "{trace}:\n{inside}");
    }
    assert_eq!(traces_on_node(&stage.node), [""; 0]);
}
