//! The kernel programs are the same, byte for byte, wherever they are built.
//!
//! All that reaches the kernel is: code, maps, their relocations, BTF. The names of functions, in the
//! object's string table and for debuggers, carry a hash in which cargo mixes the folder.

use std::{collections::BTreeMap, env, fs, path::Path, thread};

use anyhow::{Context as _, Result, anyhow, ensure};
use object::{Object as _, ObjectSection as _};

use super::tracked;
use crate::{
    bpf_toolchain::{self, Toolchain},
    setup::ENDIAN,
    step, workspace,
};

/// What is built from.
const SOURCES: &[&str] = &["metadata-proxy-ebpf/", "metadata-proxy-common/"];

/// Builds in the workspace, where all others find what is built, and what is committed in a folder of another
/// name and depth; compares the objects.
pub(super) fn check() -> Result<()> {
    let root = workspace::root();
    let target = workspace::target_dir();
    let elsewhere = target.join("reproducible/somewhere/else");
    // Side by side: each is one crate after the other for most of its time.
    let [first, second] = thread::scope(|scope| {
        let here = scope.spawn(|| build(&root, &bpf_toolchain::target_dir(&target, &root)));
        let there = scope.spawn(|| {
            copy(&elsewhere)?;
            build(&elsewhere, &elsewhere.join("target"))
        });
        [here, there].map(|build| {
            build
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    });
    let [first, second] = [first?, second?];
    let differing: Vec<_> = first
        .iter()
        .filter(|(name, data)| second.get(*name) != Some(data))
        .map(|(name, _)| name.as_str())
        .collect();
    ensure!(
        differing.is_empty() && first.len() == second.len(),
        "the kernel programs depend on the folder they are built in: {}",
        differing.join(", ")
    );
    fs::remove_dir_all(&elsewhere).context("cannot remove the copy")?;
    let bytes: usize = first.values().map(Vec::len).sum();
    println!(
        "    {} sections, {bytes} bytes, the same from another folder",
        first.len()
    );
    Ok(())
}

/// What of an object reaches the kernel, by section.
fn sections(object: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let file = object::File::parse(object).context("not an object")?;
    let mut sections = BTreeMap::new();
    for section in file.sections() {
        let name = section.name().context("a section has no name")?;
        let is_name_or_debug = name == ".strtab"
            || name == ".symtab"
            || name.starts_with(".debug_")
            || name.starts_with(".rel.debug_");
        if !is_name_or_debug {
            let data = section.data().context("a section has no data")?;
            sections.insert(name.to_owned(), data.to_vec());
        }
    }
    ensure!(
        sections.contains_key("classifier") && sections.contains_key(".BTF"),
        "the object has no programs or no BTF"
    );
    Ok(sections)
}

/// Copies what is committed into a folder, and nothing that was built from it.
fn copy(folder: &Path) -> Result<()> {
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
    fs::write(&manifest, text).context("cannot write the copy")
}

/// Builds the kernel programs of a folder in a target directory.
fn build(folder: &Path, target: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let toolchain = Toolchain::find(&workspace::root(), ENDIAN)
        .map_err(|missing| anyhow!("{missing}; run `cargo xtask setup`"))?;
    step::run(
        toolchain
            .cargo("build", env::consts::ARCH, folder)
            .args(["--quiet", "--release", "--locked", "--target-dir"])
            .arg(target)
            .current_dir(folder.join("metadata-proxy-ebpf")),
    )?;
    let object = target.join(toolchain.target).join("release/metadata-proxy");
    let object = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
    sections(&object)
}
