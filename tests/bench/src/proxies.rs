//! The two that are compared, started as they are on a node.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use metadata_proxy_tests::{
    Agent, Haproxy, Node, TenantFixture,
    agent::{Builder, quoted},
};

use crate::{
    sink::{Journal, Syslog},
    stages::Lab,
    upstream::Upstream,
};

/// How ours reaches the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// The agent's unix socket, a connection for each request.
    AgentSocket,
    /// A unix socket, connections kept.
    PooledUnix,
    /// TCP, connections kept.
    PooledTcp,
}

impl Via {
    pub(crate) const ALL: [Self; 3] = [Self::AgentSocket, Self::PooledUnix, Self::PooledTcp];

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::AgentSocket => "agent socket",
            Self::PooledUnix => "pooled unix socket",
            Self::PooledTcp => "pooled TCP",
        }
    }
}

/// Ours, with the configuration that holds where nothing is configured.
pub(crate) struct Ours {
    agent: Agent,
    journal: Journal,
}

impl Ours {
    /// Starts it, and does not wait.
    pub(crate) fn start(lab: &Lab<'_>, node: &Node, via: Via) -> Result<Self> {
        Self::start_build(lab, node, via, &lab.arguments.agent)
    }

    /// Starts this build of it, and does not wait.
    pub(crate) fn start_build(lab: &Lab<'_>, node: &Node, via: Via, binary: &Path) -> Result<Self> {
        let upstream = &lab.upstream;
        Self::start_with(lab, node, binary, |builder| match via {
            Via::AgentSocket => builder.upstream_agent(upstream.socket()),
            Via::PooledUnix => {
                builder.upstream_http(&format!("unix:{}", upstream.http_socket().display()))
            }
            Via::PooledTcp => builder.upstream_http(&upstream.address().to_string()),
        })
    }

    /// Starts one that answers by itself from this file of instances, and does not wait.
    pub(crate) fn start_embedded(lab: &Lab<'_>, node: &Node, instances: &Path) -> Result<Self> {
        let binary = &lab.arguments.agent;
        Self::start_with(lab, node, binary, |builder| {
            builder.upstream_embedded(instances)
        })
    }

    fn start_with(
        lab: &Lab<'_>,
        node: &Node,
        binary: &Path,
        upstream: impl FnOnce(Builder) -> Builder,
    ) -> Result<Self> {
        let (journal, stream) = Journal::start()?;
        let mut builder = Agent::builder(node)
            .binary(binary)
            .set("log.level", quoted("info"))
            .log_to(stream);
        if let Some(engine) = &lab.arguments.engine {
            builder = builder.set("steering.engine", quoted(engine));
        }
        Ok(Self {
            agent: upstream(builder).start_unready()?,
            journal,
        })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.agent.pid()
    }

    /// Waits until so many tenants are served.
    pub(crate) fn wait_serving(&self, tenants: usize, deadline: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let serving = self.agent.admin_json("/v1/status");
            let is_done = serving
                .as_ref()
                .is_ok_and(|status| status["tenants"]["serving"].as_u64() == Some(tenants as u64));
            if is_done {
                return Ok(());
            }
            if start.elapsed() > deadline {
                let last = serving.map(|status| status["tenants"].to_string());
                let tail = self.journal.tail();
                return Err(last
                    .err()
                    .unwrap_or_else(|| anyhow::anyhow!("too few are served")))
                .with_context(|| format!("{tenants} tenants are not served; its log:\n{tail}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The haproxies that Neutron starts, one for each tenant.
pub(crate) struct Theirs {
    proxies: Vec<Haproxy>,
}

impl Theirs {
    pub(crate) const fn none() -> Self {
        Self {
            proxies: Vec::new(),
        }
    }

    /// Starts those of more tenants, one after the other, as Neutron does.
    pub(crate) fn start<'a>(
        &mut self,
        node: &Node,
        tenants: impl IntoIterator<Item = &'a TenantFixture>,
        upstream: &Upstream,
        log: &Syslog,
    ) -> Result<()> {
        for tenant in tenants {
            self.proxies
                .push(start_one(node, tenant, upstream.socket(), log)?);
        }
        Ok(())
    }

    /// Ends all, together.
    pub(crate) fn stop(self) {
        use nix::{
            sys::signal::{Signal, kill},
            unistd::Pid,
        };
        for proxy in &self.proxies {
            if let Ok(pid) = i32::try_from(proxy.pid()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
    }
}

/// Starts the haproxy of one tenant.
pub(crate) fn start_one(
    node: &Node,
    tenant: &TenantFixture,
    agent: &Path,
    log: &Syslog,
) -> Result<Haproxy> {
    Haproxy::builder()
        .log(log.path())
        .start(node, tenant, agent)
}
