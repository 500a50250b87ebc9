//! wrk, a load generator that is not ours, asks the same proxies: the two must tell the same story.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use metadata_proxy_tests::{METADATA_V4, TenantFixture, process};

use crate::load::Mode;

/// Answers a second, as wrk counts them; `path` has its leading slash.
pub(super) fn rate(
    tenant: &TenantFixture,
    path: &str,
    mode: Mode,
    connections: usize,
    window: Duration,
) -> Result<f64> {
    let mut wrk = tenant.guest().netns.command("wrk")?;
    wrk.args(["--threads", "1"])
        .args(["--connections", &connections.to_string()])
        // It takes whole seconds.
        .args(["--duration", &format!("{}s", window.as_secs().max(1))]);
    if mode == Mode::Close {
        wrk.args(["--header", "Connection: close"]);
    }
    let told = process::run(wrk.arg(format!("{METADATA_V4}{path}")))?;
    parse(&told).with_context(|| format!("wrk said:\n{told}"))
}

fn parse(told: &str) -> Result<f64> {
    if let Some(failed) = told.lines().find(|line| line.contains("Non-2xx")) {
        bail!("not every answer was a good one: {}", failed.trim());
    }
    let rate = told
        .lines()
        .find_map(|line| line.trim().strip_prefix("Requests/sec:"))
        .context("no rate")?;
    rate.trim().parse().context("not a rate")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_and_failures_are_no_rate() {
        let told = "  3 requests in 1.00s, 1KB read\nRequests/sec:   1234.50\nTransfer/sec: 1KB\n";
        assert!((parse(told).unwrap() - 1234.5).abs() < 1e-9);
        assert!(parse(&format!("{told}  Non-2xx or 3xx responses: 3\n")).is_err());
        assert!(parse("unable to connect").is_err());
    }
}
