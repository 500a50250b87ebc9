//! Many tenants, most of them idle: memory, start, new tenants, idling, and how all that grows.

mod lines;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_proxy_tests::{Node, wait_for};

use super::Lab;
use crate::{
    Arguments,
    account::{CpuTime, f64_of, memory, open_files},
    crowd::{Crowd, Shown},
    load::{self, Load, Mode},
    proxies::{self, Ours, Theirs, Via},
    report::{Report, Samples},
};

/// Tenants that come and go while the others are there.
const SPARE: usize = 20;
/// Busy tenants when CPU per request is measured.
const BUSY: usize = 16;
/// Requests of the load after which memory is looked at again.
const REQUESTS: usize = 10_000;
/// As many tenants as bars are about.
const BARRED: usize = 1000;
const ANSWERED_WITHIN: Duration = Duration::from_mins(2);

struct Plan {
    sizes: Vec<usize>,
    /// haproxies, at most: a thousand take 3.5 GB.
    theirs: usize,
    starts: usize,
    newcomers: usize,
    idle: Duration,
    window: Duration,
}

impl Plan {
    fn of(arguments: &Arguments) -> Self {
        let up_to = |sizes: &[usize]| {
            sizes
                .iter()
                .copied()
                .filter(|size| *size <= arguments.tenants)
                .collect()
        };
        if arguments.quick {
            Self {
                sizes: up_to(&[10, 200]),
                theirs: 50,
                starts: 1,
                newcomers: 20,
                idle: Duration::from_secs(15),
                window: Duration::from_secs(1),
            }
        } else {
            Self {
                sizes: up_to(&[10, 100, 1000, 5000]),
                theirs: 1000,
                starts: arguments.repeats.min(3),
                newcomers: 100,
                idle: Duration::from_mins(1),
                window: Duration::from_secs(3),
            }
        }
    }

    fn largest(&self) -> usize {
        self.sizes.iter().copied().max().unwrap_or(0)
    }
}

pub(super) fn seconds(arguments: &Arguments) -> u64 {
    let plan = Plan::of(arguments);
    let largest = plan.largest() as u64;
    let idle = plan.sizes.len() as u64 * (plan.idle.as_secs() / 4) + plan.idle.as_secs();
    largest / 25 + idle + plan.theirs as u64 / 12 + 10 * plan.sizes.len() as u64
}

/// What was seen with so many tenants.
pub(super) struct Seen {
    tenants: usize,
    start: Samples,
    idle_memory: f64,
    loaded_memory: f64,
    files: usize,
    cpu: f64,
    idle_cpu: Option<f64>,
    newcomers: Vec<u32>,
}

pub(super) fn run(lab: &Lab<'_>, report: &mut Report) -> Result<()> {
    let plan = Plan::of(lab.arguments);
    let pool = Node::new()?;
    let count = plan.largest() + SPARE;
    lab.progress.step(
        &format!("making {count} tenants with guests"),
        count as u64 / 25,
    );
    let crowd = Crowd::make(&pool, count)?;
    let ours: Vec<Seen> = plan
        .sizes
        .iter()
        .map(|size| of_ours(lab, &plan, &crowd, *size))
        .collect::<Result<_>>()?;
    let theirs = of_theirs(lab, &plan, &crowd)?;
    lines::write(lab.arguments, &ours, &theirs, report);
    lab.progress.step("removing the tenants", 5);
    Ok(())
}

fn of_ours(lab: &Lab<'_>, plan: &Plan, crowd: &Crowd, tenants: usize) -> Result<Seen> {
    let say = |what: &str, seconds| {
        lab.progress
            .step(&format!("{tenants} tenants, ours: {what}"), seconds);
    };
    let node = &lab.ours;
    let _shown = Shown::all(node, &crowd.tenants[..tenants])?;
    let targets = &crowd.targets[..tenants];
    let mut start = Samples::default();
    let mut running = None;
    for _ in 0..plan.starts {
        drop(running.take());
        say("start", 2);
        let began = Instant::now();
        let ours = Ours::start(lab, node, Via::AgentSocket)?;
        load::until_answered(targets, ANSWERED_WITHIN)?;
        start.push(began.elapsed().as_secs_f64());
        ours.wait_serving(tenants, ANSWERED_WITHIN)?;
        running = Some(ours);
    }
    thread::sleep(Duration::from_secs(2));
    let idle_memory = f64_of(memory(node)?);
    let files = open_files(node)?;

    say("new tenants", 3);
    let mut newcomers = Vec::new();
    let spare = crowd
        .tenants
        .iter()
        .zip(&crowd.targets)
        .rev()
        .take(SPARE)
        .cycle();
    for (tenant, target) in spare.take(plan.newcomers) {
        let appeared = Instant::now();
        let shown = Shown::to(node, tenant)?;
        let answered = load::answered_at(target, ANSWERED_WITHIN)?;
        newcomers.push(nanos(answered - appeared));
        drop(shown);
        wait_for("the end of a tenant", ANSWERED_WITHIN, || {
            Ok((!load::is_served(target)?).then_some(()))
        })?;
    }
    newcomers.sort_unstable();

    say("CPU per request", plan.window.as_secs());
    let cpu = cpu_per_request(node, plan, crowd, tenants.min(BUSY))?;
    say("10,000 requests", 2);
    spread_load(crowd, tenants)?;
    // The whole time only where a bar is about it.
    let is_long = tenants == BARRED || tenants == plan.largest().min(BARRED);
    let idle = if is_long { plan.idle } else { plan.idle / 4 };
    say("idle", idle.as_secs());
    let before = CpuTime::of(node)?;
    thread::sleep(idle);
    let spent = CpuTime::of(node)?.since(before).all.as_secs_f64() / idle.as_secs_f64();
    let loaded_memory = f64_of(memory(node)?);
    Ok(Seen {
        tenants,
        start,
        idle_memory,
        loaded_memory,
        files,
        cpu,
        idle_cpu: Some(spent),
        newcomers,
    })
}

