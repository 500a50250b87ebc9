//! The limit of open files: raised as far as it goes, and how many connections it bears.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

use crate::config::Config;

/// As many files as we may: a listener and a netlink socket for each tenant, and the connections.
pub(super) fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the limit of open files to what is allowed");
    }
}

/// Most connections for which there may be file descriptors: half of what this process may have. The
/// other half is for tenants and upstreams, without which connections are of no use to anybody.
pub(super) fn connections_borne() -> u32 {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((u64::MAX, u64::MAX));
    u32::try_from(limit / 2).unwrap_or(u32::MAX)
}

/// What is to be said if there are not descriptors for as many connections as are configured.
pub(super) fn too_few(config: &Config) -> Option<String> {
    let (wanted, borne) = (config.limits.connections, connections_borne());
    (usize::try_from(borne).is_ok_and(|borne| borne < wanted)).then(|| {
        format!(
            "the limit of open files bears {borne} connections, not limits.connections = {wanted}: \
             raise LimitNOFILE"
        )
    })
}
