//! Finds out inside a test guest what the agent makes of its kernel, and writes it on the console
//! for the tables of `cargo xtask vm-test`.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use metadata_proxy::kernel::{EbpfKernel, KernelOptions};
use metadata_proxy_tests::agent;
use metadata_proxy_vm_init::report::Report;

/// Not through standard output, which libtest keeps to itself.
fn tell(name: &str, value: &str) {
    let report = Report::Fact {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    fs::write("/dev/console", format!("\n{report}\n")).unwrap();
}

#[test]
#[ignore = "for test guests: cargo xtask vm-test"]
fn the_engine_is_told_that_this_kernel_gets() {
    let output = Command::new(agent::binary().unwrap())
        .args(["check", "--output", "json"])
        .output()
        .unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let items = told["items"].as_array().unwrap();
    let engine = items.iter().find(|item| item["check"] == "engine").unwrap();
    assert_eq!(engine["verdict"], "ok", "{engine}");
    let found = engine["found"].as_str().unwrap();
    tell("engine", found.split(" on Linux ").next().unwrap());
}

/// Pins below a bpffs of its own, since there may be none.
#[test]
#[ignore = "for test guests: cargo xtask vm-test"]
fn the_verifier_takes_the_programs() {
    let bpffs = PathBuf::from("/run/facts-bpf");
    fs::create_dir_all(&bpffs).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "bpf", "bpf"])
        .arg(&bpffs)
        .status()
        .unwrap();
    assert!(mounted.success());
    let kernel = EbpfKernel::load(KernelOptions {
        bpffs_dir: Path::new(&bpffs).join("metadata-proxy"),
        listener_port: 9697,
        listener_v4_only: false,
        max_tenants: 16,
        rcu_expedited: false,
        debug_log: false,
    })
    .unwrap_or_else(|error| panic!("{error}"));
    let sizes = kernel.program_sizes();
    assert!(!sizes.is_empty());
    for size in sizes {
        let instructions = size
            .verified_instructions
            .map_or_else(|| "untold".to_owned(), |count| count.to_string());
        tell(
            &format!("verified-instructions:{}", size.name),
            &instructions,
        );
    }
    drop(kernel);
    nix::mount::umount(&bpffs).unwrap();
}
