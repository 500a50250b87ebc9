//! Guests choose their ports as they like.

use metadata_proxy_tests::{
    Agent, Kind, METADATA_V4, MetadataAgent, NeutronProxy, Node, TenantFixture, neutron,
};

/// The agent closes first, so that its end of the first connection lingers in `TIME_WAIT`.
const CLOSES: [&str; 4] = ["--header", "Connection: close", "--local-port", "40001"];

/// Over IPv6 it may have to send its SYN twice, since link-local connections are bound to their
/// device anyway; and not at all where a `REDIRECT` hides what is in the way.
#[test]
fn a_guest_uses_its_port_again_at_once() {
    let node = Node::new().unwrap();
    let upstream = MetadataAgent::builder()
        .start(&node.directory().join("agent"))
        .unwrap();
    for rules in [
        None,
        Some(NeutronProxy::Disabled),
        Some(NeutronProxy::Enabled),
    ] {
        let tenant = TenantFixture::new(&node, Kind::Router).unwrap();
        if let Some(rules) = rules {
            neutron::install_rules(&tenant.netns, rules).unwrap();
        }
        let agent = Agent::builder(&node)
            .upstream_agent(upstream.socket())
            .start()
            .unwrap();
        agent.wait_served(&tenant).unwrap();
        let guest = tenant.guest();
        let v6 = guest.metadata_v6();
        let urls = match rules {
            Some(NeutronProxy::Enabled) => vec![METADATA_V4],
            _ => vec![METADATA_V4, &v6],
        };
        for url in urls {
            for time in 1..=3 {
                let mut arguments = CLOSES.to_vec();
                arguments.extend(["--max-time", "3"]);
                let reply = guest.curl(url, &arguments).unwrap();
                assert_eq!(
                    reply.status, 200,
                    "{url}, {rules:?}, time {time}: {reply:?}"
                );
            }
        }
    }
}
