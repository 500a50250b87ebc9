//! One busy tenant, and sixteen: CPU per request, throughput, latency, distance to the limit.

use std::{net::TcpListener, time::Duration};

use anyhow::{Context as _, Result, ensure};
use metadata_proxy_tests::{Kind, NeutronProxy, Node, TenantFixture, neutron};

use super::{Lab, Row, wrk};
use crate::{
    Arguments,
    account::CpuTime,
    load::{self, Load, Mode, Outcome, Target},
    proxies::{Ours, Theirs, Via},
    report::{Bar, Line, Report, Samples},
    upstream::{Server, Serves},
};

/// Busy tenants, at most.
const TENANTS: usize = 16;
/// Connections at once, shared out among the busy tenants.
pub(super) const CONNECTIONS: usize = 32;
pub(super) const MODES: [Mode; 2] = [Mode::Close, Mode::Keep];
pub(super) const BUSY: [usize; 2] = [1, TENANTS];
pub(super) const READY_WITHIN: Duration = Duration::from_secs(30);
/// Share of requests that may fail before a number is none.
const FAILURES: f64 = 0.001;

/// How long things take.
struct Plan {
    repeats: usize,
    /// Turns of wrk.
    checks: usize,
    warm_up: Duration,
    window: Duration,
}

impl Plan {
    fn of(arguments: &Arguments) -> Self {
        if arguments.quick {
            Self {
                repeats: arguments.repeats.min(3),
                checks: 1,
                warm_up: Duration::from_millis(150),
                window: Duration::from_millis(800),
            }
        } else {
            Self {
                repeats: arguments.repeats,
                checks: arguments.repeats.min(3),
                warm_up: Duration::from_millis(300),
                window: Duration::from_millis(2500),
            }
        }
    }
}

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Theirs,
    Ours(Via),
}

const WHO: [Who; 4] = [
    Who::Theirs,
    Who::Ours(Via::AgentSocket),
    Who::Ours(Via::PooledUnix),
    Who::Ours(Via::PooledTcp),
];

/// What was seen of one proxy in one way of asking.
#[derive(Default)]
struct Seen {
    cpu: Samples,
    /// What of it was spent in the kernel.
    kernel: Samples,
    rate: Samples,
    p50: Samples,
    p99: Samples,
    half: [Samples; 3],
}

pub(super) fn seconds(arguments: &Arguments) -> u64 {
    let plan = Plan::of(arguments);
    let each = (plan.warm_up + plan.window).as_secs_f64();
    let cells = WHO.len() * MODES.len() * BUSY.len();
    let checks = WHO.len() * MODES.len() * plan.checks;
    let windows = (2 * cells + 2) * plan.repeats + checks;
    Duration::from_secs_f64(each * load::count(windows)).as_secs() + 25
}

/// One side: its node, its tenants, and their guests as targets.
struct Side {
    who: Who,
    node: Node,
    targets: Vec<Target>,
    /// They keep the namespaces.
    tenants: Vec<TenantFixture>,
}

impl Side {
    /// With Neutron's own proxy for haproxy; without for ours.
    fn new(who: Who, node: &Node) -> Result<Self> {
        let rules = match who {
            Who::Theirs => NeutronProxy::Enabled,
            Who::Ours(_) => NeutronProxy::Disabled,
        };
        let tenants = tenants(node, rules)?;
        let targets = tenants.iter().map(Target::guest).collect::<Result<_>>()?;
        Ok(Self {
            who,
            node: node.clone(),
            targets,
            tenants,
        })
    }
}

/// Tenants as Neutron's L3 agent leaves them, as many as are ever busy.
pub(super) fn tenants(node: &Node, rules: NeutronProxy) -> Result<Vec<TenantFixture>> {
    (0..TENANTS)
        .map(|_| {
            let tenant = TenantFixture::new(node, Kind::Router)?;
            neutron::install_rules(&tenant.netns, rules)?;
            Ok(tenant)
        })
        .collect()
}

