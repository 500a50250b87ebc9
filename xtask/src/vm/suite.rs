//! What is run in every guest: test programs built by cargo, as on this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::command;

/// PID 1 is linked statically, so that it runs whatever else is in the initramfs.
const STATIC: &str = "-C target-feature=+crt-static";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A test program.
#[derive(Clone, Debug)]
pub(super) struct TestProgram {
    /// Its name in the tables.
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// Builds PID 1.
pub(super) fn init(workspace: &Path) -> anyhow::Result<PathBuf> {
    let programs = build(
        workspace,
        &["build", "--release", "-p", "metadata-proxy-vm-init"],
        "bin",
        true,
    )?;
    let [init] = programs.as_slice() else {
        bail!("cargo built {programs:?} for PID 1")
    };
    Ok(init.path.clone())
}

/// Builds the agent.
pub(super) fn agent(workspace: &Path) -> anyhow::Result<PathBuf> {
    let arguments = [
        "build",
        "--release",
        "-p",
        "metadata-proxy",
        "--bin",
        "metadata-proxy",
    ];
    let programs = build(workspace, &arguments, "bin", false)?;
    let [agent] = programs.as_slice() else {
        bail!("cargo built {programs:?} for the agent")
    };
    Ok(agent.path.clone())
}

/// Builds the integration tests of `package`.
pub(super) fn tests(workspace: &Path, package: &str) -> anyhow::Result<Vec<TestProgram>> {
    build(
        workspace,
        &["test", "--no-run", "-p", package, "--test", "*"],
        "test",
        false,
    )
}

/// Builds, and lists the executables of `kind` that came of it.
fn build(
    workspace: &Path,
    arguments: &[&str],
    kind: &str,
    is_static: bool,
) -> anyhow::Result<Vec<TestProgram>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cargo = Command::new(cargo);
    cargo
        .args(arguments)
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(workspace);
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
            });
        }
    }
    Ok(programs)
}
