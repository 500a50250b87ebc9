//! Parses, starts, and maps an error to an exit code.

use std::process::ExitCode;

use metadata_proxy::{cli, node};

/// Gives memory back after a load, unlike glibc's.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Freed memory goes back within a second, by a thread that sleeps while there is none, and that
/// the agent starts once it has given up what it does not need: what start and a load took is several times what idling takes. A few arenas do for all threads.
// The name that jemalloc reads its settings from, with the prefix that the crate gives it. Its type
// is a pointer to a string that ends with NUL, which is what a reference to one is.
#[cfg(feature = "jemalloc")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: Option<&'static std::ffi::c_char> = Some(
    // SAFETY: the pointer leads to a string that lives as long as the program.
    unsafe { &*c"dirty_decay_ms:1000,muzzy_decay_ms:0,narenas:4".as_ptr() },
);

fn main() -> ExitCode {
    cli::dispatch(cli::parse(), node::run)
}
