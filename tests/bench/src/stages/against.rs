//! Two builds of the agent, asked in turn: what a change of the code is worth.
//!
//! A machine that others use changes its pace by more than most changes of the code do. So one build
//! is asked for a moment right after the other, many times, and what counts is the ratio within each
//! such pair: what befell both is not in it.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{Table, presets};
use metadata_proxy_tests::{Kind, NeutronProxy, Node, TenantFixture, neutron};

use super::{
    Lab,
    busy::{self, BUSY, CONNECTIONS, MODES, READY_WITHIN, TENANTS},
};
use crate::{
    Arguments,
    account::CpuTime,
    load::{self, Load, Mode, Target},
    proxies::{Ours, Via},
};

/// Pairs for each repeat that is asked for.
const PAIRS: usize = 5;
const WARM_UP: Duration = Duration::from_millis(100);
const WINDOW: Duration = Duration::from_millis(600);
const WORDS: [&str; 2] = ["this build", "the other"];

fn pairs(arguments: &Arguments) -> usize {
    let repeats = arguments.repeats;
    PAIRS
        * if arguments.quick {
            repeats.min(3)
        } else {
            repeats
        }
}

pub(super) fn seconds(arguments: &Arguments) -> u64 {
    let windows = 2 * Via::ALL.len() * MODES.len() * BUSY.len() * pairs(arguments);
    let each = (WARM_UP + WINDOW).as_secs_f64();
    Duration::from_secs_f64(each * load::count(windows)).as_secs() + 30
}

/// One build: its node, and the guests of its tenants.
struct Side<'a> {
    binary: &'a Path,
    node: &'a Node,
    targets: Vec<Target>,
    /// They keep the namespaces.
    _tenants: Vec<TenantFixture>,
}

impl<'a> Side<'a> {
    fn new(binary: &'a Path, node: &'a Node) -> Result<Self> {
        let tenants: Vec<_> = (0..TENANTS)
            .map(|_| {
                let tenant = TenantFixture::new(node, Kind::Router)?;
                neutron::install_rules(&tenant.netns, NeutronProxy::Disabled)?;
                Ok(tenant)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            binary,
            node,
            targets: tenants.iter().map(Target::guest).collect::<Result<_>>()?,
            _tenants: tenants,
        })
    }

    fn start(&self, lab: &Lab<'_>, via: Via) -> Result<Ours> {
        let ours = Ours::start_build(lab, self.node, via, self.binary)?;
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

/// Prints what came out: it is about a change, and in no document.
pub(super) fn run(lab: &Lab<'_>, other: &Path) -> Result<()> {
    lab.progress.step("making 2 × 16 tenants with guests", 10);
    let sides = [
        Side::new(&lab.arguments.agent, &lab.ours)?,
        Side::new(other, &lab.pooled_unix)?,
    ];
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["", "CPU per request", "throughput", "pairs"]);
    for via in Via::ALL {
        let _running = [sides[0].start(lab, via)?, sides[1].start(lab, via)?];
        for (busy, mode) in BUSY.iter().flat_map(|busy| MODES.map(|mode| (*busy, mode))) {
            let title = format!("{}, {}", busy::title(busy, mode), via.word());
            let mut ratios: [Vec<f64>; 2] = Default::default();
            for pair in 1..=pairs(lab.arguments) {
                let mut seen = [[0.0; 2]; 2];
                // Neither of them always goes first.
                for at in [pair % 2, (pair + 1) % 2] {
                    let (seconds, word) = ((WARM_UP + WINDOW).as_secs(), WORDS[at]);
                    lab.progress
                        .step(&format!("{title}: {word} {pair}"), seconds);
                    seen[at] = sides[at]
                        .ask(busy, mode)
                        .with_context(|| format!("{title}, {word}"))?;
                }
                for (ratios, (this, other)) in ratios.iter_mut().zip(seen[0].iter().zip(seen[1])) {
                    ratios.push(this / other);
                }
            }
            let [cpu, rate] = ratios.map(summary);
            table.add_row([title, cpu?, rate?, pairs(lab.arguments).to_string()]);
        }
    }
    lab.progress.finish();
    println!("this build over the other, mean of pairs ± standard error\n{table}");
    Ok(())
}

/// The mean of the middle half, which no stall of the machine is in, and how well it is known.
fn summary(mut ratios: Vec<f64>) -> Result<String> {
    ensure!(ratios.len() >= 4, "too few pairs");
    ratios.sort_by(f64::total_cmp);
    let quarter = ratios.len() / 4;
    let middle = &ratios[quarter..ratios.len() - quarter];
    let mean = |values: &[f64]| values.iter().sum::<f64>() / load::count(values.len());
    let centre = mean(middle);
    // Of a mean without a quarter at each end, by what is left when the ends are drawn in
    // (Tukey and McLaughlin, 1963).
    let drawn_in = ratios
        .iter()
        .map(|ratio| ratio.clamp(middle[0], middle[middle.len() - 1]));
    let drawn_in: Vec<f64> = drawn_in.collect();
    let of_all = mean(&drawn_in);
    let variance = drawn_in
        .iter()
        .map(|ratio| (ratio - of_all).powi(2))
        .sum::<f64>()
        / load::count(drawn_in.len() - 1);
    let error = variance.sqrt() / (0.5 * load::count(ratios.len()).sqrt());
    Ok(format!("{centre:.3} ± {error:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_few_pairs_say_does_not_count() {
        let mut ratios = vec![0.9; 40];
        ratios.extend([5.0, 0.1, 7.0]);
        assert_eq!(summary(ratios).unwrap(), "0.900 ± 0.000");
        assert!(summary(vec![1.0; 3]).is_err());
    }
}
