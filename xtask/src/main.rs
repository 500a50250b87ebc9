//! Development commands, one verb per file.

mod vm;

use clap::Parser as _;

/// Development commands.
#[derive(clap::Parser)]
#[command(name = "cargo xtask")]
enum Xtask {
    /// Runs the namespace tests in virtual machines, one for each kernel
    VmTest(vm::VmTestArgs),
    /// Boots real guests that get their metadata from the agent
    VmGuest(vm::VmGuestArgs),
}

fn main() -> anyhow::Result<()> {
    match Xtask::parse() {
        Xtask::VmTest(args) => vm::run(&args),
        Xtask::VmGuest(args) => vm::run_guest(&args),
    }
}
