//! `cargo xtask demo`: one agent, several tenants with the same addresses, and who gets what.
//!
//! The agent is the real one, with its embedded upstream. Everything happens in namespaces made for
//! it, and is removed at the end.

mod ask;
mod signals;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use comfy_table::{Table, presets};
use metadata_proxy_tests::{Agent, Footprint, Kind, Node, TenantFixture};

use self::{
    ask::{Answered, Asker},
    signals::Signals,
};
use crate::{
    build::{self, BuildArgs},
    setup::{self, Purpose},
    workspace::is_root,
};

/// Two routers and one network of each other kind.
const KINDS: [Kind; 4] = [Kind::Router, Kind::Router, Kind::Network, Kind::OvnNetwork];

/// Shows one agent serving several tenants with the same addresses.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Leaves everything up until Ctrl-C, and says what to try
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    build: BuildArgs,
}

/// Runs the verb.
pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    if !is_root() {
        bail!("the demo makes network namespaces and attaches programs: run it as root");
    }
    setup::ensure(Purpose::Test)?;
    let built = build::build(args.build)?;
    // From here on a signal asks for the end instead of being it: there are things to remove.
    let signals = Signals::block()?;

    let node = Node::new()?;
    let directory = node.directory().to_owned();
    let shown = show(&node, &built.agent, args.keep, &signals);
    drop(node);
    ensure!(
        !directory.exists(),
        "{} could not be removed",
        directory.display()
    );
    shown?;
    println!("\nEverything has been removed: agent, namespaces, programs, pins, cgroup.");
    Ok(())
}

fn show(node: &Node, binary: &Path, keep: bool, signals: &Signals) -> Result<()> {
    println!(
        "Making {} tenants, all with the same addresses ...",
        KINDS.len()
    );
    let tenants = KINDS
        .into_iter()
        .map(|kind| {
            signals.check()?;
            TenantFixture::new(node, kind)
        })
        .collect::<Result<Vec<_>>>()?;
    let before = footprints(node, &tenants)?;

    println!("Starting one agent for all of them ...");
    let instances = write_instances(node, &tenants)?;
    let mut agent = Agent::builder(node)
        .binary(binary)
        .upstream_embedded(&instances)
        .set("log.format", metadata_proxy_tests::agent::quoted("json"))
        .start()?;
    for tenant in &tenants {
        signals.check()?;
        agent.wait_served(tenant)?;
    }

    let mut answers = Vec::new();
    for tenant in &tenants {
        for asker in Asker::ALL {
            signals.check()?;
            answers.push(asker.ask(tenant, &agent)?);
        }
    }
    println!("{}", table(&answers));
    let wrong: Vec<_> = answers.iter().filter(|answer| !answer.is_right()).collect();
    if !wrong.is_empty() {
        bail!("WRONG: {wrong:#?}\nthe agent's log:\n{}", agent.log());
    }
    println!(
        "{} asked, and each got the answer meant for it.",
        answers.len()
    );

    if keep {
        what_to_try(node, &tenants, &agent, binary)?;
        signals.wait()?;
    }
    let status = agent.stop()?;
    ensure!(
        status.success(),
        "the agent ended with {status}:\n{}",
        agent.log()
    );
    Footprint::wait_for_return(&before, std::time::Duration::from_secs(10), || {
        footprints(node, &tenants)
    })
    .context("the agent has left something behind")
}

/// What there is in all tenant namespaces and on the node.
fn footprints(node: &Node, tenants: &[TenantFixture]) -> Result<Footprint> {
    let mut all = Footprint::of_node(node)?;
    for tenant in tenants {
        all.include(&tenant.netns.name(), &Footprint::of_netns(&tenant.netns)?);
    }
    Ok(all)
}

/// Declares an instance for every guest, and one for the process in the tenant's namespace.
fn write_instances(node: &Node, tenants: &[TenantFixture]) -> Result<PathBuf> {
    let tenants: Vec<_> = tenants
        .iter()
        .map(|tenant| {
            let instances: Vec<_> = Asker::ALL
                .iter()
                .map(|asker| {
                    serde_json::json!({
                        "addresses": asker.addresses(tenant),
                        "name": asker.name(tenant),
                    })
                })
                .collect();
            serde_json::json!({ tenant.kind.word(): tenant.id, "instances": instances })
        })
        .collect();
    // JSON is YAML.
    let text = serde_json::json!({ "tenants": tenants }).to_string();
    let path = node.directory().join("instances.yaml");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn table(answers: &[Answered]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header([
        "who asked",
        "from",
        "in namespace",
        "identity proved",
        "status",
        "instance told",
        "",
    ]);
    for answer in answers {
        table.add_row([
            answer.who.to_owned(),
            answer.from.clone(),
            answer.namespace.clone(),
            answer.identity.clone(),
            answer.status.to_string(),
            answer.told.clone(),
            if answer.is_right() { "right" } else { "WRONG" }.to_owned(),
        ]);
    }
    table
}

fn what_to_try(node: &Node, tenants: &[TenantFixture], agent: &Agent, binary: &Path) -> Result<()> {
    let (binary, config) = (binary.display(), agent.configuration().display());
    let guest = tenants.first().context("no tenant")?.guest();
    let inside = format!("nsenter --net={}", guest.netns.path().display());
    println!(
        "\nAll of it is up until Ctrl-C. To try in another terminal, as root:\n\n  \
         {inside} curl http://169.254.169.254/openstack/latest/meta_data.json\n  \
         {inside} curl '{}/latest/meta-data/'\n  \
         {binary} tenants list --config {config}\n  \
         {binary} status --config {config}\n  \
         tail -f {}\n\n\
         The guests' namespaces are in {}, those of the tenants in {}.",
        guest.metadata_v6(),
        node.directory().join("metadata-proxy.log").display(),
        node.guests_dir().display(),
        node.netns_dir().display(),
    );
    Ok(())
}
