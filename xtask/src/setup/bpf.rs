//! The toolchain of the kernel programs: a compiler, its LLVM, and `bpf-linker`.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{
    Found, Item,
    cargo_tools::BUILT_QUICKLY,
    debian::{Packages, Wanted, find_program},
};
use crate::{
    bpf_toolchain::{self, Compiler, Missing, TOOLS, Toolchain},
    step, workspace,
};

const LINKER_VERSION: &str = "0.13.0";

/// The LLVMs this version of `bpf-linker` can be built with.
const LINKER_LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// Endianness of the machine the kernel programs are for: this one.
pub(crate) const ENDIAN: &str = if cfg!(target_endian = "big") {
    "big"
} else {
    "little"
};

/// Makes sure that the kernel programs can be compiled and linked.
pub(super) fn toolchain(packages: &mut Packages) -> Result<Vec<Item>> {
    let root = workspace::root();
    let found = match Toolchain::find(&root, ENDIAN) {
        Ok(toolchain) => {
            return Ok(vec![item(
                "BPF toolchain",
                Found::Present(toolchain.to_string()),
            )]);
        }
        Err(Missing::Linker { compilers, .. }) => Found::Present(listed(&compilers)),
        Err(Missing::Compiler { target }) => packages.ensure_all(&debian_compiler(target))?,
    };
    let missing_compiler = matches!(found, Found::Needed(_));
    let mut items = vec![item("BPF compiler", found)];
    if missing_compiler {
        return Ok(items);
    }
    let compilers = Compiler::candidates(bpf_toolchain::target(ENDIAN));
    items.extend(linker(packages, &root, &compilers)?);
    if let Ok(toolchain) = Toolchain::find(&root, ENDIAN) {
        items.push(item("BPF toolchain", Found::Present(toolchain.to_string())));
    }
    Ok(items)
}

/// Makes sure that the kernel programs can be linted: with the clippy of their own compiler.
pub(super) fn clippy(packages: &mut Packages) -> Result<Found> {
    let Ok(toolchain) = Toolchain::find(&workspace::root(), ENDIAN) else {
        return Ok(Found::Needed("the BPF toolchain comes first".to_owned()));
    };
    let clippy = toolchain.beside_compiler("cargo-clippy");
    packages.ensure_all(&[Wanted::file(clippy, "rust-web-clippy")])
}

fn item(name: &'static str, found: Found) -> Item {
    Item { name, found }
}

fn listed<T: fmt::Display>(things: &[T]) -> String {
    things
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// Debian's compiler with `core` prebuilt for BPF; a rustup nightly has to be installed by hand.
fn debian_compiler(target: &str) -> [Wanted; 2] {
    [
        Wanted::file("/usr/bin/rustc", "rustc-web"),
        Wanted::file(
            Path::new("/usr/lib/rustlib").join(target).join("lib"),
            "libstd-rust-web-dev-bpf",
        ),
    ]
}

/// Builds `bpf-linker` for one of the compilers, into the project's own folder.
fn linker(packages: &mut Packages, root: &Path, compilers: &[Compiler]) -> Result<Vec<Item>> {
    let buildable = |compiler: &&Compiler| LINKER_LLVMS.contains(&compiler.llvm);
    let installed = |compiler: &&Compiler| llvm_config(compiler.llvm).is_some();
    // One whose LLVM is there needs no package; otherwise the last, which is Debian's.
    let chosen = compilers
        .iter()
        .filter(buildable)
        .find(installed)
        .or_else(|| compilers.iter().rfind(buildable));
    let Some(compiler) = chosen else {
        let how = format!(
            "bpf-linker {LINKER_VERSION} knows LLVM {} to {}, not that of {}; \
             install Debian's rustc-web and libstd-rust-web-dev-bpf",
            LINKER_LLVMS.start(),
            LINKER_LLVMS.end(),
            listed(compilers)
        );
        return Ok(vec![item("bpf-linker", Found::Needed(how))]);
    };
    let llvm = compiler.llvm;
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    let libraries = packages.ensure_all(&[
        Wanted::file(prefix.join("bin/llvm-config"), format!("llvm-{llvm}-dev")),
        Wanted::file(
            prefix.join("lib/libPolly.a"),
            format!("libpolly-{llvm}-dev"),
        ),
        Wanted::file("/usr/include/zstd.h", "libzstd-dev"),
        Wanted::program("c++", "g++"),
    ])?;
    let lacking = matches!(libraries, Found::Needed(_));
    let mut items = vec![item("LLVM", libraries)];
    if !lacking {
        step::run_quietly(
            &format!("building bpf-linker {LINKER_VERSION} with LLVM {llvm}"),
            workspace::cargo("install")
                .args([
                    "bpf-linker",
                    "--version",
                    LINKER_VERSION,
                    "--locked",
                    "--force",
                ])
                .args([
                    "--no-default-features",
                    "--features",
                    &format!("llvm-{llvm}"),
                    "--root",
                ])
                .arg(root.join(TOOLS))
                .env("LLVM_PREFIX", &prefix)
                .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix)
                // Its work is LLVM's.
                .envs(BUILT_QUICKLY)
                // A target directory of its own, removed afterwards.
                .env_remove("CARGO_TARGET_DIR"),
        )?;
        items.push(item(
            "bpf-linker",
            Found::Installed(format!("{LINKER_VERSION} in {TOOLS}")),
        ));
    }
    Ok(items)
}

fn llvm_config(llvm: u32) -> Option<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{llvm}/bin/llvm-config"));
    debian
        .exists()
        .then_some(debian)
        .or_else(|| find_program(&format!("llvm-config-{llvm}")))
}
