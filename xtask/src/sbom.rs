//! `cargo xtask sbom`: what the agent is made of, for those who have to know.

use std::{env, fs, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    bpf_toolchain::TOOLS,
    setup::{self, Purpose},
    step, workspace,
};

/// The packages that end up in what is installed: the agent, and the programs it embeds.
const PACKAGES: [&str; 2] = ["metadata-proxy", "metadata-proxy-ebpf"];
const NAME: &str = "bom";

/// Runs the verb: writes a `CycloneDX` document for each into `target/sbom`.
pub(crate) fn run() -> Result<()> {
    setup::ensure(Purpose::Sbom)?;
    let folder = workspace::target_dir().join("sbom");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let tools = workspace::root().join(TOOLS).join("bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let search = env::join_paths(std::iter::once(tools).chain(env::split_paths(&path)))
        .context("cannot search the tools' folder")?;
    for package in PACKAGES {
        let root = workspace::root().join(package);
        step::run(
            Command::new("cargo-cyclonedx")
                .env("PATH", &search)
                .args(["cyclonedx", "--format", "json", "--spec-version", "1.5"])
                .args([
                    "--override-filename",
                    NAME,
                    "--no-build-deps",
                    "--manifest-path",
                ])
                .arg(root.join("Cargo.toml")),
        )?;
        let to = folder.join(format!("{package}.cdx.json"));
        take(&root.join(format!("{NAME}.json")), &to)?;
        println!("{}", to.display());
    }
    sweep()
}

/// Removes the others: the tool writes one beside the manifest of every member.
fn sweep() -> Result<()> {
    let output = Command::new("git")
        .args(["ls-files", "--", "*Cargo.toml"])
        .current_dir(workspace::root())
        .output()
        .context("cannot start git")?;
    for manifest in String::from_utf8_lossy(&output.stdout).lines() {
        let document = workspace::root()
            .join(manifest)
            .with_file_name(format!("{NAME}.json"));
        if document.exists() {
            fs::remove_file(&document)
                .with_context(|| format!("cannot remove {}", document.display()))?;
        }
    }
    Ok(())
}

/// Moves a document; one without components is none.
fn take(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let text = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    let document: serde_json::Value = serde_json::from_slice(&text).context("not JSON")?;
    let is_empty = document["components"].as_array().is_none_or(Vec::is_empty);
    if is_empty {
        bail!("{} has no components", from.display());
    }
    fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))?;
    fs::remove_file(from).with_context(|| format!("cannot remove {}", from.display()))
}
