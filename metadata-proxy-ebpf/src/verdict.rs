//! What the kernel is told: one table from outcome to verdict for each kind of program.

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_UNSPEC};
use metadata_proxy_common::Outcome;

use crate::{globals, maps};

/// `SK_PASS` of `enum sk_action`: also what a program that assigned a socket returns.
const SK_PASS: u32 = 1;

/// What a cgroup socket-address hook returns to let the call go on; no hook here ever forbids.
const ALLOW: i32 = 1;

/// Verdict for a frame. `None`: not metadata traffic, which is not even counted.
pub(crate) fn classify(outcome: Option<Outcome>) -> i32 {
    let Some(outcome) = outcome else {
        return TC_ACT_UNSPEC;
    };
    maps::count(outcome);
    match outcome {
        Outcome::SteeredEstablished | Outcome::SteeredSyn | Outcome::SteeredSyncookie => TC_ACT_OK,
        // Untouched: whatever else is attached to this device still sees the frame.
        Outcome::PassedStray
        | Outcome::PassedNoListener
        | Outcome::PassedAssignRefused
        | Outcome::PassedFragment
        | Outcome::PassedMalformed
        | Outcome::ConnectRewritten
        | Outcome::ConnectNoTenant
        | Outcome::ConnectUnrecorded
        | Outcome::PeerNameRestored
        | Outcome::LookupAssigned
        | Outcome::LookupUnassigned => TC_ACT_UNSPEC,
    }
}

/// Verdict for a socket lookup: always pass; an assigned socket is used, else the ordinary one.
pub(crate) fn look_up(outcome: Option<Outcome>) -> u32 {
    if let Some(outcome) = outcome {
        maps::count(outcome);
    }
    SK_PASS
}

/// Verdict for a connect or getpeername: always allow, on the address as it now stands.
pub(crate) fn connect(outcome: Option<Outcome>) -> i32 {
    // Costs nothing; without a reader the linker would drop the version from the object.
    if globals::abi_version() == 0 {
        return ALLOW;
    }
    if let Some(outcome) = outcome {
        maps::count(outcome);
    }
    ALLOW
}
