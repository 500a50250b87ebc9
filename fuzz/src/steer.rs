//! Frames that arrive on a tenant's device.

use std::cell::OnceCell;

use metadata_proxy::kernel::{EbpfKernel, Kernel as _, KernelOptions};

use crate::netns::leave_the_node;

/// `TC_ACT_UNSPEC`: untouched.
const PASSED: i32 = -1;
/// The kernel takes no shorter frame in a test run (`ETH_HLEN`).
const SHORTEST: usize = 14;
/// Nor one that leaves no room in a page for what it puts around it.
const LONGEST: usize = 3000;

/// What the kernel says of a frame that it does not run the program on (`EINVAL`).
const NOT_RUN: &str = "(os error 22)";

/// Whatever the frame: it is passed on and not changed, and at most one outcome is counted.
pub fn steer(data: &[u8]) {
    thread_local! {
        static KERNEL: OnceCell<EbpfKernel> = const { OnceCell::new() };
    }
    if !(SHORTEST..=LONGEST).contains(&data.len()) {
        return;
    }
    KERNEL.with(|kernel| {
        let kernel = kernel.get_or_init(load);
        let before = total(kernel);
        let run = match kernel.run_steer(data, 1) {
            Ok(run) => run,
            Err(error) if error.to_string().contains(NOT_RUN) && is_cut_short(data) => return,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(run.verdict, PASSED);
        assert_eq!(run.frame, data, "the frame was changed");
        assert!(total(kernel) - before <= 1);
    });
}

/// Whether a frame says that it has an IP header and has none: such a one could not arrive, and newer
/// kernels do not run a program on it.
fn is_cut_short(frame: &[u8]) -> bool {
    let header = match frame[12..SHORTEST] {
        [0x08, 0x00] => 20,
        [0x86, 0xdd] => 40,
        _ => return false,
    };
    frame.len() < SHORTEST + header
}

fn total(kernel: &EbpfKernel) -> u64 {
    let outcomes = kernel.outcomes().unwrap_or_else(|error| panic!("{error}"));
    outcomes.iter().map(|(_, count)| count).sum()
}

fn load() -> EbpfKernel {
    leave_the_node();
    let kernel = EbpfKernel::load(KernelOptions {
        bpffs_dir: format!("/sys/fs/bpf/mdp-test-fuzz-{}", std::process::id()).into(),
        listener_port: 9697,
        listener_v4_only: false,
        max_tenants: 16,
        rcu_expedited: false,
        debug_log: false,
    })
    .unwrap_or_else(|error| panic!("{error}"));
    // libFuzzer ends without dropping anything; what is loaded lives without its pins.
    kernel.remove_pins();
    kernel
}
