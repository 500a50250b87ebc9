//! Two builds of the agent, asked in turn: what a change of the code is worth.
//!
//! A machine that others use changes its pace by more than most changes of the code do. So one build
//! is asked for a moment right after the other, and what counts is the ratio within each such pair: what
//! befell both is not in it. What a process has got at its start, memory here or a worker there, and
//! what its namespaces have, stays as long as it runs: so both are started anew in each round, and
//! change places. A build beside itself tells how much that leaves.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use comfy_table::{Table, presets};
use metadata_proxy_tests::{NeutronProxy, Node, TenantFixture};

use super::{
    Lab,
    busy::{self, BUSY, CONNECTIONS, MODES, READY_WITHIN},
};
use crate::{
    Arguments,
    account::CpuTime,
    load::{self, Load, Mode, Target},
    proxies::{Ours, Via},
    report::Samples,
};

/// Pairs in a round, for each way of asking.
const PAIRS: usize = 5;
const WARM_UP: Duration = Duration::from_millis(100);
const WINDOW: Duration = Duration::from_millis(600);
const WORDS: [&str; 2] = ["this build", "the other"];

fn rounds(arguments: &Arguments) -> usize {
    if arguments.quick {
        arguments.repeats.min(3)
    } else {
        arguments.repeats
    }
}

pub(super) fn seconds(arguments: &Arguments) -> u64 {
    let each = (WARM_UP + WINDOW).as_secs_f64();
    let windows = 2 * MODES.len() * BUSY.len() * PAIRS;
    let round = each * load::count(windows) + 2.0;
    Duration::from_secs_f64(round * load::count(Via::ALL.len() * rounds(arguments))).as_secs() + 10
}

/// Where a build runs: a node, and the guests of its tenants.
struct Place<'a> {
    node: &'a Node,
    targets: Vec<Target>,
    /// They keep the namespaces.
    _tenants: Vec<TenantFixture>,
}

impl<'a> Place<'a> {
    fn new(node: &'a Node) -> Result<Self> {
        let tenants = busy::tenants(node, NeutronProxy::Disabled)?;
        Ok(Self {
            node,
            targets: tenants.iter().map(Target::guest).collect::<Result<_>>()?,
            _tenants: tenants,
        })
    }

    fn start(&self, lab: &Lab<'_>, via: Via, binary: &Path) -> Result<Ours> {
        let ours = Ours::start_build(lab, self.node, via, binary)?;
        ours.wait_serving(self.targets.len(), READY_WITHIN)?;
        load::until_answered(&self.targets, READY_WITHIN)?;
        Ok(ours)
    }

    /// CPU time of a request, microseconds, and requests per second.
    fn ask(&self, busy: usize, mode: Mode) -> Result<[f64; 2]> {
        let load = Load {
            mode,
            connections: CONNECTIONS,
            rate: None,
            warm_up: WARM_UP,
            window: WINDOW,
            at_most: usize::MAX,
        };
        let outcome = load::run(&self.targets[..busy], load, || CpuTime::of(self.node))?;
        busy::check(&outcome)?;
        let (before, after) = &outcome.probed;
        let spent = after.since(*before).all.as_secs_f64() * 1e6;
        Ok([spent / load::count(outcome.answered), outcome.rate()])
    }
}

/// One way of asking, and what came of it in each round: of CPU time, and of throughput.
struct Cell {
    title: String,
    busy: usize,
    mode: Mode,
    ratios: [Samples; 2],
}

/// Prints what came out: it is about a change, and in no document.
pub(super) fn run(lab: &Lab<'_>, other: &Path) -> Result<()> {
    lab.progress.step("making 2 × 16 tenants with guests", 10);
    let places = [Place::new(&lab.ours)?, Place::new(&lab.pooled_unix)?];
    let builds = [lab.arguments.agent.as_path(), other];
    let rounds = rounds(lab.arguments);
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["", "CPU per request", "throughput"]);
    for via in Via::ALL {
        let cell = |busy, mode| Cell {
            title: format!("{}, {}", busy::title(busy, mode), via.word()),
            busy,
            mode,
            ratios: Default::default(),
        };
        let mut cells: Vec<_> = BUSY
            .iter()
            .flat_map(|busy| MODES.map(|mode| cell(*busy, mode)))
            .collect();
        for round in 1..=rounds {
            // Where each build runs.
            let at = [&places[round % 2], &places[(round + 1) % 2]];
            let title = format!("round {round}/{rounds}, {}", via.word());
            lab.progress.step(&format!("{title}: starting both"), 2);
            let _running = [
                at[0].start(lab, via, builds[0])?,
                at[1].start(lab, via, builds[1])?,
            ];
            for cell in &mut cells {
                pairs(lab, round, rounds, at, cell)?;
            }
        }
        for cell in cells {
            let [cpu, rate] = cell.ratios.map(|ratios| summary(&ratios));
            table.add_row([cell.title, cpu, rate]);
        }
    }
    lab.progress.finish();
    println!("this build over the other, median of {rounds} rounds (least to most)\n{table}");
    Ok(())
}

/// One round of one way of asking.
fn pairs(
    lab: &Lab<'_>,
    round: usize,
    rounds: usize,
    at: [&Place<'_>; 2],
    cell: &mut Cell,
) -> Result<()> {
    let mut of_pairs: [Samples; 2] = Default::default();
    for pair in 1..=PAIRS {
        let mut seen = [[0.0; 2]; 2];
        // Neither of them always goes first.
        for build in [pair % 2, (pair + 1) % 2] {
            let title = format!("round {round}/{rounds}: {}, {}", cell.title, WORDS[build]);
            lab.progress.step(&title, (WARM_UP + WINDOW).as_secs());
            let asked = at[build].ask(cell.busy, cell.mode);
            seen[build] = asked.with_context(|| title)?;
        }
        let [this, other] = seen;
        for (ratios, (this, other)) in of_pairs.iter_mut().zip(this.iter().zip(other)) {
            ratios.push(this / other);
        }
    }
    for (all, ratios) in cell.ratios.iter_mut().zip(of_pairs) {
        all.push(ratios.median());
    }
    Ok(())
}

fn summary(ratios: &Samples) -> String {
    let (least, most) = ratios.range();
    format!("{:.2} ({least:.2} to {most:.2})", ratios.median())
}
