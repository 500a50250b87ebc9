//! The system calls of an agent in service, by what they are for.
//!
//! A call that is missing here fails with `EPERM`: whoever adds one to the agent finds out by the
//! tests, all of which run under the filter.

use std::collections::BTreeMap;

use anyhow::Context as _;
use libc::c_long;
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// Memory, threads, time, signals.
const PROCESS: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    // Threads. What a new one may do is no more than this.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_prlimit64,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    // An abort is a signal to oneself.
    libc::SYS_tgkill,
    libc::SYS_uname,
];

/// Sockets, netlink and what waits for them.
const SOCKETS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_ioctl,
    libc::SYS_listen,
    libc::SYS_ppoll,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socket,
    libc::SYS_socketpair,
];

/// Files: configuration, namespaces, pins, the files of its own sockets.
const FILES: &[c_long] = &[
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_linkat,
    libc::SYS_lseek,
    // What is left with the service manager for the next process.
    libc::SYS_memfd_create,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Namespaces of tenants, the kernel programs, and the bpffs, should somebody unmount it.
const STEERING: &[c_long] = &[libc::SYS_bpf, libc::SYS_mount, libc::SYS_pidfd_open];

/// The older forms of the above, where the architecture has them.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// `PR_SET_VMA` (`linux/prctl.h`): names memory, as the C library does with a thread's stack.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// Which calls are allowed, and with which arguments, for the filter.
pub(super) fn allowed() -> anyhow::Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let any = [PROCESS, SOCKETS, FILES, STEERING, OLDER]
        .into_iter()
        .flatten();
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        any.map(|number| (*number, Vec::new())).collect();
    // Only into network namespaces.
    rules.insert(
        libc::SYS_setns,
        vec![argument(1, libc::CLONE_NEWNET.cast_unsigned().into())?],
    );
    rules.insert(
        libc::SYS_prctl,
        vec![
            argument(0, libc::PR_SET_NAME.cast_unsigned().into())?,
            argument(0, PR_SET_VMA)?,
        ],
    );
    Ok(rules)
}

/// That an argument is this very word.
fn argument(index: u8, value: u64) -> anyhow::Result<SeccompRule> {
    let is = SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
        .context("the filter of system calls is wrong")?;
    SeccompRule::new(vec![is]).context("the filter of system calls is wrong")
}
