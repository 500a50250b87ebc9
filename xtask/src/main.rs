//! Development commands, one verb per file.

mod bench;
mod bpf_toolchain;
mod build;
mod ci;
mod demo;
mod drill;
mod fuzz;
mod lint;
mod pgo;
mod run;
mod sbom;
mod setup;
mod step;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::Parser as _;

/// Development commands.
#[derive(clap::Parser)]
#[command(name = "cargo xtask")]
enum Xtask {
    /// Installs what is missing, or says what to run
    Setup(setup::SetupArgs),
    /// Builds the agent, kernel programs included
    Build(build::BuildArgs),
    /// Builds the agent, then runs it as root
    Run(run::RunArgs),
    /// Shows one agent serving several tenants with the same addresses
    Demo(demo::DemoArgs),
    /// Runs the tests
    Test(test::TestArgs),
    /// Runs the checks: format, lints, documentation, licences, what is committed
    Lint,
    /// Measures the agent beside haproxy
    Bench(bench::BenchArgs),
    /// Tries to break what the agent promises, one promise a drill
    Drill(drill::DrillArgs),
    /// Runs the fuzz targets
    Fuzz(fuzz::FuzzArgs),
    /// Runs the namespace tests in virtual machines, one for each kernel
    VmTest(vm::VmTestArgs),
    /// Writes what the agent is made of, for those who have to know
    Sbom,
    /// Makes the profile that the agent is optimised by
    Pgo(pgo::PgoArgs),
    /// Runs all that CI runs
    Ci,
    /// Boots real guests that get their metadata from the agent
    VmGuest(vm::VmGuestArgs),
}

fn main() -> ExitCode {
    let result = match Xtask::parse() {
        Xtask::Setup(args) => setup::run(&args),
        Xtask::Build(args) => build::run(args),
        Xtask::Run(args) => run::run(&args),
        Xtask::Demo(args) => demo::run(&args),
        Xtask::Test(args) => test::run(&args),
        Xtask::Lint => lint::run(),
        Xtask::Bench(args) => bench::run(&args),
        Xtask::Drill(args) => drill::run(&args),
        Xtask::Fuzz(args) => fuzz::run(&args),
        Xtask::VmTest(args) => vm::run(&args),
        Xtask::VmGuest(args) => vm::run_guest(&args),
        Xtask::Sbom => sbom::run(),
        Xtask::Pgo(args) => pgo::run(&args),
        Xtask::Ci => ci::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
