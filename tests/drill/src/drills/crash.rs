//! A crash loses only what was in flight: killed under load and started again, everybody is served
//! within a second, whatever the killed process left.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_proxy_tests::{
    Agent, MetadataAgent, Node, TenantFixture,
    agent::{Builder, bpffs_dir},
    process::run as run_program,
    stage::traces_on_node,
    tenant_map, wait_until,
};
use nix::sys::signal::Signal;

use super::crowd::{self, Answered, Load};
use crate::{figures::Figures, plan::Plan};

/// Within what every tenant is to be served again.
const PROMISE: Duration = Duration::from_secs(1);
/// When the drill gives up.
const PATIENCE: Duration = Duration::from_mins(3);
const MAPS: [&str; 2] = ["TENANTS", "OUTCOMES"];

/// What a killed process leaves for the next one.
#[derive(Clone, Copy, Debug)]
enum Left {
    /// All as it was.
    AsItWas,
    /// Maps of another size and layout.
    OtherSizes,
    /// Maps of the same size, of another version of the contract.
    OlderVersion,
}

pub(super) fn run(plan: &Plan) -> Result<Figures> {
    let mut figures = Figures::default();
    let (crashes, count, guests) = plan.choose((3, 100, 16), (6, 1000, 64));
    let node = Node::new()?;
    let upstream = MetadataAgent::builder()
        .workers(8)
        .start(&node.directory().join("agent"))?;
    let tenants = crowd::tenants(&node, count)?;
    let builder = || {
        Agent::builder(&node)
            .upstream_agent(upstream.socket())
            .set("log.level", "\"info\"")
    };
    let mut agent = builder().start_unready()?;
    // The kernel takes its time to attach to a device for the first time.
    wait_until("the first start", PATIENCE, || {
        entries(&node).is_ok_and(|entries| entries == count)
    })?;
    agent.wait_ready()?;
    let expected = entries(&node)?;
    ensure!(
        expected == count,
        "{expected} tenants of {count} are served"
    );

    let all = [Left::AsItWas, Left::OtherSizes, Left::OlderVersion];
    figures.note("tenants, guests", format!("{count}, {guests}"));
    let mut slowest = Duration::ZERO;
    let (began, length) = (Instant::now(), plan.length(Duration::ZERO, Duration::ZERO));
    let mut crash = 0;
    while crash < crashes || began.elapsed() < length {
        let left = all[crash % all.len()];
        let told = crash_once(&mut agent, &builder, &node, (&tenants, guests), left)?;
        let took = &told.answered.took;
        let (half, last) = (took[took.len() / 2], took[took.len() - 1]);
        slowest = slowest.max(last);
        figures.note(
            &format!("crash {}, {left:?}", crash + 1),
            format!(
                "half served after {half:.0?}, all after {last:.0?}; {} of {} requests lost, {} unheard",
                told.lost, told.asked, told.answered.unheard
            ),
        );
        figures.demand(last <= PROMISE, format!("all served only after {last:?}"));
        // Now and then one: more would be our doing.
        figures.demand(
            told.answered.unheard * 100 <= count,
            format!(
                "{} connections were not answered at all",
                told.answered.unheard
            ),
        );
        figures.demand(
            told.lost_later == 0,
            format!("{} requests failed once all were served", told.lost_later),
        );
        figures.demand(
            entries(&node)? == count,
            "the map has other entries than there are tenants",
        );
        crash += 1;
    }
    figures.note("slowest", format!("{slowest:.0?}"));
    agent.signal(Signal::SIGTERM)?;
    agent.wait(PATIENCE)?;
    let traces = traces_on_node(&node);
    figures.demand(traces.is_empty(), format!("left on the node: {traces:?}"));
    Ok(figures)
}

/// What became of one crash.
struct Told {
    /// From the start of the next process.
    answered: Answered,
    asked: usize,
    lost: usize,
    lost_later: usize,
}

fn crash_once(
    agent: &mut Agent,
    builder: &impl Fn() -> Builder,
    node: &Node,
    (tenants, guests): (&Arc<Vec<TenantFixture>>, usize),
    left: Left,
) -> Result<Told> {
    let load = Load::start(tenants, guests);
    thread::sleep(Duration::from_millis(500));
    agent.crash()?;
    leave(&bpffs_dir(node), left)?;
    // Asked by as many as are needed to notice in time, and by nobody else.
    let started = Instant::now();
    let mut next = builder().start_unready()?;
    let answered = crowd::until_all_answered(tenants, started, PATIENCE)
        .with_context(|| format!("after {left:?}: {}", next.log()))?;
    let served = Instant::now();
    thread::sleep(Duration::from_millis(500));
    let seen = load.stop()?;
    next.wait_ready()?;
    *agent = next;
    let later = seen.failed.iter().filter(|asked| **asked > served);
    Ok(Told {
        answered,
        asked: seen.tally.asked(),
        lost: seen.tally.failed(),
        lost_later: later.count(),
    })
}

/// Entries of the map of tenants.
fn entries(node: &Node) -> Result<usize> {
    Ok(tenant_map::read(node)?.len())
}

/// Makes what is pinned look as if another process had left it.
fn leave(pins: &Path, left: Left) -> Result<()> {
    match left {
        Left::AsItWas => Ok(()),
        Left::OtherSizes => {
            remove(pins, &MAPS)?;
            pin(&pins.join("TENANTS"), "hash", 8, 16, 64)?;
            pin(&pins.join("OUTCOMES"), "array", 4, 4, 3)
        }
        Left::OlderVersion => {
            // An entry of it would make no sense to us.
            let key = "0x2a 0 0 0 0 0 0 0";
            let value = vec!["0xff"; 24].join(" ");
            let mut update = Command::new("bpftool");
            update.args(["map", "update", "pinned"]);
            update.arg(pins.join("TENANTS"));
            let words = format!("key {key} value {value}");
            run_program(update.args(words.split(' ')))?;
            let mark = marks(pins)?.pop().context("the maps have no version")?;
            fs::rename(pins.join(&mark), pins.join("layout-0")).context("cannot rename the mark")
        }
    }
}

fn marks(pins: &Path) -> Result<Vec<String>> {
    let names = fs::read_dir(pins)?
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with("layout-")).collect())
}

fn remove(pins: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        fs::remove_file(pins.join(name)).with_context(|| format!("cannot unpin {name}"))?;
    }
    Ok(())
}

fn pin(path: &Path, kind: &str, key: u32, value: u32, entries: u32) -> Result<()> {
    let mut create = Command::new("bpftool");
    create.args(["map", "create"]).arg(path);
    let words = format!("type {kind} key {key} value {value} entries {entries} name other");
    run_program(create.args(words.split(' '))).map(drop)
}