pub(super) fn run(lab: &Lab<'_>, report: &mut Report) -> Result<()> {
    lab.progress.step("making 4 × 16 tenants with guests", 20);
    let sides = [
        Side::new(Who::Theirs, &lab.theirs)?,
        Side::new(Who::Ours(Via::AgentSocket), &lab.ours)?,
        Side::new(Who::Ours(Via::PooledUnix), &lab.pooled_unix)?,
        Side::new(Who::Ours(Via::PooledTcp), &lab.pooled_tcp)?,
    ];
    lab.progress.step("starting the proxies", 5);
    let mut theirs = Theirs::none();
    theirs.start(&lab.theirs, &sides[0].tenants, &lab.upstream, &lab.syslog)?;
    let ours = [
        Ours::start(lab, &lab.ours, Via::AgentSocket)?,
        Ours::start(lab, &lab.pooled_unix, Via::PooledUnix)?,
        Ours::start(lab, &lab.pooled_tcp, Via::PooledTcp)?,
    ];
    for (side, ours) in sides[1..].iter().zip(&ours) {
        ours.wait_serving(side.tenants.len(), READY_WITHIN)?;
    }
    for side in &sides {
        load::until_answered(&side.targets, READY_WITHIN)
            .with_context(|| format!("{:?} does not answer", side.who))?;
    }

    let plan = Plan::of(lab.arguments);
    let mut cells: Vec<Cell> = BUSY
        .iter()
        .flat_map(|busy| MODES.iter().map(move |mode| Cell::new(*busy, *mode)))
        .collect();
    for repeat in 1..=plan.repeats {
        for cell in &mut cells {
            let title = cell.title();
            for at in turns(repeat) {
                let (side, seen) = (&sides[at], &mut cell.seen[at]);
                lab.progress.step(
                    &format!(
                        "full load {repeat}/{}: {title}, {:?}",
                        plan.repeats, side.who
                    ),
                    (plan.warm_up + plan.window).as_secs(),
                );
                let outcome = ask(side, cell.busy, cell.mode, None, &plan)?;
                let (before, after) = outcome.probed;
                let spent = after.since(before);
                let each =
                    |spent: Duration| spent.as_secs_f64() * 1e6 / load::count(outcome.answered);
                seen.cpu.push(each(spent.all));
                seen.kernel.push(each(spent.kernel));
                seen.rate.push(outcome.rate());
                seen.p50.push(outcome.percentile(0.5));
                seen.p99.push(outcome.percentile(0.99));
            }
        }
    }
    if lab.arguments.wants(Row::Latency) {
        half_rate(lab, &plan, &sides, &mut cells)?;
    }
    if lab.arguments.wants(Row::CrossCheck) {
        cross_check(lab, &plan, &sides, report)?;
    }
    if lab.arguments.wants(Row::Limit) {
        limit(lab, &plan, &sides[0].tenants[0], report)?;
    }
    theirs.stop();
    for cell in &cells {
        cell.write(lab.arguments, report);
    }
    report.lines.sort_by_key(|line| line.row as usize);
    Ok(())
}

/// Whose turn it is, one after the other: none of them always goes first.
fn turns(repeat: usize) -> impl Iterator<Item = usize> {
    (repeat..repeat + WHO.len()).map(|at| at % WHO.len())
}

/// Asks all at half of the rate that haproxy reached.
fn half_rate(lab: &Lab<'_>, plan: &Plan, sides: &[Side], cells: &mut [Cell]) -> Result<()> {
    for repeat in 1..=plan.repeats {
        for cell in &mut *cells {
            let rate = cell.seen[0].rate.median() / 2.0;
            for at in turns(repeat) {
                let (side, seen) = (&sides[at], &mut cell.seen[at]);
                let (title, of) = (title(cell.busy, cell.mode), plan.repeats);
                lab.progress.step(
                    &format!("half rate {repeat}/{of}: {title}, {:?}", side.who),
                    (plan.warm_up + plan.window).as_secs(),
                );
                let outcome = ask(side, cell.busy, cell.mode, Some(rate), plan)?;
                for (samples, share) in seen.half.iter_mut().zip([0.5, 0.99, 0.999]) {
                    samples.push(outcome.percentile(share));
                }
            }
        }
    }
    Ok(())
}

