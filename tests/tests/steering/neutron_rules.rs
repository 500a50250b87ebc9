//! Neutron's firewall rules in router namespaces, with and without its own proxy.

use metadata_proxy_tests::{
    Footprint, Kind, METADATA_V4, NeutronProxy, Node, TenantFixture, neutron,
};

use metadata_proxy_tests::stage::{SOON, Stage, assert_identified, assert_served_twice};

const BOTH: [NeutronProxy; 2] = [NeutronProxy::Enabled, NeutronProxy::Disabled];

fn router_with_rules(node: &Node, proxy: NeutronProxy) -> TenantFixture {
    let tenant = TenantFixture::new(node, Kind::Router).unwrap();
    neutron::install_rules(&tenant.netns, proxy).unwrap();
    tenant
}

#[test]
fn guests_behind_neutrons_rules_are_served() {
    for proxy in BOTH {
        let stage = Stage::new();
        let tenant = stage.served(router_with_rules(&stage.node, proxy));
        assert_served_twice(&tenant);
        let requests = stage.take_requests();
        let guest = tenant.guest();
        assert_identified(&requests[0], &tenant, guest.v4);
        assert_identified(&requests[1], &tenant, guest.link_local);
    }
}

#[test]
fn rules_that_come_and_go_under_a_served_router_interrupt_nobody() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    assert_served_twice(&tenant);
    for proxy in BOTH {
        neutron::install_rules(&tenant.netns, proxy).unwrap();
        assert_served_twice(&tenant);
    }
    for restore in ["iptables-restore", "ip6tables-restore"] {
        let empty = "*nat\nCOMMIT\n*mangle\nCOMMIT\n*filter\nCOMMIT\n";
        tenant.netns.feed(restore, &[], empty).unwrap();
    }
    assert_served_twice(&tenant);
}

#[test]
fn processes_behind_neutrons_rules_are_served() {
    for proxy in BOTH {
        let stage = Stage::new();
        let tenant = stage.served(router_with_rules(&stage.node, proxy));
        // INPUT drops what reaches the port without Neutron's mark, which the hooks set.
        for url in [METADATA_V4, "http://[fe80::a9fe:a9fe]"] {
            let reply = tenant.curl(url, &["--max-time", "5"]).unwrap();
            assert_eq!(reply.status, 200, "{proxy:?} {url}: {reply:?}");
        }
        assert_eq!(stage.take_requests().len(), 2);
    }
}

#[test]
fn the_guarded_port_stays_guarded() {
    for proxy in BOTH {
        let stage = Stage::new();
        let tenant = stage.served(router_with_rules(&stage.node, proxy));
        let direct = tenant
            .guest()
            .curl("http://10.0.0.1:9697/", &["--max-time", "0.5"])
            .unwrap();
        assert_eq!(direct.status, 0, "{proxy:?}: {direct:?}");
        assert_eq!(stage.take_requests(), []);
    }
}

#[test]
fn neutrons_rules_are_left_as_they_were() {
    let mut stage = Stage::new();
    let tenant = router_with_rules(&stage.node, NeutronProxy::Enabled);
    let look = || {
        let saved = ["iptables-save", "ip6tables-save"].map(|save| {
            metadata_proxy_tests::process::run(&mut tenant.netns.command(save).unwrap()).unwrap()
        });
        saved
            .concat()
            .lines()
            .filter(|line| line.starts_with("-A"))
            .map(str::to_owned)
            .collect()
    };
    let before: Vec<String> = look();
    stage.agent.wait_served(&tenant).unwrap();
    assert_served_twice(&tenant);
    assert_eq!(look(), before);
    let served = Footprint::of_netns(&tenant.netns).unwrap();
    stage.agent.stop().unwrap();
    assert_eq!(look(), before);
    let now = Footprint::of_netns(&tenant.netns).unwrap();
    assert!(!served.beyond(&now).is_empty(), "what was added is gone");
    Footprint::wait_for_return(&now, SOON, || Footprint::of_netns(&tenant.netns)).unwrap();
}
