//! PID 1 of a test guest: mounts, inserts modules, runs the tests of the manifest one after the
//! other, prints one result line for each and one at the end, and powers off.
//!
//! It must not decide anything: what is run, and under which conditions, is in the manifest, and
//! the host judges by the result lines. It must end every guest it can end, also after an error.

mod mounts;
mod run;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use metadata_proxy_vm_init::manifest::{self, Manifest};
use metadata_proxy_vm_init::report::Report;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::reboot::{RebootMode, reboot};

fn main() -> anyhow::Result<()> {
    ensure!(
        std::process::id() == 1,
        "this program is PID 1 of a test guest and mounts and powers off; `cargo xtask vm-test` boots one"
    );
    match guest() {
        Ok(report) => say(&report),
        Err(error) => say(&Report::Broken {
            why: format!("{error:#}"),
        }),
    }
    // The results are on the serial line by then: the terminal is drained when it is closed, but
    // a machine that is off drains nothing.
    if let Err(errno) = nix::sys::termios::tcdrain(std::io::stdout()) {
        eprintln!("the console could not be drained: {errno}");
    }
    match reboot(RebootMode::RB_POWER_OFF).context("the guest could not be powered off")? {}
}

fn guest() -> anyhow::Result<Report> {
    mounts::essential()?;
    let text = fs::read(manifest::PATH).with_context(|| format!("reading {}", manifest::PATH))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).with_context(|| format!("parsing {}", manifest::PATH))?;
    say(&Report::Started {
        kernel: kernel_release()?,
    });

    mounts::cgroups(manifest.cgroups)?;
    for module in &manifest.modules {
        insert(module)?;
    }
    if manifest.bpffs {
        mounts::bpffs()?;
    }
    for (name, value) in &manifest.sysctls {
        let path = Path::new("/proc/sys").join(name);
        fs::write(&path, value)
            .with_context(|| format!("writing {value} to {}", path.display()))?;
    }
    let lo = Command::new("/usr/sbin/ip")
        .args(["link", "set", "lo", "up"])
        .status();
    let lo = lo.context("running ip")?;
    ensure!(lo.success(), "ip link set lo up ended with {lo}");

    let mut passed = 0;
    for test in &manifest.tests {
        say(&Report::Running {
            name: test.name.clone(),
        });
        let outcome = run::test(test, &manifest)?;
        passed += usize::from(outcome.passed);
        say(&Report::Finished {
            name: test.name.clone(),
            passed: outcome.passed,
            took: outcome.took,
        });
    }
    Ok(Report::Done {
        passed,
        failed: manifest.tests.len() - passed,
    })
}

/// Result lines begin on a line of their own, whatever a test left unfinished.
fn say(report: &Report) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = write!(out, "\n{report}\n").and_then(|()| out.flush()) {
        eprintln!("a result line was not written: {error}");
    }
}

fn kernel_release() -> anyhow::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").context("reading osrelease")?;
    Ok(text.trim().to_owned())
}

fn insert(module: &Path) -> anyhow::Result<()> {
    let file = File::open(module).with_context(|| format!("opening {}", module.display()))?;
    finit_module(&file, c"", ModuleInitFlags::empty())
        .with_context(|| format!("inserting {}", module.display()))
}
