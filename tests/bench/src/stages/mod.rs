//! What is measured, in stages: each makes the namespaces it needs, measures in turn, and is gone.

mod against;
mod busy;
mod crowded;
mod kernel;
mod profile;
mod training;
mod wrk;

use anyhow::Result;
use metadata_proxy_tests::Node;

use crate::{Arguments, progress::Progress, report::Report, sink::Syslog, upstream::Upstream};

/// Rows of the table of bars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Row {
    Memory,
    Start,
    NewTenant,
    Cpu,
    Throughput,
    Latency,
    CrossCheck,
    Limit,
    Kernel,
    Idle,
    Scale,
    Profile,
    Training,
}

impl Row {
    /// What it is called.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Start => "start",
            Self::NewTenant => "new tenant",
            Self::Cpu => "cpu per request",
            Self::Throughput => "throughput",
            Self::Latency => "latency",
            Self::CrossCheck => "cross-check with wrk",
            Self::Limit => "distance to the limit",
            Self::Kernel => "kernel cost",
            Self::Idle => "idle",
            Self::Scale => "scale",
            Self::Profile => "profile",
            Self::Training => "training",
        }
    }
}

/// A stage.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stage {
    /// One busy tenant, and sixteen.
    Busy,
    /// Many tenants, most of them idle.
    Crowded,
    /// The kernel programs by themselves.
    Kernel,
    /// Where the time goes; only if asked for, since perf takes time itself.
    Profile,
    /// What the compiler is shown; only if asked for.
    Training,
    /// Another build of the agent; then nothing else is measured.
    Against,
}

impl Stage {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy tenants",
            Self::Crowded => "many tenants",
            Self::Kernel => "the kernel programs",
            Self::Profile => "where the time goes",
            Self::Training => "what the compiler is shown",
            Self::Against => "two builds",
        }
    }

    const fn rows(self) -> &'static [Row] {
        match self {
            Self::Busy => &[
                Row::Cpu,
                Row::Throughput,
                Row::Latency,
                Row::CrossCheck,
                Row::Limit,
            ],
            Self::Crowded => &[
                Row::Memory,
                Row::Start,
                Row::NewTenant,
                Row::Idle,
                Row::Scale,
            ],
            Self::Kernel => &[Row::Kernel],
            Self::Profile => &[Row::Profile],
            Self::Training => &[Row::Training],
            Self::Against => &[],
        }
    }

    /// How long it takes, about.
    pub(crate) fn seconds(self, arguments: &Arguments) -> u64 {
        match self {
            Self::Busy => busy::seconds(arguments),
            Self::Crowded => crowded::seconds(arguments),
            Self::Kernel => kernel::seconds(arguments),
            Self::Profile => profile::SECONDS,
            Self::Training => training::SECONDS,
            Self::Against => against::seconds(arguments),
        }
    }

    /// Measures.
    pub(crate) fn run(self, lab: &Lab<'_>, report: &mut Report) -> Result<()> {
        match self {
            Self::Busy => busy::run(lab, report),
            Self::Crowded => crowded::run(lab, report),
            Self::Kernel => kernel::run(lab, report),
            Self::Profile => profile::run(lab),
            Self::Training => training::run(lab),
            Self::Against => lab
                .arguments
                .against
                .as_deref()
                .map_or(Ok(()), |other| against::run(lab, other)),
        }
    }
}

/// The stages that measure what was asked for.
pub(crate) fn chosen(arguments: &Arguments) -> Vec<Stage> {
    if arguments.against.is_some() {
        return vec![Stage::Against];
    }
    let is_wanted = |stage: &Stage| stage.rows().iter().any(|row| arguments.wants(*row));
    [
        Stage::Busy,
        Stage::Crowded,
        Stage::Kernel,
        Stage::Profile,
        Stage::Training,
    ]
    .into_iter()
    .filter(is_wanted)
    .collect()
}

/// What all stages share: three nodes for ours, one for haproxy, and one upstream for all.
pub(crate) struct Lab<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) progress: &'a Progress,
    pub(crate) syslog: Syslog,
    pub(crate) upstream: Upstream,
    /// Of ours with the agent's socket, and whatever is measured alone.
    pub(crate) ours: Node,
    /// Of ours with the upstream pooled over a unix socket.
    pub(crate) pooled_unix: Node,
    /// Of ours with the upstream pooled over TCP.
    pub(crate) pooled_tcp: Node,
    pub(crate) theirs: Node,
}

impl<'a> Lab<'a> {
    pub(crate) fn new(arguments: &'a Arguments, progress: &'a Progress) -> Result<Self> {
        let theirs = Node::new()?;
        Ok(Self {
            arguments,
            progress,
            syslog: Syslog::start(theirs.directory())?,
            upstream: Upstream::start(theirs.directory(), arguments.answer)?,
            ours: Node::new()?,
            pooled_unix: Node::new()?,
            pooled_tcp: Node::new()?,
            theirs,
        })
    }
}
