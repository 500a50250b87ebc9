//! The `TENANTS` map: the contract with whoever else declares tenants.

use metadata_proxy_tests::{
    Connection, Kind, METADATA_V4, TenantFixture, tenant_map, tenant_map::Entry, wait_until,
};
use uuid::Uuid;

use metadata_proxy_tests::stage::{SOON, Stage, assert_not_served, assert_served_twice};

fn wait_refused(tenant: &TenantFixture) {
    wait_until("a refusal", SOON, || {
        let reply = tenant
            .guest()
            .curl(METADATA_V4, &["--max-time", "2"])
            .unwrap();
        reply.status == 0
    })
    .unwrap();
}

/// A namespace whose name says nothing.
fn nameless(stage: &Stage) -> TenantFixture {
    TenantFixture::builder(Kind::Router)
        .name("by-map-only")
        .build(&stage.node)
        .unwrap()
}

#[test]
fn the_map_holds_exactly_the_namespaces_that_are_served() {
    let stage = Stage::new();
    let tenants = Kind::ALL.map(|kind| stage.tenant(kind));
    let _stranger = nameless(&stage);
    let map = tenant_map::read(&stage.node).unwrap();
    assert_eq!(map.len(), tenants.len());
    for tenant in &tenants {
        let entry = map[&tenant_map::cookie(&tenant.netns).unwrap()];
        let expected = Entry {
            kind: tenant.kind,
            id: tenant.id,
            is_of_agent: true,
        };
        assert_eq!(entry, expected);
        let status = stage.agent.tenant(tenant).unwrap().unwrap();
        assert_eq!(
            status["netns_cookie"],
            tenant_map::cookie(&tenant.netns).unwrap()
        );
    }
    let [first, ..] = tenants;
    let (kind, id) = (first.kind, first.id);
    drop(first);
    stage.agent.wait_gone(kind, id).unwrap();
    assert_eq!(tenant_map::read(&stage.node).unwrap().len(), 2);
}

#[test]
fn a_declaration_of_somebody_else_is_served_and_left_to_them() {
    let stage = Stage::new();
    let tenant = nameless(&stage);
    assert_not_served(tenant.guest());
    let cookie = tenant_map::cookie(&tenant.netns).unwrap();
    let entry = Entry {
        kind: tenant.kind,
        id: tenant.id,
        is_of_agent: false,
    };
    tenant_map::write(&stage.node, cookie, entry).unwrap();
    stage.agent.wait_served(&tenant).unwrap();
    assert_served_twice(&tenant);
    let status = stage.agent.tenant(&tenant).unwrap().unwrap();
    assert_eq!(status["provider"], "map");

    // Theirs to change: the new tenant is served in the old one's place.
    let changed = Entry {
        id: Uuid::new_v4(),
        ..entry
    };
    tenant_map::write(&stage.node, cookie, changed).unwrap();
    wait_until("the new tenant", SOON, || {
        let reply = tenant
            .guest()
            .curl(METADATA_V4, &["--max-time", "2"])
            .unwrap();
        reply.text().contains(&changed.id.to_string())
    })
    .unwrap();
    assert_eq!(tenant_map::read(&stage.node).unwrap()[&cookie], changed);

    // And theirs to take back.
    tenant_map::delete(&stage.node, cookie).unwrap();
    stage.agent.wait_gone(tenant.kind, changed.id).unwrap();
    wait_refused(&tenant);
}

#[test]
fn a_declaration_of_somebody_else_outlives_the_agent() {
    let mut stage = Stage::new();
    let tenant = nameless(&stage);
    let cookie = tenant_map::cookie(&tenant.netns).unwrap();
    let entry = Entry {
        kind: tenant.kind,
        id: tenant.id,
        is_of_agent: false,
    };
    tenant_map::write(&stage.node, cookie, entry).unwrap();
    stage.agent.wait_served(&tenant).unwrap();
    let ours = stage.tenant(Kind::Network);
    assert!(stage.agent.stop().unwrap().success());
    let map = tenant_map::read(&stage.node).unwrap();
    assert_eq!(map.into_iter().collect::<Vec<_>>(), [(cookie, entry)]);
    drop(ours);

    stage.agent = metadata_proxy_tests::stage::builder(&stage.node, &stage.upstream)
        .start()
        .unwrap();
    stage.agent.wait_served(&tenant).unwrap();
    assert_served_twice(&tenant);
    tenant_map::delete(&stage.node, cookie).unwrap();
    assert!(stage.agent.stop().unwrap().success());
    assert!(
        !tenant_map::path(&stage.node).exists(),
        "nobody needs it any more"
    );
}

