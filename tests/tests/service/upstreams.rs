//! The upstream fails in every way it can; guests are told which.

use std::fs;

use metadata_proxy_tests::{
    Agent, Connection, HttpAgent, Kind, METADATA_V4, MetadataAgent, Node, TenantFixture, Web,
    metadata_agent::{self, Answer},
    wait_until,
};
use uuid::Uuid;

use metadata_proxy_tests::stage::{SOON, Stage, assert_served, builder, told, upstream};

fn failures(agent: &Agent, reason: &str) -> f64 {
    let name = "metadata_proxy_request_failures_total";
    agent.metric(name, &[("reason", reason)]).unwrap()
}

#[test]
fn no_upstream_is_503_after_a_while_and_served_when_it_is_back() {
    let node = Node::new().unwrap();
    let socket = node.directory().join("agent");
    let agent = Agent::builder(&node)
        .upstream_agent(&socket)
        .set("timeouts.connect", "\"300ms\"")
        .start()
        .unwrap();
    let tenant = TenantFixture::new(&node, Kind::Router).unwrap();
    agent.wait_served(&tenant).unwrap();
    let reply = tenant.guest().curl(METADATA_V4, &[]).unwrap();
    assert_eq!(reply.status, 503);
    assert!(reply.text().contains("cannot be reached"), "{reply:?}");
    assert!(
        !reply.text().contains("/run"),
        "no business of the guest's: {reply:?}"
    );
    // A socket file that nobody listens on is no upstream either.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert_eq!(tenant.guest().curl(METADATA_V4, &[]).unwrap().status, 503);
    assert!(failures(&agent, "upstream_unreachable") >= 2.0);
    let status = agent.admin_json("/v1/status").unwrap();
    let error = status["upstream"]["last_error"]["message"]
        .as_str()
        .unwrap();
    assert!(error.contains(&socket.display().to_string()), "{error}");

    fs::remove_file(&socket).unwrap();
    let _upstream = MetadataAgent::builder().start(&socket).unwrap();
    assert_served(&tenant);
}

#[test]
fn an_http_upstream_on_a_unix_socket_is_asked_over_one_connection_again_and_again() {
    const TIMES: u64 = 10;
    let node = Node::new().unwrap();
    let socket = node.directory().join("http");
    let upstream = HttpAgent::start(&socket, false, metadata_agent::who_asked).unwrap();
    let agent = Agent::builder(&node)
        .upstream_http(&format!("unix:{}", socket.display()))
        .set("workers", "2")
        .start()
        .unwrap();
    let tenants = [Kind::Router, Kind::Network].map(|kind| {
        let tenant = TenantFixture::new(&node, kind).unwrap();
        agent.wait_served(&tenant).unwrap();
        tenant
    });
    for _ in 0..TIMES {
        tenants.iter().for_each(assert_served);
    }
    let (requests, connections) = upstream.totals();
    assert_eq!(requests, 2 * TIMES);
    // One for each worker, at most.
    assert!(connections <= 2, "{connections} connections");

    drop(upstream);
    let reply = tenants[0].guest().curl(METADATA_V4, &[]).unwrap();
    assert!(reply.status >= 500, "{reply:?}");
    let _upstream = HttpAgent::start(&socket, false, metadata_agent::who_asked).unwrap();
    wait_until("an answer", SOON, || {
        tenants[1].guest().curl(METADATA_V4, &[]).unwrap().status == 200
    })
    .unwrap();
    tenants.iter().for_each(assert_served);
}

#[test]
fn an_upstream_that_restarts_is_waited_for() {
    let mut stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let socket = stage.upstream.socket().to_owned();
    // It is replaced while a guest asks: the guest notices nothing.
    stage.upstream = MetadataAgent::builder()
        .start(&stage.node.directory().join("other"))
        .unwrap();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| tenant.guest().curl(METADATA_V4, &["--max-time", "15"]));
        wait_until("a retry", SOON, || {
            let retries = [("reason", "absent")];
            stage
                .agent
                .metric("metadata_proxy_upstream_retries", &retries)
                .unwrap()
                >= 1.0
        })
        .unwrap();
        let _back = MetadataAgent::builder().start(&socket).unwrap();
        let reply = asking.join().unwrap().unwrap();
        assert_eq!(reply.text(), told(&tenant, tenant.guest().v4), "{reply:?}");
    });
}

#[test]
fn an_upstream_that_closes_without_a_word_is_502() {
    let stage = Stage::answering(|agent| agent, |_| Answer::Silence);
    let tenant = stage.tenant(Kind::Network);
    let reply = tenant.guest().curl(METADATA_V4, &[]).unwrap();
    assert_eq!(reply.status, 502, "{reply:?}");
    assert!(reply.text().contains("no valid answer"), "{reply:?}");
    assert!(failures(&stage.agent, "upstream_garbled") >= 1.0);
}

#[test]
fn an_upstream_that_is_too_slow_is_504() {
    let (stage, gate) = Stage::gated(|agent| agent.set("timeouts.server", "\"200ms\""));
    let tenant = stage.tenant(Kind::OvnNetwork);
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    let reply = connection.get("/").unwrap();
    assert_eq!(reply.status, 504, "{reply:?}");
    assert!(reply.text().contains("in time"), "{reply:?}");
    assert!(failures(&stage.agent, "upstream_timeout") >= 1.0);
    gate.open();
    assert_eq!(
        connection.get("/").unwrap().status,
        200,
        "on the same connection"
    );
}

