//! Neutron's metadata agent as a process of its own, to be killed by tests:
//! `fixture-agent <socket> <workers> <milliseconds per answer>`.

use std::{fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result};
use metadata_proxy_tests::MetadataAgent;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || {
        arguments
            .next()
            .context("usage: fixture-agent <socket> <workers> <ms>")
    };
    let socket = PathBuf::from(next()?);
    let workers = next()?.parse().context("not a number of workers")?;
    let delay = next()?.parse().context("not a number of milliseconds")?;
    // As Neutron's agent does: what another left is in the way.
    let _ = fs::remove_file(&socket);
    let _agent = MetadataAgent::builder()
        .workers(workers)
        .delay(Duration::from_millis(delay))
        .forgetful()
        .start(&socket)?;
    loop {
        thread::park();
    }
}
