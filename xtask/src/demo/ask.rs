//! Who asks, and where the agent tells what it proved about them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use metadata_proxy_tests::{Agent, METADATA_V4, Reply, wait_for};
use serde_json::Value;

use super::{
    answer::{Answer, Identity},
    stage::Member,
};

/// What they ask for.
pub(super) const PATH: &str = "/openstack/latest/meta_data.json";

/// The address that a process in a tenant namespace asks from.
pub(super) const PROCESS: &str = "127.0.0.1";

/// Lets curl tell the time that it took, apart from what it got.
const TIMED: [&str; 2] = ["--write-out", "%{stderr}\n%{time_total}"];

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

    /// Asks, and looks up what the agent says about it.
    pub(super) fn ask(self, member: &Member, agent: &Agent) -> Result<Answer> {
        let tenant = &member.tenant;
        let guest = tenant.guest();
        let v4 = format!("{METADATA_V4}{PATH}");
        let logged = access_events(agent).len();
        let (reply, from, meant) = match self {
            Self::GuestV4 => (
                guest.curl(&v4, &TIMED),
                guest.v4.to_string(),
                member.guest.to_owned(),
            ),
            Self::GuestV6 => (
                guest.curl(&format!("{}{PATH}", guest.metadata_v6()), &TIMED),
                guest.link_local.to_string(),
                member.guest.to_owned(),
            ),
            Self::Process => (
                tenant.curl(&v4, &TIMED),
                PROCESS.to_owned(),
                member.process(),
            ),
        };
        let reply = reply.context("cannot ask")?;
        Ok(Answer {
            who: self.who(),
            from,
            namespace: tenant.netns.name(),
            proved: proved(&reply, agent, logged)?,
            tenant: Identity {
                kind: tenant.kind.to_string(),
                id: tenant.id.to_string(),
            },
            status: reply.status,
            told: told(&reply),
            meant,
            seconds: seconds(&reply),
        })
    }
}

/// The identity in the access event that this reply brought about, after the `logged` first ones.
fn proved(reply: &Reply, agent: &Agent, logged: usize) -> Result<Option<Identity>> {
    // What got no answer may have no event either.
    if reply.status == 0 {
        return Ok(None);
    }
    let event = wait_for("the access event", LOGGED_WITHIN, || {
        Ok(access_events(agent).into_iter().nth(logged))
    })?;
    let word = |name: &str| event[name].as_str().map(str::to_owned);
    Ok(word("kind")
        .zip(word("id"))
        .map(|(kind, id)| Identity { kind, id }))
}

/// The name in the metadata, or what was there instead.
fn told(reply: &Reply) -> String {
    let metadata: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    if let Some(name) = metadata["name"].as_str() {
        return name.to_owned();
    }
    let text = if reply.status == 0 {
        reply.error.clone()
    } else {
        reply.text()
    };
    text.lines().next().unwrap_or("nothing").to_owned()
}

/// What curl wrote on the last line of its standard error.
fn seconds(reply: &Reply) -> Option<f64> {
    reply.error.lines().last()?.trim().parse().ok()
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
