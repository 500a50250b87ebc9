//! What is compared: haproxy and the agent in two namespaces of the same shape, in front of upstreams
//! of the same kind.

use std::{thread, time::Duration};

use metadata_proxy_tests::{
    Agent, Haproxy, Kind, NeutronProxy, Node, TenantFixture, haproxy::Timeouts, neutron,
};
use uuid::Uuid;

use crate::{
    corpus::Case,
    observe::{self, Observation},
    upstream::{Style, Upstream},
};

/// Time-outs of both, a twentieth of Neutron's: some cases wait for them.
const TIMEOUTS: Timeouts = Timeouts {
    request_head: Duration::from_millis(1500),
    connect: Duration::from_millis(1500),
    client: Duration::from_millis(1600),
    server: Duration::from_millis(1600),
    keep_alive: Duration::from_millis(1500),
};

/// One pair that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) kind: Kind,
    pub(crate) style: Style,
}

/// All that are compared. Routers are reached by Neutron's `REDIRECT`, networks directly.
pub(crate) const SETTINGS: [Setting; 5] = [
    Setting {
        kind: Kind::Router,
        style: Style::Agent,
    },
    Setting {
        kind: Kind::Network,
        style: Style::Agent,
    },
    Setting {
        kind: Kind::OvnNetwork,
        style: Style::Agent,
    },
    Setting {
        kind: Kind::Router,
        style: Style::Server,
    },
    Setting {
        kind: Kind::Router,
        style: Style::Absent,
    },
];

/// What was observed of the cases through one pair.
pub(crate) struct Compared {
    pub(crate) setting: Setting,
    pub(crate) theirs: Vec<Observation>,
    pub(crate) ours: Vec<Observation>,
}

impl Setting {
    /// Runs the cases through both at once.
    pub(crate) fn compare(self, cases: &[Case]) -> Compared {
        // The same for both: nothing that is told to the upstream may differ.
        let id = Uuid::new_v4();
        let (theirs, ours) = thread::scope(|scope| {
            let theirs = scope.spawn(|| self.through_haproxy(id, cases));
            let ours = scope.spawn(|| self.through_the_agent(id, cases));
            (theirs.join().unwrap(), ours.join().unwrap())
        });
        Compared {
            setting: self,
            theirs,
            ours,
        }
    }

    fn through_haproxy(self, id: Uuid, cases: &[Case]) -> Vec<Observation> {
        let (node, tenant) = self.place(id);
        let socket = node.directory().join("agent");
        let upstream = Upstream::start(self.style, &socket);
        let proxy = Haproxy::builder().ipv4_only().timeouts(TIMEOUTS);
        let _proxy = proxy.start(&node, &tenant, &socket).unwrap();
        observe(&tenant, cases, &upstream)
    }

    fn through_the_agent(self, id: Uuid, cases: &[Case]) -> Vec<Observation> {
        let (node, tenant) = self.place(id);
        let socket = node.directory().join("agent");
        let upstream = Upstream::start(self.style, &socket);
        let time = |time: Duration| format!("\"{}ms\"", time.as_millis());
        let agent = Agent::builder(&node)
            .upstream_agent(&socket)
            .set("timeouts.request_head", time(TIMEOUTS.request_head))
            .set("timeouts.connect", time(TIMEOUTS.connect))
            .set("timeouts.client", time(TIMEOUTS.client))
            .set("timeouts.server", time(TIMEOUTS.server))
            .set("timeouts.keep_alive", time(TIMEOUTS.keep_alive))
            .start()
            .unwrap();
        agent.wait_served(&tenant).unwrap();
        observe(&tenant, cases, &upstream)
    }

    fn place(self, id: Uuid) -> (Node, TenantFixture) {
        let node = Node::new().unwrap();
        let tenant = TenantFixture::builder(self.kind)
            .id(id)
            .build(&node)
            .unwrap();
        if self.kind == Kind::Router {
            neutron::install_rules(&tenant.netns, NeutronProxy::Enabled).unwrap();
        }
        (node, tenant)
    }
}

fn observe(tenant: &TenantFixture, cases: &[Case], upstream: &Upstream) -> Vec<Observation> {
    let tag = tenant.id.to_string();
    tenant
        .guest()
        .netns
        .run(|| Ok(observe::run_all(cases, &tag, upstream)))
        .unwrap()
}