#[test]
fn what_the_upstream_answers_is_passed_on_whatever_it_is() {
    let stage = Stage::answering(
        |agent| agent,
        |request| match request.target.trim_start_matches('/').parse() {
            Ok(status) => Answer::Nova {
                status,
                body: b"as nova said".to_vec(),
            },
            Err(_) => Answer::OwnPage {
                status: 404,
                title: "Not Found",
            },
        },
    );
    let tenant = stage.tenant(Kind::Router);
    for status in [200_u16, 400, 403, 404, 409, 500, 502, 503, 504] {
        let url = format!("{METADATA_V4}/{status}");
        let reply = tenant.guest().curl(&url, &[]).unwrap();
        assert_eq!((reply.status, &*reply.text()), (status, "as nova said"));
    }
    // Its own page, with bare line feeds and without the end of the connection being told.
    let reply = tenant
        .guest()
        .curl(&format!("{METADATA_V4}/own"), &[])
        .unwrap();
    assert_eq!(reply.status, 404);
    assert!(reply.text().contains("<h1>Not Found</h1>"), "{reply:?}");
}

#[test]
fn one_slow_tenant_does_not_hold_up_another_where_the_upstream_has_room() {
    let (stage, gate) = {
        let gate = metadata_proxy_tests::Gate::new();
        let barrier = gate.barrier();
        let stage = Stage::answering(
            |agent| agent.set("queue.max_in_flight", 4),
            move |request| {
                if request.target == "/slow" {
                    barrier.pass();
                }
                Answer::ok("done")
            },
        );
        (stage, gate)
    };
    let (slow, quick) = (stage.tenant(Kind::Router), stage.tenant(Kind::Router));
    let mut waiting = Connection::v4(slow.guest()).unwrap();
    waiting
        .send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    gate.wait_arrived(1).unwrap();
    for _ in 0..5 {
        let reply = quick.guest().curl(METADATA_V4, &[]).unwrap();
        assert_eq!(reply.text(), "done", "{reply:?}");
    }
    gate.open();
    assert_eq!(waiting.answer().unwrap().text(), "done");
}

#[test]
fn an_http_upstream_is_asked_with_the_tag() {
    let node = Node::new().unwrap();
    let unused = upstream(&node);
    let host = metadata_proxy_tests::Netns::hidden(&node, "host").unwrap();
    let host = std::sync::Arc::new(host);
    let web = Web::start(&host, "127.0.0.1:8775".parse().unwrap(), "over TCP").unwrap();
    let tenant = TenantFixture::new(&node, Kind::Network).unwrap();
    let agent = builder(&node, &unused)
        .inside(std::sync::Arc::clone(&host))
        .upstream_http("127.0.0.1:8775")
        .start()
        .unwrap();
    agent.wait_served(&tenant).unwrap();
    for _ in 0..3 {
        let reply = tenant.guest().curl(METADATA_V4, &[]).unwrap();
        assert_eq!(reply.text(), "over TCP", "{reply:?}");
    }
    for request in web.requests() {
        let lines: Vec<_> = request.lines().map(str::to_ascii_lowercase).collect();
        assert_eq!(lines[1], format!("x-neutron-network-id: {}", tenant.id));
        assert_eq!(lines[2], format!("x-forwarded-for: {}", tenant.guest().v4));
    }
    assert_eq!(unused.requests(), []);
}

#[test]
fn the_embedded_upstream_answers_each_guest_and_nobody_else() {
    let node = Node::new().unwrap();
    let file = node.directory().join("instances.yaml");
    let tenant = TenantFixture::builder(Kind::OvnNetwork)
        .guests(2)
        .build(&node)
        .unwrap();
    let id = Uuid::new_v4();
    let instances = |hostname: &str| {
        format!(
            "tenants:\n  - ovn-network: {}\n    instances:\n      - addresses: [10.0.0.5]\n        \
             uuid: {id}\n        name: one\n        hostname: {hostname}\n",
            tenant.id
        )
    };
    fs::write(&file, instances("first")).unwrap();
    let agent = Agent::builder(&node)
        .upstream_embedded(&file)
        .start()
        .unwrap();
    agent.wait_served(&tenant).unwrap();
    let [known, unknown] = &tenant.subnets[0].guests[..] else {
        panic!("two guests")
    };
    let url = format!("{METADATA_V4}/openstack/latest/meta_data.json");
    let reply = known.curl(&url, &[]).unwrap();
    let data: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(data["uuid"], id.to_string());
    assert_eq!(unknown.curl(&url, &[]).unwrap().status, 404);

    // A broken edit keeps what was there, and says where it is wrong; a good one is served.
    let hostname = || {
        let url = format!("{METADATA_V4}/latest/meta-data/hostname");
        known.curl(&url, &[]).unwrap().text()
    };
    fs::write(&file, "tenants: [oh no").unwrap();
    wait_until("a complaint", SOON, || {
        agent.log().contains("instances.yaml")
    })
    .unwrap();
    assert_eq!(hostname(), "first");
    fs::write(&file, instances("second")).unwrap();
    wait_until("the new name", SOON, || hostname() == "second").unwrap();
}
