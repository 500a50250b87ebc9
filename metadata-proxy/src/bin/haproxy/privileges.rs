//! Giving up what is not needed to hold a lease.

use std::{fs, os::unix::fs::MetadataExt, path::Path, ptr};

use nix::{sys::prctl, unistd};

/// `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h).
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// `CAP_DAC_OVERRIDE` (linux/capability.h).
const DAC_OVERRIDE: u32 = 1;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Set {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up every capability but the one that it takes to connect to the agent again, if the
/// agent's socket is not our user's own. The user stays: the agent takes registrations from root
/// and from its own user alone.
pub(crate) fn give_up(register_socket: &Path) {
    let own = fs::metadata(register_socket)
        .is_ok_and(|socket| socket.uid() == unistd::geteuid().as_raw());
    let kept = if own { 0 } else { 1 << DAC_OVERRIDE };
    // Without it, or without the privilege to begin with, nothing else changes.
    let _ = prctl::set_no_new_privs();
    let header = Header {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let low = Set {
        effective: kept,
        permitted: kept,
        inheritable: 0,
    };
    let high = Set {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    };
    let sets = [low, high];
    // SAFETY: version 3 reads one header and two sets, which are laid out as the kernel's.
    unsafe { libc::syscall(libc::SYS_capset, &raw const header, ptr::from_ref(&sets)) };
}
