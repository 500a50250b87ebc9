//! Leaving the foreground, without letting go of whoever waits there for the outcome.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd},
    process,
};

use nix::{
    fcntl::OFlag,
    unistd::{self, ForkResult},
};

use crate::report::Failure;

const SERVED: u8 = b'+';
const FAILED: u8 = b'-';

/// In which of the two processes we are.
pub(crate) enum Side {
    /// The one that was started, and is waited for.
    Parent(Outcome),
    /// The one that stays.
    Child(Detached),
}

/// What becomes of the process that stays.
pub(crate) struct Outcome(File);

/// The process that stays, before anybody was told what became of it.
pub(crate) struct Detached(File);

/// Makes the process that stays: its command line is the same, it is in a session of its own and
/// has nothing open that its parent's starter may wait for.
pub(crate) fn fork() -> Result<Side, Failure> {
    let failed = |error: nix::Error| Failure::new(format_args!("cannot fork: {error}"));
    let (reader, writer) = unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
    // SAFETY: there is one thread, so the child may do whatever its parent may.
    match unsafe { unistd::fork() }.map_err(failed)? {
        ForkResult::Parent { .. } => {
            drop(writer);
            Ok(Side::Parent(Outcome(File::from(reader))))
        }
        ForkResult::Child => {
            drop(reader);
            let detached = Detached(File::from(writer));
            match detached.let_go() {
                Ok(()) => Ok(Side::Child(detached)),
                Err(failure) => detached.failed(&failure),
            }
        }
    }
}

impl Outcome {
    /// Waits for the outcome.
    pub(crate) fn wait(mut self) -> Result<(), Failure> {
        let mut message = Vec::new();
        // Closed, whether or not it was read well, when the other process is gone.
        let _ = self.0.read_to_end(&mut message);
        match message.split_first() {
            Some((&SERVED, _)) => Ok(()),
            Some((_, reason)) => Err(Failure::new(String::from_utf8_lossy(reason))),
            None => Err(Failure::new(
                "the process that was to stay ended before the tenant was served",
            )),
        }
    }
}

impl Detached {
    /// Tells that the tenant is served; this process stays.
    pub(crate) fn served(mut self) {
        // The one who waited may be gone; the tenant is served all the same.
        let _ = self.0.write_all(&[SERVED]);
    }

    /// Tells why the tenant is not served, and ends this process.
    pub(crate) fn failed(mut self, failure: &Failure) -> ! {
        let mut message = vec![FAILED];
        message.extend_from_slice(failure.to_string().as_bytes());
        let _ = self.0.write_all(&message);
        process::exit(1)
    }

    fn let_go(&self) -> Result<(), Failure> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Failure::new(format_args!("cannot leave the foreground: {what}: {error}"))
        };
        unistd::setsid().map_err(|error| failed("setsid", &error))?;
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(|error| failed("/dev/null", &error))?;
        // Neutron reads standard output and error to their ends.
        unistd::dup2_stdin(null.as_fd())
            .and_then(|()| unistd::dup2_stdout(null.as_fd()))
            .and_then(|()| unistd::dup2_stderr(null.as_fd()))
            .map_err(|error| failed("dup2", &error))?;
        drop(null);
        self.close_what_was_inherited();
        // Best effort: it only keeps a file system from being unmounted.
        let _ = unistd::chdir("/");
        Ok(())
    }

    /// Closes every descriptor but the standard ones and ours.
    fn close_what_was_inherited(&self) {
        const AFTER_STANDARD: libc::c_uint = 3;
        let ours = self.0.as_raw_fd().cast_unsigned();
        for (first, last) in [
            (AFTER_STANDARD, ours.saturating_sub(1)),
            (ours + 1, libc::c_uint::MAX),
        ] {
            if first <= last {
                // SAFETY: nothing in this process owns a descriptor in the ranges but what the
                // process that started it has leaked. Without the call (before Linux 5.9) they
                // stay, as with haproxy.
                unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            }
        }
    }
}
