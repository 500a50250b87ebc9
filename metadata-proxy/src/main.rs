//! Parses, starts, and maps an error to an exit code.

use std::process::ExitCode;

use metadata_proxy::{cli, node};

/// Gives memory back after a load, unlike glibc's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::dispatch(cli::parse(), node::run)
}
