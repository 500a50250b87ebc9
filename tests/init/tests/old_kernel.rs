//! Proves inside a test guest whose kernel has no `SO_NETNS_COOKIE` (before 5.14) that the agent
//! refuses to run there, says why, and leaves nothing behind.
//!
//! Ignored elsewhere: `cargo xtask vm-test` runs it with `--include-ignored` on such kernels.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use metadata_proxy_tests::{Agent, Footprint, Kind, Node, TenantFixture, agent};

/// A refusal is told at once, not after tries.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Runs a command of the agent on a node with a tenant, and proves that nothing is left.
fn output_that_leaves_nothing_behind(verb: &str) -> Output {
    let node = Node::new().unwrap();
    let tenant = TenantFixture::new(&node, Kind::Router).unwrap();
    let configuration = Agent::builder(&node)
        .upstream_agent(&node.directory().join("agent"))
        .write_configuration()
        .unwrap();
    let inside = Footprint::of_netns(&tenant.netns).unwrap();
    let at_node = Footprint::of_node(&node).unwrap();
    let begun = Instant::now();
    let output = Command::new(agent::binary().unwrap())
        .arg(verb)
        .arg("--config")
        .arg(configuration)
        .output()
        .unwrap();
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!(Footprint::of_netns(&tenant.netns).unwrap(), inside);
    assert_eq!(Footprint::of_node(&node).unwrap(), at_node);
    output
}

fn assert_refuses(output: &Output) {
    let told = [output.stdout.as_slice(), &output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert!(!output.status.success(), "{told}");
    assert!(told.contains("SO_NETNS_COOKIE"), "{told}");
    assert!(told.contains("5.14"), "{told}");
}

#[test]
#[ignore = "for test guests with a kernel before 5.14: cargo xtask vm-test"]
fn check_says_that_the_kernel_is_too_old_and_changes_nothing() {
    assert_refuses(&output_that_leaves_nothing_behind("check"));
}

#[test]
#[ignore = "for test guests with a kernel before 5.14: cargo xtask vm-test"]
fn run_refuses_the_kernel_and_leaves_nothing_behind() {
    assert_refuses(&output_that_leaves_nothing_behind("run"));
}
