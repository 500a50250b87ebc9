//! Read-only values that the loader writes into the object before the kernel verifies it.
//!
//! They are constants to the verifier, so code for a setting that is off is removed.

use core::ptr;

use metadata_proxy_common::{ABI_VERSION, DEFAULT_LISTENER_PORT};

/// Version of the contract this object was built with; compared by the loader.
#[unsafe(no_mangle)]
static ABI: u32 = ABI_VERSION;

#[unsafe(no_mangle)]
static LISTENER_PORT: u16 = DEFAULT_LISTENER_PORT;

#[unsafe(no_mangle)]
static LISTENER_V4_ONLY: u8 = 0;

#[unsafe(no_mangle)]
static DEBUG_LOG: u8 = 0;

/// Reads a global in a way the compiler may not fold, since the loader changes it afterwards.
fn read<T: Copy>(global: &'static T) -> T {
    // SAFETY: a reference to an initialised static is valid for reads.
    unsafe { ptr::read_volatile(ptr::from_ref(global)) }
}

/// Port of the listeners, in host order.
pub(crate) fn listener_port() -> u16 {
    read(&LISTENER_PORT)
}

/// Whether listeners are IPv4-only sockets, as on a kernel without IPv6.
pub(crate) fn listener_v4_only() -> bool {
    read(&LISTENER_V4_ONLY) != 0
}

/// Whether debug lines were asked for.
pub(crate) fn debug_log() -> bool {
    read(&DEBUG_LOG) != 0
}

/// Keeps [`ABI`] in the object although no program needs it.
pub(crate) fn abi_version() -> u32 {
    read(&ABI)
}
