//! `cargo xtask setup`: finds what building, testing and linting need, and installs what is
//! missing.
//!
//! It can be called again at any time. Debian packages need root; without, it says what to run.

mod bpf;
mod cargo_tools;
mod debian;
mod profdata;

use std::path::PathBuf;

use anyhow::{Result, bail};

pub(crate) use self::bpf::ENDIAN;

/// What something is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Purpose {
    /// Building, the kernel programs included
    Build,
    /// The demo
    Demo,
    /// The tests that need root
    Test,
    /// The virtual machines; what boots in them is fetched apart, and not installed
    Vm,
    /// The checks; one of the tools takes minutes to build
    Lint,
    /// The list of what the agent is made of; the tool takes minutes to build
    Sbom,
    /// The profile that the agent is optimised by
    Pgo,
}

/// Installs what is missing, or says what to run.
#[derive(clap::Args, Debug)]
pub(crate) struct SetupArgs {
    /// What to set up for
    #[arg(value_enum, default_values = ["build", "test"])]
    purposes: Vec<Purpose>,
}

/// What became of one needed thing.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// It was there.
    Present(String),
    /// It has just been installed.
    Installed(String),
    /// It is missing; this is what to do.
    Needed(String),
}

/// One needed thing, and what became of it.
struct Item {
    name: &'static str,
    found: Found,
}

/// Runs the verb.
pub(crate) fn run(args: &SetupArgs) -> Result<()> {
    let items = set_up(&args.purposes)?;
    for item in &items {
        let (word, detail) = match &item.found {
            Found::Present(detail) => ("present", detail),
            Found::Installed(detail) => ("installed", detail),
            Found::Needed(detail) => ("needed", detail),
        };
        println!("{word:<10} {:<14} {detail}", item.name);
    }
    fail_if_needed(&items)
}

/// Sets up for another verb: says nothing unless something was missing.
pub(crate) fn ensure(purpose: Purpose) -> Result<()> {
    let items = set_up(&[purpose])?;
    for item in &items {
        if let Found::Installed(detail) = &item.found {
            println!("installed {}: {detail}", item.name);
        }
    }
    fail_if_needed(&items)
}

/// Makes sure that profiles can be merged; the program that does it.
pub(crate) fn profile_merger() -> Result<PathBuf> {
    ensure(Purpose::Pgo)?;
    profdata::path()
}

fn fail_if_needed(items: &[Item]) -> Result<()> {
    let needed: Vec<_> = items
        .iter()
        .filter_map(|item| match &item.found {
            Found::Needed(detail) => Some(format!("{}: {detail}", item.name)),
            Found::Present(_) | Found::Installed(_) => None,
        })
        .collect();
    if !needed.is_empty() {
        bail!("something is missing:\n  {}", needed.join("\n  "));
    }
    Ok(())
}

fn set_up(purposes: &[Purpose]) -> Result<Vec<Item>> {
    let mut packages = debian::Packages::default();
    let mut items = Vec::new();
    if purposes.contains(&Purpose::Demo) {
        items.push(Item {
            name: "demo programs",
            found: packages.ensure(debian::DEMO_PROGRAMS)?,
        });
    }
    if purposes.contains(&Purpose::Test) {
        items.push(Item {
            name: "test programs",
            found: packages.ensure(debian::TEST_PROGRAMS)?,
        });
    }
    if purposes.contains(&Purpose::Vm) {
        items.push(Item {
            name: "VM programs",
            found: packages.ensure(debian::VM_PROGRAMS)?,
        });
    }
    items.extend(bpf::toolchain(&mut packages)?);
    if purposes.contains(&Purpose::Lint) {
        items.push(Item {
            name: "BPF clippy",
            found: bpf::clippy(&mut packages)?,
        });
        items.push(cargo_tool(&cargo_tools::DENY)?);
    }
    if purposes.contains(&Purpose::Sbom) {
        items.push(cargo_tool(&cargo_tools::CYCLONEDX)?);
    }
    if purposes.contains(&Purpose::Pgo) {
        items.push(Item {
            name: "llvm-profdata",
            found: profdata::ensure(&mut packages)?,
        });
    }
    Ok(items)
}

fn cargo_tool(tool: &cargo_tools::CargoTool) -> Result<Item> {
    Ok(Item {
        name: tool.name(),
        found: tool.ensure()?,
    })
}
