//! The tenants, all with the same addresses, and the one agent that serves them.

use std::{fmt, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use metadata_proxy_tests::{
    Agent, Footprint, Kind, METADATA_V4, Node, TenantFixture, agent::quoted,
};
use serde_json::json;

use super::{
    answer::Answer,
    ask::{self, Asker},
    signals::Signals,
};

/// Two routers and an isolated network; their UUIDs can be told apart at a glance.
const CAST: [(Kind, &str, &str); 3] = [
    (Kind::Router, "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa", "anna"),
    (Kind::Router, "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb", "bert"),
    (
        Kind::Network,
        "cccccccc-cccc-4ccc-8ccc-cccccccccccc",
        "cleo",
    ),
];

const GONE_WITHIN: Duration = Duration::from_secs(10);

const LOG_LINES: usize = 30;

/// A tenant, and the name of the instance that its guest is.
pub(super) struct Member {
    pub(super) tenant: TenantFixture,
    pub(super) guest: &'static str,
}

impl Member {
    /// Name of the instance that a process in the tenant namespace itself is told to be.
    pub(super) fn process(&self) -> String {
        format!("{}-process", self.guest)
    }

    /// The instances of this tenant, as the embedded upstream's file has them.
    fn instances(&self) -> serde_json::Value {
        let guest = self.tenant.guest();
        json!({
            self.tenant.kind.word(): self.tenant.id,
            "instances": [
                { "name": self.guest, "addresses": [guest.v4, guest.link_local] },
                // What such a process asks is brought to the listener over loopback.
                { "name": self.process(), "addresses": [ask::PROCESS] },
            ],
        })
    }
}

/// The tenants before there is an agent.
pub(super) struct Scene {
    members: Vec<Member>,
    before: Footprint,
}

impl Scene {
    /// Makes the tenants.
    pub(super) fn set(node: &Node, signals: &Signals) -> Result<Self> {
        let members = CAST
            .into_iter()
            .map(|(kind, id, guest)| {
                signals.check()?;
                let id = id.parse().context("not a UUID")?;
                let tenant = TenantFixture::builder(kind).id(id).build(node)?;
                Ok(Member { tenant, guest })
            })
            .collect::<Result<Vec<_>>>()?;
        let before = footprint(node, &members)?;
        Ok(Self { members, before })
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.members.len();
        write!(f, "made {count} tenants, each with a guest")?;
        let guests = self.members.iter().map(|member| member.tenant.guest());
        let mut addresses: Vec<_> = guests.map(|its| (its.v4, its.link_local)).collect();
        addresses.dedup();
        // They are the same for all; were they not, all would be told.
        addresses
            .iter()
            .try_for_each(|(v4, v6)| write!(f, " at {v4} and {v6}"))
    }
}

/// The tenants and the agent.
pub(super) struct Stage {
    // Dropped first: the agent lets go of the tenants before they are removed.
    agent: Agent,
    scene: Scene,
}

impl Stage {
    /// Starts the agent and waits until it serves every tenant.
    pub(super) fn start(
        node: &Node,
        binary: &Path,
        scene: Scene,
        signals: &Signals,
    ) -> Result<Self> {
        let instances = node.directory().join("instances.yaml");
        let tenants: Vec<_> = scene.members.iter().map(Member::instances).collect();
        // JSON is YAML.
        fs::write(&instances, json!({ "tenants": tenants }).to_string())
            .with_context(|| format!("cannot write {}", instances.display()))?;
        let agent = Agent::builder(node)
            .binary(binary)
            .upstream_embedded(&instances)
            .set("log.format", quoted("json"))
            .set("log.level", quoted("info"))
            .start()?;
        let stage = Self { agent, scene };
        for member in stage.tenants() {
            signals.check()?;
            let served = stage.agent.wait_served(&member.tenant);
            served.inspect_err(|_| stage.show_log())?;
        }
        Ok(stage)
    }

    /// The tenants.
    pub(super) fn tenants(&self) -> &[Member] {
        &self.scene.members
    }

    /// Lets everybody ask, one after the other.
    pub(super) fn ask_all(&self, signals: &Signals) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        for member in self.tenants() {
            for asker in Asker::ALL {
                signals.check()?;
                answers.push(asker.ask(member, &self.agent)?);
            }
        }
        Ok(answers)
    }

    /// Runs a command of the agent's command line.
    pub(super) fn cli(&self, arguments: &[&str]) -> Result<String> {
        self.agent.cli(arguments)
    }

    /// Shows the end of the agent's log, for when something went wrong.
    pub(super) fn show_log(&self) {
        let log = self.agent.log();
        let lines: Vec<_> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        eprintln!("the end of the agent's log:\n{end}\n");
    }

    /// Stops the agent, makes sure that nothing of it is left, and tells so.
    pub(super) fn stop(&mut self, node: &Node) -> Result<String> {
        let status = self.agent.stop()?;
        if !status.success() {
            self.show_log();
            bail!("the agent ended with {status}");
        }
        Footprint::wait_for_return(&self.scene.before, GONE_WITHIN, || {
            footprint(node, self.tenants())
        })
        .context("the agent has left something behind")?;
        Ok("stopped the agent; no socket, route, program or pin of it is left".to_owned())
    }

    /// Commands for whoever wants to look around.
    pub(super) fn what_to_try(&self, node: &Node, binary: &Path) -> Result<String> {
        let member = self.tenants().first().context("there is no tenant")?;
        let guest = member.tenant.guest();
        let name = guest.netns.name();
        let tenant = member.tenant.netns.name();
        let path = ask::PATH;
        Ok(format!(
            "All of it is up until Ctrl-C here. In another terminal, as root:\n\n  \
             D={directory}; alias agent='{binary} --config {config}'\n  \
             ls $D/guests                                   # the guests; $D/netns: the tenants\n  \
             nsenter --net=$D/guests/{name} \\\n      \
             curl {METADATA_V4}{path}\n  \
             nsenter --net=$D/guests/{name} \\\n      \
             curl '{v6}/latest/meta-data/'\n  \
             sh -c 'echo $$ >{cgroup}/cgroup.procs; exec nsenter --net=$0 curl {METADATA_V4}{path}' \\\n      \
             $D/netns/{tenant}\n  \
             agent tenants list; agent status; agent check\n  \
             curl --unix-socket $D/admin.sock http://agent/metrics\n  \
             tail -f $D/metadata-proxy.log                  # then ask again; or edit $D/instances.yaml",
            directory = node.directory().display(),
            binary = binary.display(),
            config = self.agent.configuration().display(),
            v6 = guest.metadata_v6(),
            cgroup = node.cgroup().display(),
        ))
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pid, count) = (self.agent.pid(), self.scene.members.len());
        write!(
            f,
            "started one agent, pid {pid}, which serves all {count} and answers by itself"
        )
    }
}

/// What there is in all tenant namespaces and on the node.
fn footprint(node: &Node, members: &[Member]) -> Result<Footprint> {
    let mut all = Footprint::of_node(node)?;
    for member in members {
        let netns = &member.tenant.netns;
        all.include(&netns.name(), &Footprint::of_netns(netns)?);
    }
    Ok(all)
}
