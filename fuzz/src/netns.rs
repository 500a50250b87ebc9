//! A network namespace for a target's own thread, so that nothing of it meets the machine's.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Moves the calling thread into a namespace of its own, with nothing but a loopback device.
pub(crate) fn leave_the_node() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this target needs root");
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    assert!(up.expect("iproute2 is needed").success());
}
