//! Runs one test, ends what it leaves, and buries every orphan meanwhile, as PID 1 has to.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use metadata_proxy_vm_init::manifest::{Manifest, Test};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::mounts::HiddenKernelTypes;

/// How often the children are looked at; far below what a test takes.
const POLL: Duration = Duration::from_millis(10);

pub(crate) struct Outcome {
    pub(crate) passed: bool,
    pub(crate) took: Duration,
}

pub(crate) fn test(test: &Test, manifest: &Manifest) -> anyhow::Result<Outcome> {
    let _hidden = test
        .without_kernel_types
        .then(HiddenKernelTypes::new)
        .transpose()?;
    let begun = Instant::now();
    let child = start(test, manifest).with_context(|| format!("starting {}", test.name))?;
    let deadline = begun + Duration::from_secs(test.timeout_seconds);
    let mut killed = false;
    let status = loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)).context("waiting for the test")? {
            status if status.pid() == Some(child) => break status,
            // Somebody's orphan: it is buried, and there may be more.
            status if status.pid().is_some() => continue,
            _ => thread::sleep(POLL),
        }
        if !killed && Instant::now() >= deadline {
            println!("{} is killed after {} s", test.name, test.timeout_seconds);
            end_group(child)?;
            killed = true;
        }
    };
    let took = begun.elapsed();
    end_group(child)?;
    let passed = matches!(status, WaitStatus::Exited(_, 0)) && !killed;
    if !passed {
        println!("{} ended: {status:?}", test.name);
    }
    Ok(Outcome { passed, took })
}

fn start(test: &Test, manifest: &Manifest) -> io::Result<Pid> {
    let mut command = Command::new(&test.program);
    command
        .args(&test.arguments)
        .env_clear()
        .envs(&manifest.environment)
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .process_group(0);
    let dropped = test.without_capabilities.clone();
    // SAFETY: between fork and exec the closure only makes system calls on memory allocated
    // before the fork.
    unsafe { command.pre_exec(move || drop_from_bounding_set(&dropped)) };
    let child = command.spawn()?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// What is not in the bounding set is lost at the next exec, even for root.
fn drop_from_bounding_set(capabilities: &[u32]) -> io::Result<()> {
    for capability in capabilities {
        // SAFETY: PR_CAPBSET_DROP takes one number and touches no memory of ours.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, *capability, 0, 0, 0) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Ends whatever the test left in its process group.
fn end_group(leader: Pid) -> anyhow::Result<()> {
    match killpg(leader, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).context("ending what the test left"),
    }
}
