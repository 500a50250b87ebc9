//! `cargo-deny`, which checks licences, advisories and duplicates.

use anyhow::Result;

use super::{Found, debian::find_program};
use crate::{bpf_toolchain::TOOLS, step, workspace};

const VERSION: &str = "0.20.2";

/// Makes sure that it is there; building it takes minutes.
pub(super) fn cargo_deny() -> Result<Found> {
    let tools = workspace::root().join(TOOLS);
    let own = tools.join("bin/cargo-deny");
    if own.exists() {
        return Ok(Found::Present(format!("{TOOLS}/bin/cargo-deny")));
    }
    if let Some(path) = find_program("cargo-deny") {
        return Ok(Found::Present(path.display().to_string()));
    }
    step::run_quietly(
        &format!("building cargo-deny {VERSION}"),
        workspace::cargo("install")
            .args(["cargo-deny", "--version", VERSION, "--locked", "--root"])
            .arg(&tools)
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    Ok(Found::Installed(format!("{VERSION} in {TOOLS}")))
}