#[test]
fn a_declaration_of_somebody_else_is_left_to_them_where_the_name_says_the_same() {
    let mut stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let cookie = tenant_map::cookie(&tenant.netns).unwrap();
    let entry = Entry {
        kind: tenant.kind,
        id: tenant.id,
        is_of_agent: false,
    };
    tenant_map::write(&stage.node, cookie, entry).unwrap();
    // Declared anew by an agent that finds it.
    stage.agent.crash().unwrap();
    stage.agent = metadata_proxy_tests::stage::builder(&stage.node, &stage.upstream)
        .start()
        .unwrap();
    assert_served_twice(&tenant);
    assert_eq!(tenant_map::read(&stage.node).unwrap()[&cookie], entry);
    assert!(stage.agent.stop().unwrap().success());
    assert_eq!(tenant_map::read(&stage.node).unwrap()[&cookie], entry);
}

#[test]
fn a_namespace_that_somebody_else_gave_to_another_tenant_is_failing_until_they_take_it_back() {
    let mut stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let cookie = tenant_map::cookie(&tenant.netns).unwrap();
    let other = Entry {
        kind: Kind::Network,
        id: Uuid::new_v4(),
        is_of_agent: false,
    };
    tenant_map::write(&stage.node, cookie, other).unwrap();
    stage.agent.crash().unwrap();
    stage.agent = metadata_proxy_tests::stage::builder(&stage.node, &stage.upstream)
        .start()
        .unwrap();
    wait_until("a failing tenant", SOON, || {
        let status = stage.agent.tenant(&tenant).unwrap();
        status.is_some_and(|status| status["state"] == "failing")
    })
    .unwrap();
    let status = stage.agent.tenant(&tenant).unwrap().unwrap();
    let reason = status["reason"].as_str().unwrap();
    assert!(reason.contains(&other.id.to_string()), "{reason}");
    assert_not_served(tenant.guest());
    assert_eq!(tenant_map::read(&stage.node).unwrap()[&cookie], other);
    tenant_map::delete(&stage.node, cookie).unwrap();
    stage.agent.wait_served(&tenant).unwrap();
    assert_served_twice(&tenant);
}

#[test]
fn a_connection_is_refused_when_the_map_names_another_tenant() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let cookie = tenant_map::cookie(&tenant.netns).unwrap();
    let right = tenant_map::read(&stage.node).unwrap()[&cookie];
    let mut earlier = Connection::v4(tenant.guest()).unwrap();
    assert_eq!(earlier.get("/").unwrap().status, 200);
    stage.take_requests();
    let other = Entry {
        kind: Kind::Router,
        id: Uuid::new_v4(),
        is_of_agent: true,
    };
    tenant_map::write(&stage.node, cookie, other).unwrap();
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    let _ = connection.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(connection.rest().unwrap(), b"");
    assert_eq!(stage.take_requests(), [], "neither as one nor as the other");
    let refused = |reason| {
        let name = "metadata_proxy_connections_refused_total";
        stage.agent.metric(name, &[("reason", reason)]).unwrap()
    };
    assert!(refused("other_tenant") >= 1.0);
    // The refusal has the entry put right, which may not come after the next change.
    wait_until("the right entry", SOON, || {
        tenant_map::read(&stage.node).unwrap().get(&cookie) == Some(&right)
    })
    .unwrap();

    tenant_map::delete(&stage.node, cookie).unwrap();
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    let _ = connection.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(connection.rest().unwrap(), b"");
    assert!(refused("no_tenant") >= 1.0);
    assert_eq!(stage.take_requests(), []);
}
