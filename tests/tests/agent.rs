//! The agent as a fixture: it starts, serves, and leaves nothing behind.

use std::time::Duration;

use metadata_proxy_tests::{
    Agent, Footprint, Kind, METADATA_V4, MetadataAgent, Node, TenantFixture, process::is_alive,
};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn guests_and_processes_of_every_kind_are_served_and_tagged() {
    let node = Node::new().unwrap();
    let upstream = MetadataAgent::builder()
        .start(&node.directory().join("agent"))
        .unwrap();
    let tenants = Kind::ALL.map(|kind| TenantFixture::new(&node, kind).unwrap());
    let agent = Agent::builder(&node)
        .upstream_agent(upstream.socket())
        .start()
        .unwrap();
    for tenant in &tenants {
        agent.wait_served(tenant).unwrap();
        let guest = tenant.guest();
        let tag = format!("{}={}", tenant.kind.tag_name(), tenant.id);
        let v4 = guest.curl(METADATA_V4, &[]).unwrap();
        assert_eq!(v4.text(), format!("{tag} from={}", guest.v4), "{v4:?}");
        let v6 = guest.curl(&guest.metadata_v6(), &[]).unwrap();
        assert_eq!(
            v6.text(),
            format!("{tag} from={}", guest.link_local),
            "{v6:?}"
        );
        let process = tenant.curl(METADATA_V4, &[]).unwrap();
        assert!(process.text().starts_with(&tag), "{process:?}");
    }
}

#[test]
fn an_agent_is_gone_with_all_that_it_added() {
    let node = Node::new().unwrap();
    let upstream = MetadataAgent::builder()
        .start(&node.directory().join("agent"))
        .unwrap();
    let tenant = TenantFixture::new(&node, Kind::Router).unwrap();
    let look_inside = || Footprint::of_netns(&tenant.netns);
    let look_at_node = || Footprint::of_node(&node);
    let (inside, at_node) = (look_inside().unwrap(), look_at_node().unwrap());
    let mut agent = Agent::builder(&node)
        .upstream_agent(upstream.socket())
        .start()
        .unwrap();
    agent.wait_served(&tenant).unwrap();
    assert_ne!(look_inside().unwrap().beyond(&inside), [""; 0]);
    assert_ne!(look_at_node().unwrap().beyond(&at_node), [""; 0]);
    let status = agent.stop().unwrap();
    assert!(status.success(), "{status}: {}", agent.log());
    assert!(!is_alive(agent.pid()));
    Footprint::wait_for_return(&inside, SOON, look_inside).unwrap();
    Footprint::wait_for_return(&at_node, SOON, look_at_node).unwrap();
}
