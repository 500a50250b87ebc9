//! The program that merges profiles, of the LLVM that is the compiler's: another would not read them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{
    Found,
    debian::{Packages, Wanted},
};
use crate::{bpf_toolchain::llvm_of_compiler, pgo::rustc};

const PROGRAM: &str = "llvm-profdata";

/// Makes sure that it is there.
pub(super) fn ensure(packages: &mut Packages) -> Result<Found> {
    let of_rustup = of_rustup()?;
    if of_rustup.exists() {
        return Ok(Found::Present(of_rustup.display().to_string()));
    }
    let llvm = llvm()?;
    let found = packages.ensure_all(&[Wanted::file(of_debian(llvm), format!("llvm-{llvm}"))])?;
    Ok(match found {
        Found::Needed(how) => Found::Needed(format!(
            "{how}, or, with rustup: rustup component add llvm-tools"
        )),
        found => found,
    })
}

/// Where it is once it is there.
pub(super) fn path() -> Result<PathBuf> {
    let of_rustup = of_rustup()?;
    if of_rustup.exists() {
        return Ok(of_rustup);
    }
    Ok(of_debian(llvm()?))
}

/// Where rustup's component `llvm-tools` has it.
fn of_rustup() -> Result<PathBuf> {
    let libraries = rustc(&["--print", "target-libdir"])?;
    let folder = Path::new(libraries.trim()).with_file_name("bin");
    Ok(folder.join(PROGRAM))
}

fn of_debian(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}/bin/{PROGRAM}"))
}

fn llvm() -> Result<u32> {
    llvm_of_compiler(Path::new("rustc")).context("rustc does not say which LLVM it has")
}
