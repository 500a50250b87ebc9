//! The kernel programs are the same, byte for byte, wherever they are built.

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::tracked;
use crate::{bpf_toolchain::Toolchain, setup::ENDIAN, step, workspace};

/// What is built from.
const SOURCES: &[&str] = &["metadata-proxy-ebpf/", "metadata-proxy-common/"];

/// Builds what is committed in two folders of different names and compares the objects.
pub(super) fn check() -> Result<()> {
    let base = workspace::target_dir().join("reproducible");
    let [first, second] = ["a", "somewhere/else"].map(|name| base.join(name));
    let objects = [build(&first)?, build(&second)?];
    fs::remove_dir_all(&base).context("cannot remove the copies")?;
    ensure!(
        objects[0] == objects[1],
        "the kernel programs depend on the folder they are built in"
    );
    println!("    {} bytes, the same from two folders", objects[0].len());
    Ok(())
}

/// Copies the sources into a folder and builds there, from nothing.
fn build(folder: &Path) -> Result<Vec<u8>> {
    let root = workspace::root();
    if folder.exists() {
        fs::remove_dir_all(folder).context("cannot remove an old copy")?;
    }
    let sources = tracked()?;
    let sources = sources.iter().filter(|name| {
        *name == "Cargo.toml" || SOURCES.iter().any(|source| name.starts_with(source))
    });
    for name in sources {
        let to = folder.join(name);
        fs::create_dir_all(to.parent().unwrap_or(folder)).context("cannot make a copy")?;
        fs::copy(root.join(name), &to).with_context(|| format!("cannot copy {name}"))?;
    }
    // The other members are not needed, and not there.
    let manifest = folder.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).context("cannot read the copy")?;
    let lines = text.lines().map(|line| {
        if line.starts_with("members = ") {
            "members = [\"metadata-proxy-common\"]"
        } else {
            line
        }
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    fs::write(&manifest, text).context("cannot write the copy")?;
    let toolchain = Toolchain::find(&root, ENDIAN)
        .map_err(|missing| anyhow!("{missing}; run `cargo xtask setup`"))?;
    let target = folder.join("target");
    step::run(
        toolchain
            .cargo("build", env::consts::ARCH)
            .args(["--quiet", "--release", "--locked", "--target-dir"])
            .arg(&target)
            .current_dir(folder.join("metadata-proxy-ebpf")),
    )?;
    let object = target.join(toolchain.target).join("release/metadata-proxy");
    fs::read(&object).with_context(|| format!("cannot read {}", object.display()))
}
