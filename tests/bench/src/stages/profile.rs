//! Where the agent's time goes: flame graphs of one busy tenant, in each way of asking.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use inferno::{
    collapse::{Collapse as _, perf::Folder},
    flamegraph::{self, Options},
};
use metadata_proxy_tests::{Kind, TenantFixture, process};

use super::Lab;
use crate::{
    load::{self, Load, Mode, Target},
    proxies::{Ours, Via},
};

/// How long each way of asking is watched.
const WINDOW: Duration = Duration::from_secs(6);
/// How long all of it takes, with what perf makes of it.
pub(super) const SECONDS: u64 = 6 * (WINDOW.as_secs() + 20);
const READY_WITHIN: Duration = Duration::from_secs(30);
const CONNECTIONS: usize = 32;
/// Samples a second: each copies a part of the stack, which must not be what is seen.
const FREQUENCY: &str = "199";

pub(super) fn run(lab: &Lab<'_>) -> Result<()> {
    let folder = lab.arguments.docs.join("benchmarks");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let nodes = [&lab.ours, &lab.pooled_unix, &lab.pooled_tcp];
    for (via, node) in Via::ALL.into_iter().zip(nodes) {
        let tenant = TenantFixture::new(node, Kind::Router)?;
        let ours = Ours::start(lab, node, via)?;
        ours.wait_serving(1, READY_WITHIN)?;
        let targets = [Target::guest(&tenant)?];
        load::until_answered(&targets, READY_WITHIN)?;
        for (mode, word) in [(Mode::Close, "close"), (Mode::Keep, "keep-alive")] {
            let title = format!("{}, {word}", via.word());
            lab.progress
                .step(&format!("perf: {title}"), WINDOW.as_secs() + 20);
            let recorded = node.directory().join("perf.data");
            watch(ours.pid(), &targets, mode, &recorded)?;
            let name = format!("flame-{}-{word}.svg", via.word().replace(' ', "-"));
            draw(&recorded, &title, &folder.join(name))?;
        }
    }
    Ok(())
}

/// Has perf watch the agent while it is asked.
fn watch(pid: u32, targets: &[Target], mode: Mode, recorded: &Path) -> Result<()> {
    let seconds = WINDOW.as_secs().to_string();
    let mut perf = Command::new("perf");
    perf.args([
        "record",
        "--quiet",
        "--freq",
        FREQUENCY,
        "--call-graph",
        "dwarf,16384",
    ])
    .args(["--pid", &pid.to_string(), "--output"])
    .arg(recorded)
    .args(["--", "sleep", &seconds]);
    let mut perf = perf
        .spawn()
        .context("cannot start perf (Debian: linux-perf)")?;
    let load = Load {
        mode,
        connections: CONNECTIONS,
        rate: None,
        warm_up: Duration::ZERO,
        // A little longer, so that perf sees nothing else.
        window: WINDOW + Duration::from_secs(1),
        at_most: usize::MAX,
    };
    let outcome = load::run(targets, load, || Ok(()));
    let ended = perf.wait().context("cannot wait for perf")?;
    anyhow::ensure!(ended.success(), "perf record ended with {ended}");
    outcome.map(drop)
}

fn draw(recorded: &Path, title: &str, to: &Path) -> Result<()> {
    let mut script = Command::new("perf");
    script.args(["script", "--force", "--input"]).arg(recorded);
    let told = process::output(&mut script)?;
    anyhow::ensure!(
        told.status.success(),
        "perf script ended with {}",
        told.status
    );
    let mut folded = Vec::new();
    Folder::default()
        .collapse(told.stdout.as_slice(), &mut folded)
        .context("cannot fold what perf saw")?;
    let folded = String::from_utf8_lossy(&folded);
    let mut options = Options::default();
    title.clone_into(&mut options.title);
    "samples".clone_into(&mut options.count_name);
    let file = fs::File::create(to).with_context(|| format!("cannot create {}", to.display()))?;
    flamegraph::from_lines(&mut options, folded.lines(), file)
        .with_context(|| format!("cannot draw {}", to.display()))
}