fn ask(
    side: &Side,
    busy: usize,
    mode: Mode,
    rate: Option<f64>,
    plan: &Plan,
) -> Result<Outcome<CpuTime>> {
    let load = Load {
        mode,
        connections: CONNECTIONS,
        rate,
        warm_up: plan.warm_up,
        window: plan.window,
        at_most: usize::MAX,
    };
    let outcome = load::run(&side.targets[..busy], load, || CpuTime::of(&side.node))?;
    check(&outcome).with_context(|| format!("{:?}, {busy} busy, {mode:?}", side.who))?;
    Ok(outcome)
}

pub(super) fn check<T>(outcome: &Outcome<T>) -> Result<()> {
    let failed = load::count(outcome.failed);
    ensure!(
        outcome.answered > 0 && failed <= FAILURES * load::count(outcome.answered),
        "{} requests failed, {} were answered: {}",
        outcome.failed,
        outcome.answered,
        outcome.why.as_deref().unwrap_or("no answer at all"),
    );
    Ok(())
}

/// One busy tenant, asked by wrk.
fn cross_check(
    lab: &Lab<'_>,
    plan: &Plan,
    sides: &[Side; WHO.len()],
    report: &mut Report,
) -> Result<()> {
    for mode in MODES {
        let mut seen: [Samples; WHO.len()] = Default::default();
        for _ in 0..plan.checks {
            for (side, rate) in sides.iter().zip(&mut seen) {
                let title = format!("wrk: {}, {:?}", mode_word(mode), side.who);
                lab.progress.step(&title, plan.window.as_secs());
                let asked = wrk::rate(&side.tenants[0], "/", mode, CONNECTIONS, plan.window);
                rate.push(asked.with_context(|| title)?);
            }
        }
        let [theirs, ours @ ..] = &seen;
        for (via, ours) in Via::ALL.into_iter().zip(ours) {
            report.push(Line {
                row: Row::CrossCheck,
                name: format!("1 tenant, {}, {}", mode_word(mode), via.word()),
                unit: "1/s",
                ours: ours.clone(),
                peer: Some(theirs.clone()),
                bar: None,
            });
        }
    }
    Ok(())
}

/// A guest straight to an upstream in its own namespace: no proxy can be faster.
fn limit(lab: &Lab<'_>, plan: &Plan, tenant: &TenantFixture, report: &mut Report) -> Result<()> {
    let bind = || TcpListener::bind(("127.0.0.1", 0)).context("cannot bind");
    let listener = tenant.guest().netns.run(bind)?;
    let address = listener.local_addr().context("no address")?;
    let _server = Server::start(listener.into(), Serves::Many, lab.arguments.answer)?;
    let target = [Target::direct(tenant, address, String::new())?];
    for mode in MODES {
        let (mut rate, mut p50, mut p99) =
            (Samples::default(), Samples::default(), Samples::default());
        for _ in 0..plan.repeats {
            let each = (plan.warm_up + plan.window).as_secs();
            lab.progress.step(&format!("no proxy, {mode:?}"), each);
            let load = Load {
                mode,
                connections: CONNECTIONS,
                rate: None,
                warm_up: plan.warm_up,
                window: plan.window,
                at_most: usize::MAX,
            };
            let outcome = load::run(&target, load, || Ok(()))?;
            check(&outcome).context("without a proxy")?;
            rate.push(outcome.rate());
            p50.push(outcome.percentile(0.5));
            p99.push(outcome.percentile(0.99));
        }
        let lines = [
            ("throughput", "1/s", rate),
            ("p50", "µs", p50),
            ("p99", "µs", p99),
        ];
        for (what, unit, ours) in lines {
            report.push(Line {
                row: Row::Limit,
                name: format!("{}, {what}", mode_word(mode)),
                unit,
                ours,
                peer: None,
                bar: None,
            });
        }
    }
    Ok(())
}

