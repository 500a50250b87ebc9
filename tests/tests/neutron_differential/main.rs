//! Differential
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]
#![expect(missing_docs)]

mod corpus;
mod observe;
mod upstream;

use self::{
    observe::Observation,
    upstream::{Style, Upstream},
};
use metadata_proxy_tests::{
    Agent, Haproxy, Kind, NeutronProxy, Node, TenantFixture, haproxy::Timeouts, neutron,
};
use std::time::Duration;
use uuid::Uuid;

const TIMEOUTS: Timeouts = Timeouts {
    request_head: Duration::from_millis(1500),
    connect: Duration::from_millis(1500),
    client: Duration::from_millis(2000),
    server: Duration::from_millis(2000),
    keep_alive: Duration::from_millis(1500),
};

fn through_haproxy(kind: Kind, style: Style, id: Uuid) -> Vec<Observation> {
    let node = Node::new().unwrap();
    let tenant = TenantFixture::builder(kind).id(id).build(&node).unwrap();
    if kind == Kind::Router {
        neutron::install_rules(&tenant.netns, NeutronProxy::Enabled).unwrap();
    }
    let upstream = Upstream::start(style, &node.directory().join("agent"));
    let _proxy = Haproxy::builder()
        .ipv4_only()
        .timeouts(TIMEOUTS)
        .start(&node, &tenant, &node.directory().join("agent"))
        .unwrap();
    all(&tenant, &upstream)
}

fn through_us(kind: Kind, style: Style, id: Uuid) -> Vec<Observation> {
    let node = Node::new().unwrap();
    let tenant = TenantFixture::builder(kind).id(id).build(&node).unwrap();
    if kind == Kind::Router {
        neutron::install_rules(&tenant.netns, NeutronProxy::Enabled).unwrap();
    }
    let upstream = Upstream::start(style, &node.directory().join("agent"));
    let ms = |d: Duration| format!("\"{}ms\"", d.as_millis());
    let agent = Agent::builder(&node)
        .upstream_agent(&node.directory().join("agent"))
        .set("timeouts.request_head", ms(TIMEOUTS.request_head))
        .set("timeouts.connect", ms(TIMEOUTS.connect))
        .set("timeouts.client", ms(TIMEOUTS.client))
        .set("timeouts.server", ms(TIMEOUTS.server))
        .set("timeouts.keep_alive", ms(TIMEOUTS.keep_alive))
        .start()
        .unwrap();
    agent.wait_served(&tenant).unwrap();
    all(&tenant, &upstream)
}

fn all(tenant: &TenantFixture, upstream: &Upstream) -> Vec<Observation> {
    let cases = corpus::corpus();
    tenant
        .guest()
        .netns
        .run(|| {
            Ok(cases
                .iter()
                .map(|case| {
                    let t = std::time::Instant::now();
                    let o = observe::run(case, upstream);
                    if t.elapsed() > Duration::from_millis(500) {
                        eprintln!("{:?} {}", t.elapsed(), case.name);
                    }
                    o
                })
                .collect())
        })
        .unwrap()
}

#[test]
fn router() {
    let id = Uuid::new_v4();
    let style = if std::env::var_os("SERVER").is_some() {
        Style::Server
    } else {
        Style::Agent
    };
    let kind = if std::env::var_os("NETWORK").is_some() {
        Kind::Network
    } else {
        Kind::Router
    };
    let (theirs, ours) = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| through_haproxy(kind, style, id));
        let ours = scope.spawn(|| through_us(kind, style, id));
        (theirs.join().unwrap(), ours.join().unwrap())
    });
    for ((case, theirs), ours) in corpus::corpus().iter().zip(theirs).zip(ours) {
        println!("== {}", case.name);
        let keys: std::collections::BTreeSet<_> = theirs.keys().chain(ours.keys()).collect();
        for key in keys {
            let (a, b) = (theirs.get(key), ours.get(key));
            if a != b {
                println!("   {key}: {a:?} -> {b:?}");
            }
        }
        println!(
            "   haproxy: {} / {:?} / {:?}",
            theirs["requests"],
            theirs.get("answer 1 status"),
            theirs.get("connection")
        );
    }
}
