//! What the process gives up: capabilities before any thread starts, system calls once it serves.
//!
//! What is left is what tenants that come, go, or are damaged later still take. SECURITY.md says what
//! each is for.

mod syscalls;

use anyhow::Context as _;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use tracing::info;

use crate::config::Seccomp;

/// The capabilities that are kept, as far as the process has them. `CAP_SYS_ADMIN` contains what
/// `CAP_BPF` and `CAP_PERFMON` allow; the first is kept for kernels and policies that tell them apart.
const KEPT: [Capability; 6] = [
    // Enters namespaces, mounts bpffs.
    Capability::CAP_SYS_ADMIN,
    // Routes, addresses, filters; transparent and marked sockets.
    Capability::CAP_NET_ADMIN,
    // Programs, maps, links.
    Capability::CAP_BPF,
    // The metadata port, with the `bind` engine; a listener.port below 1024.
    Capability::CAP_NET_BIND_SERVICE,
    // The upstream's socket, which belongs to Neutron's user.
    Capability::CAP_DAC_OVERRIDE,
    // The namespaces of processes that are named by their id.
    Capability::CAP_SYS_PTRACE,
];

/// Gives up every capability but [`KEPT`], for good, and every way to get one back by executing a
/// program.
///
/// Capabilities belong to threads: it must be called before any other is started.
///
/// # Errors
/// If the kernel refuses; it never refuses less privilege, unless something else forbids the call.
pub(super) fn drop_capabilities() -> anyhow::Result<()> {
    prctl::set_no_new_privs().context("cannot set no_new_privs")?;
    caps::clear(None, CapSet::Ambient).context("cannot clear the ambient capabilities")?;
    let permitted = caps::read(None, CapSet::Permitted).context("cannot read capabilities")?;
    let kept: CapsHashSet = KEPT
        .iter()
        .copied()
        .filter(|cap| permitted.contains(cap))
        .collect();
    // Takes CAP_SETPCAP, which a unit with a bounding set of its own need not give.
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::runtime::thread_all_supported() {
            if !kept.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)
                    .with_context(|| format!("cannot drop {capability} from the bounding set"))?;
            }
        }
    }
    caps::clear(None, CapSet::Inheritable).context("cannot clear the inheritable capabilities")?;
    caps::set(None, CapSet::Effective, &kept).context("cannot drop effective capabilities")?;
    caps::set(None, CapSet::Permitted, &kept).context("cannot drop permitted capabilities")
}

/// Lets the allocator start its thread, which it would otherwise have started before `main`, with
/// every capability.
pub(super) fn start_allocator_thread() {
    #[cfg(feature = "jemalloc")]
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::warn!(%error, "freed memory goes back late: the allocator has no thread");
    }
}

/// Gives up, on every thread, the system calls that a node in service has no use for.
///
/// # Errors
/// If this machine's architecture is none that is known, or the kernel refuses.
pub(super) fn filter_syscalls(seccomp: Seccomp) -> anyhow::Result<()> {
    let Some(program) = program(seccomp)? else {
        info!("system calls are not filtered (security.seccomp)");
        return Ok(());
    };
    seccompiler::apply_filter_all_threads(&program).context("cannot filter system calls")
}

/// The filter; none where it is off.
fn program(seccomp: Seccomp) -> anyhow::Result<Option<BpfProgram>> {
    let otherwise = match seccomp {
        Seccomp::Enforce => SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        Seccomp::Log => SeccompAction::Log,
        Seccomp::Off => return Ok(None),
    };
    let arch = std::env::consts::ARCH
        .try_into()
        .context("system calls cannot be filtered on this architecture")?;
    let rules = syscalls::allowed()?;
    let filter = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch)
        .context("the filter of system calls is wrong")?;
    let program = filter
        .try_into()
        .context("the filter of system calls is wrong")?;
    Ok(Some(program))
}

#[cfg(test)]
mod tests {
    use std::{io, thread};

    use super::*;

    #[test]
    fn a_filtered_thread_can_serve_and_nothing_else() {
        let program = program(Seccomp::Enforce).unwrap().unwrap();
        let (served, executed) = thread::spawn(move || {
            seccompiler::apply_filter(&program).unwrap();
            let listener = std::net::TcpListener::bind("127.0.0.1:0");
            let served = listener.and_then(|it| it.local_addr()).is_ok();
            // SAFETY: no program is named, so that none could be executed.
            let result = unsafe { libc::syscall(libc::SYS_execve, 0, 0, 0) };
            (served, (result, io::Error::last_os_error().raw_os_error()))
        })
        .join()
        .unwrap();
        assert!(served);
        assert_eq!(executed, (-1, Some(libc::EPERM)), "else it would be EFAULT");
    }

    #[test]
    fn a_thread_keeps_no_capability_that_is_not_needed() {
        let (before, after, is_final) = thread::spawn(|| {
            let before = caps::read(None, CapSet::Permitted).unwrap();
            drop_capabilities().unwrap();
            let sets = [CapSet::Permitted, CapSet::Effective];
            let after = sets.map(|set| caps::read(None, set).unwrap());
            (before, after, prctl::get_no_new_privs().unwrap())
        })
        .join()
        .unwrap();
        let kept: CapsHashSet = KEPT
            .into_iter()
            .filter(|cap| before.contains(cap))
            .collect();
        assert_eq!(after, [kept.clone(), kept]);
        assert!(is_final);
    }

    #[test]
    fn off_is_no_filter_at_all() {
        assert!(program(Seccomp::Off).unwrap().is_none());
    }
}
