//! Every engine serves, tells tenants apart and leaves nothing behind; `check` and `status` say
//! which one it is.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use metadata_proxy_tests::{
    Connection, Footprint, Kind, METADATA_V4, NeutronProxy, Node, TenantFixture,
    agent::quoted,
    neutron, process,
    stage::{SOON, Stage, assert_identified, assert_served_twice, traces_on_node},
};

const ENGINES: [&str; 3] = ["tc", "sk-lookup", "bind"];

/// A stage with this engine.
fn stage_with(engine: &str) -> Stage {
    Stage::with(|agent| agent.set("steering.engine", quoted(engine)))
}

/// Guests of every kind, over both families, and processes of the namespace.
fn serves_everybody(engine: &str) {
    let stage = stage_with(engine);
    // All have the same addresses.
    let tenants = Kind::ALL.map(|kind| stage.tenant(kind));
    for tenant in &tenants {
        assert_served_twice(tenant);
        stage.take_requests();
        for (url, from) in [
            (METADATA_V4, "127.0.0.1"),
            ("http://[fe80::a9fe:a9fe]", "::1"),
        ] {
            let reply = tenant.curl(url, &[]).unwrap();
            assert_eq!(reply.status, 200, "{engine} {}: {reply:?}", tenant.kind);
            let requests = stage.take_requests();
            assert_eq!(requests.len(), 1);
            assert_identified(&requests[0], tenant, from);
        }
    }
}

#[test]
fn tc_serves_everybody() {
    serves_everybody("tc");
}

#[test]
fn sk_lookup_serves_everybody() {
    serves_everybody("sk-lookup");
}

#[test]
fn bind_serves_everybody() {
    serves_everybody("bind");
}

#[test]
fn every_engine_serves_beside_neutrons_rules() {
    for engine in ENGINES {
        for proxy in [NeutronProxy::Enabled, NeutronProxy::Disabled] {
            let stage = stage_with(engine);
            let tenant = TenantFixture::new(&stage.node, Kind::Router).unwrap();
            neutron::install_rules(&tenant.netns, proxy).unwrap();
            assert_served_twice(&stage.served(tenant));
        }
    }
}

#[test]
fn the_same_five_tuple_in_two_tenants_leads_to_each_its_own() {
    for engine in ENGINES {
        let stage = stage_with(engine);
        let tenants = [stage.tenant(Kind::Router), stage.tenant(Kind::Network)];
        let mut connections = tenants.each_ref().map(|tenant| {
            let to = "169.254.169.254:80".parse().unwrap();
            Connection::open_from(&tenant.guest().netns, 45_678, to).unwrap()
        });
        // Both are open at the same time, and used in turn.
        for _ in 0..3 {
            for (tenant, connection) in tenants.iter().zip(&mut connections) {
                assert_eq!(connection.get("/").unwrap().status, 200);
                let requests = stage.take_requests();
                assert_eq!(requests.len(), 1);
                assert_identified(&requests[0], tenant, tenant.guest().v4);
            }
        }
    }
}

#[test]
fn what_is_not_steered_is_refused_by_every_engine() {
    for engine in ENGINES {
        let stage = stage_with(engine);
        let tenant = stage.tenant(Kind::Router);
        let to = "10.0.0.1:9697".parse().unwrap();
        // No engine but `bind` needs to be refused: it may have no listener there at all.
        if let Ok(mut connection) = Connection::open(&tenant.guest().netns, to) {
            let _ = connection.send("GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
            assert_eq!(connection.rest().unwrap(), b"", "{engine}");
        }
        assert_eq!(stage.take_requests(), [], "{engine}");
        assert_served_twice(&tenant);
    }
}

#[test]
fn every_engine_leaves_nothing_behind() {
    for engine in ENGINES {
        let node = Node::new().unwrap();
        let tenants = Kind::ALL.map(|kind| TenantFixture::new(&node, kind).unwrap());
        let before = tenants
            .each_ref()
            .map(|tenant| Footprint::of_netns(&tenant.netns).unwrap());
        let mut stage = Stage::on(node, |agent| agent.set("steering.engine", quoted(engine)));
        for tenant in &tenants {
            stage.agent.wait_served(tenant).unwrap();
        }
        assert!(stage.agent.stop().unwrap().success());
        for (tenant, before) in tenants.iter().zip(&before) {
            Footprint::wait_for_return(before, SOON, || Footprint::of_netns(&tenant.netns))
                .unwrap();
        }
        assert_eq!(
            traces_on_node(&stage.node),
            Vec::<String>::new(),
            "{engine}"
        );
    }
}

#[test]
fn check_and_status_say_which_engine_it_is() {
    for engine in ENGINES {
        let stage = stage_with(engine);
        let status = stage.agent.admin_json("/v1/status").unwrap();
        assert_eq!(status["engine"]["name"], engine, "{status}");
        // It may object to something else, such as sockets that the running agent has.
        let mut check = stage.agent.command(&["check", "--output", "json"]);
        let output = process::output(&mut check).unwrap();
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut items = told["items"].as_array().unwrap().iter();
        let item = items.find(|item| item["check"] == "engine").unwrap();
        let found = item["found"].as_str().unwrap();
        assert_eq!(found.split(' ').next(), Some(engine), "{item}");
    }
}
