//! What is run in every guest: test programs built by cargo, as on this machine.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
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
/// The crates whose tests run on the host as well.
const SUITES: [&str; 2] = ["metadata-proxy", "metadata-proxy-tests"];
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

/// Builds PID 1.
pub(super) fn init() -> anyhow::Result<PathBuf> {
    let programs = build(&["build", "--release", "--package", GUEST], "bin", true)?;
    let [init] = programs.as_slice() else {
        bail!("cargo built {programs:?} for PID 1")
    };
    Ok(init.path.clone())
}

/// Builds the tests: first those of the guest, then those of the agent.
pub(super) fn tests() -> anyhow::Result<Vec<TestProgram>> {
    let mut all = Vec::new();
    for package in std::iter::once(GUEST).chain(SUITES) {
        let arguments = ["test", "--no-run", "--package", package, "--test", "*"];
        let mut found = build(&arguments, "test", false)?;
        found.retain(|test| {
            !NOT_FOR_GUESTS
                .iter()
                .any(|name| test.name.starts_with(name))
        });
        found.sort_by(|a, b| a.name.cmp(&b.name));
        for test in &mut found {
            test.role = match (package, test.name.as_str()) {
                (GUEST, "guest") => Role::Guest,
                (GUEST, "old_kernel") => Role::OldKernel,
                (GUEST, "privileges") => Role::Privileges,
                (GUEST, "facts") | ("metadata-proxy" | "metadata-proxy-tests", _) => Role::Suite,
                (_, other) => bail!("{other} is a test of {package} that no guest would run"),
            };
        }
        all.extend(found);
    }
    Ok(all)
}

/// Builds, and lists the executables of `kind` that came of it.
fn build(arguments: &[&str], kind: &str, is_static: bool) -> anyhow::Result<Vec<TestProgram>> {
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
            let name = message["target"]["name"]
                .as_str()
                .context("a target has a name")?;
            programs.push(TestProgram {
                name: name.to_owned(),
                path: PathBuf::from(path),
                role: Role::Given,
            });
        }
    }
    Ok(programs)
}