/// One way of asking, and what was seen of each proxy.
struct Cell {
    busy: usize,
    mode: Mode,
    seen: [Seen; WHO.len()],
}

impl Cell {
    fn new(busy: usize, mode: Mode) -> Self {
        Self {
            busy,
            mode,
            seen: Default::default(),
        }
    }

    fn title(&self) -> String {
        title(self.busy, self.mode)
    }

    fn write(&self, arguments: &Arguments, report: &mut Report) {
        let [theirs, ours @ ..] = &self.seen;
        for (via, ours) in Via::ALL.into_iter().zip(ours) {
            let mut line = |row, what: &str, unit, ours: &Samples, theirs: &Samples, bar| {
                if arguments.wants(row) {
                    report.push(Line {
                        row,
                        name: format!("{}, {}{what}", self.title(), via.word()),
                        unit,
                        ours: ours.clone(),
                        peer: Some(theirs.clone()),
                        bar,
                    });
                }
            };
            let cpu = Some(Bar::RatioAtMost(cpu_bar(self.busy, via)));
            line(Row::Cpu, "", "µs", &ours.cpu, &theirs.cpu, cpu);
            line(
                Row::Limit,
                ", CPU in the kernel, over all of haproxy's",
                "µs",
                &ours.kernel,
                &theirs.cpu,
                None,
            );
            let rate = Some(Bar::RatioAtLeast(rate_bar(self.busy, via, self.mode)));
            line(Row::Throughput, "", "1/s", &ours.rate, &theirs.rate, rate);
            line(
                Row::Latency,
                ", full load, p50",
                "µs",
                &ours.p50,
                &theirs.p50,
                Some(Bar::RatioAtMost(1.0)),
            );
            line(
                Row::Latency,
                ", full load, p99",
                "µs",
                &ours.p99,
                &theirs.p99,
                Some(Bar::RatioAtMost(0.7)),
            );
            for (at, what) in ["p50", "p99", "p99.9"].into_iter().enumerate() {
                let what = format!(", half rate, {what}");
                let (ours, theirs) = (&ours.half[at], &theirs.half[at]);
                line(
                    Row::Latency,
                    &what,
                    "µs",
                    ours,
                    theirs,
                    Some(Bar::RatioAtMost(1.0)),
                );
            }
        }
    }
}

pub(super) fn title(busy: usize, mode: Mode) -> String {
    let tenants = if busy == 1 {
        "1 tenant".to_owned()
    } else {
        format!("{busy} tenants")
    };
    format!("{tenants}, {}", mode_word(mode))
}

const fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Close => "a connection each",
        Mode::Keep => "keep-alive",
    }
}

const fn cpu_bar(busy: usize, via: Via) -> f64 {
    match (busy, via) {
        (1, Via::AgentSocket) => 0.85,
        (1, Via::PooledUnix | Via::PooledTcp) => 0.45,
        (_, Via::AgentSocket) => 0.40,
        (_, Via::PooledUnix | Via::PooledTcp) => 0.20,
    }
}

const fn rate_bar(busy: usize, via: Via, mode: Mode) -> f64 {
    match (busy, via, mode) {
        (1, Via::AgentSocket, _) => 1.1,
        (1, Via::PooledUnix | Via::PooledTcp, _) => 1.8,
        (_, Via::AgentSocket, _) => 1.6,
        (_, Via::PooledUnix | Via::PooledTcp, Mode::Close) => 2.0,
        (_, Via::PooledUnix | Via::PooledTcp, Mode::Keep) => 3.5,
    }
}
