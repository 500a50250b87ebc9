//! Who asks, what the agent proved about it, and what came back.

use std::time::Duration;

use anyhow::{Context as _, Result};
use metadata_proxy_tests::{Agent, METADATA_V4, Reply, TenantFixture, wait_for};
use serde_json::Value;

const PATH: &str = "/openstack/latest/meta_data.json";

const LOGGED_WITHIN: Duration = Duration::from_secs(5);

/// One way to ask for metadata.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    /// The guest behind the tenant's device, over IPv4.
    GuestV4,
    /// The same guest, over its link-local IPv6 address.
    GuestV6,
    /// A process in the tenant namespace itself.
    Process,
}

/// What became of asking.
#[derive(Debug)]
pub(super) struct Answered {
    /// Who asked.
    pub(super) who: &'static str,
    /// The address it has.
    pub(super) from: String,
    /// The tenant namespace it is in or behind.
    pub(super) namespace: String,
    /// The tenant that the agent proved, by its access log.
    pub(super) identity: String,
    /// The tenant that it should have proved.
    identity_meant: String,
    /// The status of the answer, 0 when there was none.
    pub(super) status: u16,
    /// The name of the instance that it was told it is.
    pub(super) told: String,
    /// The name that it should have been told.
    meant: String,
}

impl Answered {
    /// Whether the agent proved the right tenant and gave that tenant's answer.
    pub(super) fn is_right(&self) -> bool {
        self.status == 200 && self.told == self.meant && self.identity == self.identity_meant
    }
}

impl Asker {
    /// All there are.
    pub(super) const ALL: [Self; 3] = [Self::GuestV4, Self::GuestV6, Self::Process];

    const fn who(self) -> &'static str {
        match self {
            Self::GuestV4 => "guest, IPv4",
            Self::GuestV6 => "guest, IPv6",
            Self::Process => "process inside",
        }
    }

    /// Addresses of the instance that stands for it: each way to ask has one of its own, so that
    /// the answer tells them apart too.
    pub(super) fn addresses(self, tenant: &TenantFixture) -> [String; 1] {
        [match self {
            Self::GuestV4 => tenant.guest().v4.to_string(),
            Self::GuestV6 => tenant.guest().link_local.to_string(),
            // Its connection is brought to the listener over loopback.
            Self::Process => "127.0.0.1".to_owned(),
        }]
    }

    /// Name of the instance that stands for it.
    pub(super) fn name(self, tenant: &TenantFixture) -> String {
        let way = match self {
            Self::GuestV4 => "v4",
            Self::GuestV6 => "v6",
            Self::Process => "process",
        };
        let id = tenant.id.simple().to_string();
        format!("{}-{}-{way}", tenant.kind, &id[..8])
    }

    /// Asks, and looks up what the agent says about it.
    pub(super) fn ask(self, tenant: &TenantFixture, agent: &Agent) -> Result<Answered> {
        let logged = access_events(agent).len();
        let reply = self.curl(tenant)?;
        let event = wait_for("the access event", LOGGED_WITHIN, || {
            // What got no answer has no event either.
            if reply.status == 0 {
                return Ok(Some(Value::Null));
            }
            Ok(access_events(agent).into_iter().nth(logged))
        })?;
        let word = |name: &str| event[name].as_str().unwrap_or("?").to_owned();
        let metadata: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let [from] = self.addresses(tenant);
        Ok(Answered {
            who: self.who(),
            from,
            namespace: shortened(&tenant.netns.name()),
            identity: shortened(&format!("{} {}", word("kind"), word("id"))),
            identity_meant: shortened(&format!("{} {}", tenant.kind, tenant.id)),
            status: reply.status,
            told: metadata["name"].as_str().unwrap_or(&reply.error).to_owned(),
            meant: self.name(tenant),
        })
    }

    fn curl(self, tenant: &TenantFixture) -> Result<Reply> {
        match self {
            Self::GuestV4 => tenant.guest().curl(&format!("{METADATA_V4}{PATH}"), &[]),
            Self::GuestV6 => {
                let guest = tenant.guest();
                guest.curl(&format!("{}{PATH}", guest.metadata_v6()), &[])
            }
            Self::Process => tenant.curl(&format!("{METADATA_V4}{PATH}"), &[]),
        }
        .context("cannot ask")
    }
}

/// The access events in the agent's log, oldest first.
fn access_events(agent: &Agent) -> Vec<Value> {
    agent
        .log()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| event["target"] == "access")
        .collect()
}

/// Cuts the UUID at the end of a text after its first part: enough to tell a few from each other.
fn shortened(text: &str) -> String {
    const UUID: usize = 36;
    const FIRST_PART: usize = 8;
    let cut = text
        .len()
        .checked_sub(UUID - FIRST_PART)
        .and_then(|end| text.get(..end));
    cut.map_or_else(|| text.to_owned(), |start| format!("{start}…"))
}
