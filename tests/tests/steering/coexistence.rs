//! A node that is being migrated: the haproxies Neutron started are still there.

use metadata_proxy_tests::{
    Connection, Haproxy, Kind, MetadataAgent, NeutronProxy, Node, TenantFixture, haproxy, neutron,
};

use metadata_proxy_tests::stage::{Stage, assert_served, assert_served_twice, told};

/// A tenant with an haproxy that has an upstream of its own, and connections open to it.
struct Before {
    tenant: TenantFixture,
    haproxy: Haproxy,
    upstream: MetadataAgent,
    open: Vec<Connection>,
}

impl Before {
    fn new(
        node: &Node,
        kind: Kind,
        configure: impl FnOnce(haproxy::Builder) -> haproxy::Builder,
    ) -> Self {
        let tenant = TenantFixture::new(node, kind).unwrap();
        if kind == Kind::Router {
            neutron::install_rules(&tenant.netns, NeutronProxy::Enabled).unwrap();
        }
        let upstream = MetadataAgent::builder()
            .start(&node.directory().join("agent-of-haproxy"))
            .unwrap();
        let haproxy = configure(Haproxy::builder())
            .start(node, &tenant, upstream.socket())
            .unwrap();
        Self {
            tenant,
            haproxy,
            upstream,
            open: Vec::new(),
        }
    }

    fn connect(&mut self, connection: Connection) {
        self.open.push(connection);
        self.assert_open_connections_stay_with_haproxy();
    }

    fn assert_open_connections_stay_with_haproxy(&mut self) {
        for connection in &mut self.open {
            self.upstream.forget();
            assert_eq!(connection.get("/").unwrap().status, 200);
            assert_eq!(
                self.upstream.requests().len(),
                1,
                "haproxy asked its upstream"
            );
        }
        self.upstream.forget();
    }
}

#[test]
fn haproxy_on_the_metadata_address_keeps_its_connections_and_gets_no_new_ones() {
    for kind in [Kind::Network, Kind::OvnNetwork] {
        let node = Node::new().unwrap();
        let mut before = Before::new(&node, kind, |haproxy| haproxy);
        let (v4, v6) = {
            let guest = before.tenant.guest();
            (
                Connection::v4(guest).unwrap(),
                Connection::v6(guest).unwrap(),
            )
        };
        before.connect(v4);
        before.connect(v6);

        let mut stage = Stage::on(node, |agent| agent);
        assert_served_twice(&before.tenant);
        assert_eq!(
            stage.take_requests().len(),
            2,
            "{kind}: new connections come to us"
        );
        before.assert_open_connections_stay_with_haproxy();

        // Whoever rolls back gets back what was there.
        assert!(stage.agent.stop().unwrap().success());
        assert_served_twice(&before.tenant);
        assert_eq!(before.upstream.requests().len(), 2, "{kind}");
        before.assert_open_connections_stay_with_haproxy();
    }
}

#[test]
fn haproxy_behind_neutrons_redirect_keeps_its_connections_and_gets_no_new_ones() {
    let node = Node::new().unwrap();
    let mut before = Before::new(&node, Kind::Router, haproxy::Builder::ipv4_only);
    let connection = Connection::v4(before.tenant.guest()).unwrap();
    before.connect(connection);

    let stage = Stage::on(node, |agent| agent);
    for _ in 0..8 {
        assert_served(&before.tenant);
    }
    assert_eq!(stage.take_requests().len(), 8, "new connections come to us");
    before.assert_open_connections_stay_with_haproxy();
}

#[test]
fn haproxy_on_our_own_port_may_share_but_nobody_gets_a_wrong_answer() {
    let node = Node::new().unwrap();
    let mut before = Before::new(&node, Kind::Router, |haproxy| haproxy);
    let (v4, v6) = {
        let guest = before.tenant.guest();
        (
            Connection::v4(guest).unwrap(),
            Connection::v6(guest).unwrap(),
        )
    };
    before.connect(v4);
    before.connect(v6);

    let stage = Stage::on(node, |agent| agent);
    let guest = before.tenant.guest();
    for _ in 0..8 {
        let reply = Connection::v4(guest).unwrap().get("/").unwrap();
        // haproxy has a socket for both families, so it sees IPv4 guests as mapped addresses.
        let text = reply.text().replace("::ffff:", "");
        assert_eq!(text, told(&before.tenant, guest.v4), "{reply:?}");
        let reply = Connection::v6(guest).unwrap().get("/").unwrap();
        assert_eq!(
            reply.text(),
            told(&before.tenant, guest.link_local),
            "{reply:?}"
        );
    }
    let ours = stage.take_requests().len();
    assert_eq!(ours + before.upstream.requests().len(), 16);
    before.assert_open_connections_stay_with_haproxy();

    // Once haproxy has ended, all are ours.
    before.open.clear();
    before.haproxy.stop().unwrap();
    for _ in 0..8 {
        assert_served_twice(&before.tenant);
    }
    assert_eq!(stage.take_requests().len(), 16);
}
