//! All guests at once, from the same address and the same port.

use std::{
    fmt, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use metadata_proxy_tests::{METADATA_V4, process::run};

use super::stage::Member;

/// How often each guest asks.
const REQUESTS: usize = 300;

/// The port that each guest asks from: their connections differ in nothing.
const PORT: u16 = 40_000;

/// What became of it.
pub(super) struct Crowd {
    guests: usize,
    from: String,
    took: Duration,
}

/// Lets all guests ask at once, and fails when one got anything but its own name.
pub(super) fn ask(members: &[Member]) -> Result<Crowd> {
    let start = Instant::now();
    thread::scope(|scope| {
        let guests: Vec<_> = members
            .iter()
            .map(|member| scope.spawn(|| ask_often(member)))
            .collect();
        guests.into_iter().try_for_each(|guest| {
            let asked = guest.join().map_err(|_| anyhow!("a guest was lost"))?;
            asked.context("all guests at once")
        })
    })?;
    let first = members.first().context("there is no tenant")?;
    Ok(Crowd {
        guests: members.len(),
        from: format!("{}:{PORT}", first.tenant.guest().v4),
        took: start.elapsed(),
    })
}

/// One curl, one connection, many requests.
fn ask_often(member: &Member) -> Result<()> {
    let guest = member.tenant.guest();
    let local_port = PORT.to_string();
    let url = format!("{METADATA_V4}/latest/meta-data/hostname?[1-{REQUESTS}]");
    let mut curl = guest.netns.command("curl")?;
    curl.args(["-q", "--noproxy", "*", "-sS", "--fail", "--max-time", "30"])
        .args(["--local-port", &local_port])
        .args(["--write-out", " %{local_ip}:%{local_port}\n", &url]);
    let text = run(&mut curl)?;
    let own = format!("{}.novalocal {}:{PORT}", member.guest, guest.v4);
    let other = text.lines().find(|line| *line != own);
    ensure!(
        other.is_none(),
        "WRONG: the guest of {} was told {other:?} instead of {own:?}",
        member.tenant.netns.name()
    );
    let count = text.lines().count();
    ensure!(
        count == REQUESTS,
        "the guest of {} got {count} of {REQUESTS} answers",
        member.tenant.netns.name()
    );
    Ok(())
}

impl fmt::Display for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guests, from, took } = self;
        let all = guests * REQUESTS;
        let milliseconds = took.as_millis();
        write!(
            f,
            "all {guests} guests at once, each from {from}: {all} requests, no answer crossed \
             ({milliseconds} ms)"
        )
    }
}
