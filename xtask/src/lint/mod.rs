//! `cargo xtask lint`: format, lints, documentation, licences, and what is committed.

mod paths;

use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::{
    bpf_toolchain::{TOOLS, Toolchain},
    setup::{self, ENDIAN, Purpose},
    step::{self, seconds},
    workspace,
};

type Check = (&'static str, fn() -> Result<()>);

const CHECKS: &[Check] = &[
    ("format", format),
    ("machine paths", paths::check),
    ("licences, advisories, duplicates", deny),
    ("clippy for the kernel", clippy_kernel),
    ("clippy", clippy),
    ("documentation", documentation),
];

/// Runs the verb: every check, whatever became of those before.
pub(crate) fn run() -> Result<()> {
    setup::ensure(Purpose::Lint)?;
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        println!("--- {name}");
        let start = Instant::now();
        let result = check();
        let elapsed = seconds(start.elapsed());
        match result {
            Ok(()) => println!("    ok ({elapsed})"),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed.push(*name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("lint: {} failed", failed.join(", "));
    }
    Ok(())
}

fn format() -> Result<()> {
    step::run(workspace::cargo("fmt").args(["--all", "--check"]))?;
    step::run(workspace::cargo("fmt").args([
        "--manifest-path",
        "metadata-proxy-ebpf/Cargo.toml",
        "--check",
    ]))
}

fn clippy() -> Result<()> {
    step::run(workspace::cargo("clippy").args([
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "--deny=warnings",
    ]))
}

fn clippy_kernel() -> Result<()> {
    let root = workspace::root();
    let toolchain = Toolchain::find(&root, ENDIAN)
        .map_err(|missing| anyhow::anyhow!("{missing}; run `cargo xtask setup`"))?;
    step::run(
        toolchain
            .cargo("clippy", std::env::consts::ARCH)
            .args(["--quiet", "--release", "--target-dir"])
            .arg(workspace::target_dir().join("bpf-clippy"))
            .args(["--", "--deny=warnings"])
            .current_dir(root.join("metadata-proxy-ebpf")),
    )
}

fn documentation() -> Result<()> {
    step::run(
        workspace::cargo("doc")
            .args([
                "--quiet",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ])
            .env("RUSTDOCFLAGS", "--deny=warnings"),
    )
}

/// Advisories need a database from a repository that not every machine reaches; where it cannot be
/// fetched they are not checked, and that is said.
fn deny() -> Result<()> {
    let deny = |arguments: &[&str]| {
        let own = workspace::root().join(TOOLS).join("bin/cargo-deny");
        let mut command = if own.exists() {
            let mut command = std::process::Command::new(own);
            command.arg("deny").current_dir(workspace::root());
            command
        } else {
            workspace::cargo("deny")
        };
        command.args(arguments);
        command
    };
    step::run(&mut deny(&[
        "--log-level=error",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))?;
    let fetched = deny(&["--log-level=error", "fetch", "db"])
        .output()
        .context("cannot start cargo-deny")?
        .status
        .success();
    if !fetched {
        println!("    the advisory database cannot be fetched here: advisories not checked");
        return Ok(());
    }
    step::run(&mut deny(&[
        "--log-level=error",
        "check",
        "--disable-fetch",
        "advisories",
    ]))
}
