//! What is run in every guest: test programs built by cargo, as on this machine.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::command;
use crate::workspace;

/// PID 1 is linked statically, so that it runs whatever else is in the initramfs.
const STATIC: &str = "-C target-feature=+crt-static";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A test program.
#[derive(Clone, Debug)]
pub(super) struct TestProgram {
    /// Its name in the tables.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) role: Role,
}

/// Where and how a test program is run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    /// In every guest, first: whether the guest has what the others need.
    Guest,
    /// Where the kernel is too old for the agent.
    OldKernel,
    /// Once for each capability, without it.
    Privileges,
    /// As on the host.
    Suite,
    /// Named by the user.
    Given,
}

/// The crate of PID 1, whose tests are those of the guest.
const GUEST: &str = "metadata-proxy-vm-init";
/// The folders of the crates whose tests are run, in this order: that one's, and those whose tests run on the
/// host as well.
const SUITES: [&str; 3] = ["tests/init", "metadata-proxy", "tests"];
/// Tests of theirs that are not about the kernel, and would take minutes in each guest: cloud-init
/// and a container's root need a whole system around them (`vm-guest` boots one), the fixtures are what `guest` is here, and
/// the others compare words or, beside haproxy, measure.
const NOT_FOR_GUESTS: [&str; 7] = [
    "budget",
    "cloud_init",
    "container",
    "fixtures",
    "neutron_",
    "service",
    "standin",
];

/// Programs of the suite that start one agent after the other, where the kernel does not tell its own types.
/// Nothing of ours asks for them, but aya reads them whenever it loads something, which takes
/// two seconds where code is translated. The others see to it that they can be read.
const WITHOUT_KERNEL_TYPES: [&str; 6] = [
    "lifecycle",
    "port_reuse",
    "ports",
    "steer",
    "steering",
    "tenant_map",
];

impl TestProgram {
    /// Whether the kernel's own types cannot be read while it runs.
    pub(super) fn is_without_kernel_types(&self) -> bool {
        self.role == Role::Suite && WITHOUT_KERNEL_TYPES.contains(&self.name.as_str())
    }
}

/// Builds PID 1.
pub(super) fn init() -> anyhow::Result<PathBuf> {
    let programs = build(&["build", "--release", "--package", GUEST], "bin", true)?;
    let [init] = programs.as_slice() else {
        bail!("cargo built {programs:?} for PID 1")
    };
    Ok(init.path.clone())
}

/// Builds the tests: first those of the guest, then those of the agent. All of the workspace's, since
/// what crates have in common would be built otherwise for a few of them.
pub(super) fn tests() -> anyhow::Result<Vec<TestProgram>> {
    let arguments = ["test", "--no-run", "--workspace", "--test", "*"];
    let built = build(&arguments, "test", false)?;
    let mut all = Vec::new();
    for folder in SUITES {
        let manifest = workspace::root().join(folder).join("Cargo.toml");
        let mut found: Vec<_> = built
            .iter()
            .filter(|program| program.manifest == manifest)
            .filter(|program| !NOT_FOR_GUESTS.iter().any(|no| program.name.starts_with(no)))
            .collect();
        ensure!(!found.is_empty(), "there are no tests in {folder}");
        found.sort_by_key(|program| &program.name);
        for program in found {
            let role = match (folder, program.name.as_str()) {
                ("tests/init", "guest") => Role::Guest,
                ("tests/init", "old_kernel") => Role::OldKernel,
                ("tests/init", "privileges") => Role::Privileges,
                ("tests/init", "facts") | ("metadata-proxy" | "tests", _) => Role::Suite,
                (_, other) => bail!("{other} is a test of {folder} that no guest would run"),
            };
            all.push(TestProgram {
                name: program.name.clone(),
                path: program.path.clone(),
                role,
            });
        }
    }
    Ok(all)
}

/// What cargo has built.
#[derive(Debug)]
struct Built {
    name: String,
    path: PathBuf,
    /// Of its crate.
    manifest: PathBuf,
}

/// Builds, and lists the executables of `kind` that came of it.
fn build(arguments: &[&str], kind: &str, is_static: bool) -> anyhow::Result<Vec<Built>> {
    let (verb, rest) = arguments.split_first().context("cargo needs a verb")?;
    let mut cargo = workspace::cargo(verb);
    cargo
        .args(rest)
        .args(["--message-format", "json-render-diagnostics"]);
    if is_static {
        // With a target named, the flags are not for build scripts and macros.
        cargo.args(["--target", TARGET]).env("RUSTFLAGS", STATIC);
    }
    let output = command::output_of_build(&mut cargo)?;
    let mut programs = Vec::new();
    for line in output.lines() {
        let message: Value = serde_json::from_str(line).context("reading cargo's messages")?;
        let kinds = message["target"]["kind"].as_array();
        if let Some(path) = message["executable"].as_str()
            && kinds.is_some_and(|kinds| kinds.iter().any(|found| found == kind))
        {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            programs.push(Built {
                name: text(&message["target"]["name"]).context("a target has a name")?,
                path: path.into(),
                manifest: text(&message["manifest_path"])
                    .context("a target has a manifest")?
                    .into(),
            });
        }
    }
    Ok(programs)
}