fn of_theirs(lab: &Lab<'_>, plan: &Plan, crowd: &Crowd) -> Result<Vec<Seen>> {
    let node = &lab.theirs;
    let mut all = Vec::new();
    let mut proxies = Theirs::none();
    let mut started = Duration::ZERO;
    let mut running = 0;
    let spare = crowd.tenants.len() - SPARE;
    lab.progress.step(
        "Neutron's rules for haproxy's tenants",
        plan.theirs as u64 / 40,
    );
    crowd.install_rules(spare..crowd.tenants.len())?;
    let mut sizes: Vec<_> = plan
        .sizes
        .iter()
        .map(|size| *size.min(&plan.theirs))
        .collect();
    sizes.dedup();
    for tenants in sizes {
        let more = tenants - running;
        lab.progress.step(
            &format!("{tenants} tenants, haproxy: start"),
            more as u64 / 15,
        );
        crowd.install_rules(running..tenants)?;
        let began = Instant::now();
        proxies.start(
            node,
            &crowd.tenants[running..tenants],
            &lab.upstream,
            &lab.syslog,
        )?;
        started += began.elapsed();
        load::until_answered(&crowd.targets[..tenants], ANSWERED_WITHIN)?;
        running = tenants;
        let idle_memory = f64_of(memory(node)?);
        let files = open_files(node)?;

        lab.progress
            .step(&format!("{tenants} tenants, haproxy: new tenants"), 5);
        let mut newcomers = Vec::new();
        for (tenant, target) in crowd.tenants.iter().zip(&crowd.targets).rev().take(SPARE) {
            let began = Instant::now();
            let _proxy = proxies::start_one(node, tenant, lab.upstream.socket(), &lab.syslog)?;
            newcomers.push(nanos(load::answered_at(target, ANSWERED_WITHIN)? - began));
        }
        newcomers.sort_unstable();
        lab.progress
            .step(&format!("{tenants} tenants, haproxy: 10,000 requests"), 5);
        spread_load(crowd, tenants)?;
        thread::sleep(Duration::from_secs(2));
        let loaded_memory = f64_of(memory(node)?);
        all.push(Seen {
            tenants,
            start: started.as_secs_f64().into(),
            idle_memory,
            loaded_memory,
            files,
            cpu: f64::NAN,
            idle_cpu: None,
            newcomers,
        });
    }
    proxies.stop();
    Ok(all)
}

fn nanos(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX)
}

fn cpu_per_request(node: &Node, plan: &Plan, crowd: &Crowd, busy: usize) -> Result<f64> {
    let load = Load {
        mode: Mode::Close,
        connections: 32,
        rate: None,
        warm_up: Duration::from_millis(300),
        window: plan.window,
        at_most: usize::MAX,
    };
    let outcome = load::run(&crowd.targets[..busy], load, || CpuTime::of(node))?;
    let (before, after) = outcome.probed;
    Ok(after.since(before).all.as_secs_f64() * 1e6 / load::count(outcome.answered))
}

/// Asks for all tenants alike.
fn spread_load(crowd: &Crowd, tenants: usize) -> Result<()> {
    let load = Load {
        mode: Mode::Close,
        connections: tenants.min(256),
        rate: None,
        warm_up: Duration::ZERO,
        window: ANSWERED_WITHIN,
        at_most: REQUESTS,
    };
    let outcome = load::run(&crowd.targets[..tenants], load, || Ok(()))?;
    ensure!(
        outcome.failed == 0,
        "{} of {REQUESTS} requests failed: {}",
        outcome.failed,
        outcome.why.as_deref().context("no reason")?,
    );
    Ok(())
}
