//! Carries the kernel programs' debug lines to `tracing`.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};
use tracing::warn;

/// Starts reading debug lines on the calling thread's runtime.
///
/// The lines reach `tracing` through the `log` facade. That they cannot be read is no reason not to
/// serve: it is logged.
pub(super) fn start(programs: &mut Ebpf) {
    let logger = match EbpfLogger::init(programs) {
        Ok(logger) => logger,
        Err(error) => {
            warn!(%error, "cannot read the kernel programs' debug lines");
            return;
        }
    };
    // SAFETY: the logger owns its descriptor, which stays open until the `AsyncFd` is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = match registered {
        Ok(logger) => logger,
        Err(error) => {
            warn!(%error, "cannot watch the kernel programs' debug lines");
            return;
        }
    };
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
}
