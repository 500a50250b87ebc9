//! Compiles the kernel programs and leaves the object at `$OUT_DIR/metadata-proxy.bpf.o`, to be
//! embedded in the binary.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

#[path = "../xtask/src/bpf_toolchain.rs"]
mod bpf_toolchain;

/// What the object depends on, below the workspace's root.
const SOURCES: &[&str] = &[
    "metadata-proxy-ebpf/src",
    "metadata-proxy-ebpf/Cargo.toml",
    "metadata-proxy-ebpf/Cargo.lock",
    "metadata-proxy-common/src",
    "metadata-proxy-common/Cargo.toml",
    "metadata-proxy/build.rs",
    "xtask/src/bpf_toolchain.rs",
];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let crate_root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let workspace = crate_root
        .parent()
        .ok_or("this crate is not inside its workspace")?;
    for source in SOURCES {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(source).display()
        );
    }
    println!(
        "cargo::rerun-if-env-changed={}",
        bpf_toolchain::LINKER_VARIABLE
    );

    let endian = env::var("CARGO_CFG_TARGET_ENDIAN")?;
    let toolchain = bpf_toolchain::Toolchain::find(workspace, &endian)
        .map_err(|missing| format!("{missing}; run `cargo xtask setup`"))?;

    let out = PathBuf::from(env::var("OUT_DIR")?);
    let target_dir = target_dir(&out, workspace);
    let status = toolchain
        .cargo("build", &env::var("CARGO_CFG_TARGET_ARCH")?, workspace)
        .arg("--release")
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(workspace.join("metadata-proxy-ebpf"))
        .status()
        .map_err(|error| format!("cannot start cargo for the kernel programs: {error}"))?;
    if !status.success() {
        return Err(format!("the kernel programs do not build with {toolchain}; see above").into());
    }
    let object = target_dir
        .join(toolchain.target)
        .join("release/metadata-proxy");
    fs::copy(&object, out.join("metadata-proxy.bpf.o"))
        .map_err(|error| format!("cannot copy {}: {error}", object.display()))?;
    Ok(())
}

/// Beside the profiles, so that all of them share what was built of the kernel programs.
fn target_dir(out: &Path, workspace: &Path) -> PathBuf {
    // OUT_DIR is <target>/<profile>/build/<package>/out; where a target was named, it is before the profile.
    let beside_profiles = out.ancestors().nth(4).unwrap_or(out);
    let named = env::var_os("TARGET");
    let target = match beside_profiles.parent() {
        Some(parent) if beside_profiles.file_name() == named.as_deref() => parent,
        _ => beside_profiles,
    };
    bpf_toolchain::target_dir(target, workspace)
}
