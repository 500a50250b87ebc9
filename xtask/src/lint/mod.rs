//! `cargo xtask lint`: format, lints, documentation, licences, and what is committed.

mod paths;
mod reproducible;
mod unsafe_code;

use std::{process::Command, time::Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    bpf_toolchain::{TOOLS, Toolchain},
    fuzz,
    setup::{self, ENDIAN, Purpose},
    step::{self, seconds},
    workspace,
};

type Check = (&'static str, fn() -> Result<()>);

/// The workspace, and the kernel programs and the fuzz targets, which have one of their own each.
const MANIFESTS: [&str; 3] = [
    "Cargo.toml",
    "metadata-proxy-ebpf/Cargo.toml",
    "fuzz/Cargo.toml",
];

const CHECKS: &[Check] = &[
    ("format", format),
    ("lock files", lock_files),
    ("machine paths", paths::check),
    ("unsafe code", unsafe_code::check),
    ("kernel programs are reproducible", reproducible::check),
    ("licences, advisories, duplicates", deny),
    ("clippy for the kernel", clippy_kernel),
    ("clippy", clippy),
    ("clippy for the fuzz targets", clippy_fuzz),
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
    for manifest in MANIFESTS {
        step::run(workspace::cargo("fmt").args(["--manifest-path", manifest, "--all", "--check"]))?;
    }
    Ok(())
}

/// What is committed is what is built: no lock file is changed by building.
fn lock_files() -> Result<()> {
    for manifest in MANIFESTS {
        step::run(workspace::cargo("fetch").args([
            "--quiet",
            "--locked",
            "--manifest-path",
            manifest,
        ]))?;
    }
    Ok(())
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

/// Their step of the CI builds them too, but long after a change to what they use could have been seen. It
/// finds there what libraries in C are built here.
fn clippy_fuzz() -> Result<()> {
    step::run(fuzz::cargo("clippy", fuzz::SHORT).args([
        "--quiet",
        "--locked",
        "--bins",
        "--",
        "--deny=warnings",
    ]))
}

fn clippy_kernel() -> Result<()> {
    let root = workspace::root();
    let toolchain = Toolchain::find(&root, ENDIAN)
        .map_err(|missing| anyhow!("{missing}; run `cargo xtask setup`"))?;
    step::run(
        toolchain
            .cargo("clippy", std::env::consts::ARCH, &workspace::root())
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
            // Documented for those who work on it, with all that is private.
            .env(
                "RUSTDOCFLAGS",
                "--deny=warnings --allow=rustdoc::private_intra_doc_links",
            ),
    )
}

/// Advisories need a database from a repository that not every machine reaches; where it cannot be
/// fetched they are not checked, and that is said.
fn deny() -> Result<()> {
    for manifest in MANIFESTS {
        step::run(cargo_deny(manifest).args(["check", "bans", "licenses", "sources"]))?;
    }
    let fetched = cargo_deny(MANIFESTS[0])
        .args(["fetch", "db"])
        .output()
        .context("cannot start cargo-deny")?
        .status
        .success();
    if !fetched {
        println!("    the advisory database cannot be fetched here: advisories not checked");
        return Ok(());
    }
    for manifest in MANIFESTS {
        step::run(cargo_deny(manifest).args(["check", "--disable-fetch", "advisories"]))?;
    }
    Ok(())
}

fn cargo_deny(manifest: &str) -> Command {
    let own = workspace::root().join(TOOLS).join("bin/cargo-deny");
    let mut command = if own.exists() {
        let mut command = Command::new(own);
        command.current_dir(workspace::root());
        command
    } else {
        workspace::cargo("deny")
    };
    command.args(["--log-level", "error", "--manifest-path", manifest]);
    command
}

/// Names of the files that are committed, or are about to be.
fn tracked() -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(workspace::root())
        .output()
        .context("cannot start git")?;
    if !output.status.success() {
        bail!(
            "git ls-files failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let listed = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    Ok(listed.split_terminator('\0').map(str::to_owned).collect())
}
