//! Tools that cargo installs from the registry, below the workspace; each takes minutes to build.

use anyhow::Result;

use super::{Found, debian::find_program};
use crate::{bpf_toolchain::TOOLS, step, workspace};

/// A program, and the version of its package of the same name.
pub(super) struct CargoTool {
    name: &'static str,
    version: &'static str,
}

/// Checks licences, advisories and duplicates.
pub(super) const DENY: CargoTool = CargoTool {
    name: "cargo-deny",
    version: "0.20.2",
};

/// Lists what a binary is made of.
pub(super) const CYCLONEDX: CargoTool = CargoTool {
    name: "cargo-cyclonedx",
    version: "0.5.9",
};

/// What is run for seconds is not worth the minutes that the best code takes.
pub(super) const BUILT_QUICKLY: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "256"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
];

impl CargoTool {
    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    /// Makes sure that it is there.
    pub(super) fn ensure(&self) -> Result<Found> {
        let Self { name, version } = self;
        let tools = workspace::root().join(TOOLS);
        let own = tools.join("bin").join(name);
        if own.exists() {
            return Ok(Found::Present(format!("{TOOLS}/bin/{name}")));
        }
        if let Some(path) = find_program(name) {
            return Ok(Found::Present(path.display().to_string()));
        }
        step::run_quietly(
            &format!("building {name} {version}"),
            workspace::cargo("install")
                .args([name, "--version", version, "--locked", "--root"])
                .arg(&tools)
                .envs(BUILT_QUICKLY)
                .env_remove("CARGO_TARGET_DIR"),
        )?;
        Ok(Found::Installed(format!("{version} in {TOOLS}")))
    }
}
