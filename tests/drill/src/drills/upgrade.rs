//! Upgrade without a reset: under load, a process takes over from the next and nobody notices.

use std::{
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_proxy_tests::{
    Agent, Footprint, MetadataAgent, Node, TenantFixture, agent::Builder, stage::traces_on_node,
    wait_for, wait_until,
};
use nix::sys::{
    signal::Signal,
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt,
        socket, sockopt,
    },
    time::TimeVal,
};

use super::crowd::{self, Load};
use crate::{figures::Figures, plan::Plan};

const SOON: Duration = Duration::from_secs(20);
/// Requests over IPv6 that a guest may make while the drill goes on.
const V6_REQUESTS: usize = 3;
/// Where a successor that speaks the protocol hangs up.
const STEPS: [&str; 4] = ["hello", "give", "ready", "commit"];

/// What is upgraded.
struct Scene {
    node: Node,
    upstream: MetadataAgent,
    tenants: Arc<Vec<TenantFixture>>,
}

pub(super) fn run(plan: &Plan) -> Result<Figures> {
    let mut figures = Figures::default();
    let (upgrades, count, guests) = plan.choose((4, 20, 16), (20, 200, 64));
    let node = Node::new()?;
    let upstream = MetadataAgent::builder()
        .workers(8)
        .start(&node.directory().join("agent"))?;
    let tenants = crowd::tenants(&node, count)?;
    let scene = Scene {
        node,
        upstream,
        tenants,
    };
    let mut agent = scene.builder().start()?;
    agent.wait_served(&scene.tenants[count - 1])?;
    scene.use_up_rate()?;
    let pins = Footprint::of_node(&scene.node)?;
    let files = settled_files(&agent)?;

    let load = Load::start(&scene.tenants, guests);
    let began = Instant::now();
    scene.refused(&agent, &mut figures)?;
    scene.half_way(&mut agent, &mut figures)?;
    let mut took = Vec::new();
    let length = plan.length(Duration::ZERO, Duration::ZERO);
    while took.len() < upgrades || began.elapsed() < length {
        took.push(scene.upgrade(&mut agent)?);
        // The load is not to be only about upgrades.
        thread::sleep(Duration::from_millis(200));
    }
    // Those that ask rarely are to meet the last one too.
    thread::sleep(Duration::from_secs(1));
    let lasted = began.elapsed();
    let seen = load.stop()?;

    took.sort_unstable();
    figures.note("upgrades", took.len());
    figures.note("tenants, guests", format!("{count}, {guests}"));
    figures.note(
        "requests",
        format!("{} within {lasted:.1?}", seen.tally.asked()),
    );
    figures.note("outcomes", &seen.tally);
    figures.note(
        "longest request",
        format!("{:.1?}", seen.tally.quantile(1.0)),
    );
    figures.note(
        "kept connections opened, closed while idle, crossed with a request",
        format!("{}, {}, {}", seen.opened, seen.stale, seen.crossed),
    );
    figures.note(
        "until the successor serves, median and most",
        format!("{:.0?}, {:.0?}", took[took.len() / 2], took[took.len() - 1]),
    );
    figures.demand(
        seen.tally.failed() == 0,
        format!("requests failed: {}", seen.tally),
    );
    figures.demand(
        seen.crossed == 0,
        format!("{} requests crossed with a close", seen.crossed),
    );
    figures.demand(
        scene.rate_is_used_up()?,
        "a guest's rate was forgotten by an upgrade",
    );
    scene.nothing_left(agent, &pins, files, &mut figures)?;
    Ok(figures)
}

impl Scene {
    fn builder(&self) -> Builder {
        Agent::builder(&self.node)
            .upstream_agent(self.upstream.socket())
            .set("log.level", "\"info\"")
            .set("rate_limit.rate_limit_enabled", true)
            // The load comes over IPv4, which is not limited.
            .set("rate_limit.ip_versions", "[6]")
            .set("rate_limit.base_window_duration", 3600)
            .set("rate_limit.base_query_rate_limit", V6_REQUESTS)
            .set("rate_limit.burst_window_duration", 3600)
            .set("rate_limit.burst_query_rate_limit", V6_REQUESTS)
    }

    /// The status that a guest is answered with over IPv6.
    fn ask_v6(&self) -> Result<u16> {
        let guest = self.tenants[0].guest();
        Ok(guest.curl(&guest.metadata_v6(), &[])?.status)
    }

    fn use_up_rate(&self) -> Result<()> {
        for _ in 0..V6_REQUESTS {
            let status = self.ask_v6()?;
            ensure!(
                status == 200,
                "answered {status} before its rate was used up"
            );
        }
        Ok(())
    }

    fn rate_is_used_up(&self) -> Result<bool> {
        Ok(self.ask_v6()? == 429)
    }

    /// Upgrades, and tells how long it took until the successor served.
    fn upgrade(&self, agent: &mut Agent) -> Result<Duration> {
        let began = Instant::now();
        let next = self.builder().taking_over().start()?;
        let took = began.elapsed();
        let mut before = std::mem::replace(agent, next);
        let status = before.wait(SOON)?;
        ensure!(
            status.success(),
            "the old one ended with {status}:\n{}",
            before.log()
        );
        Ok(took)
    }

    /// One of another protocol changes nothing.
    fn refused(&self, agent: &Agent, figures: &mut Figures) -> Result<()> {
        let before = Footprint::of_node(&self.node)?;
        let stranger = self.successor()?;
        say(
            &stranger,
            r#"{"message":"hello","protocol":99,"version":"99"}"#,
        )?;
        let heard = hear(&stranger)? + &hear(&stranger)?;
        let is_refused = heard.contains("refused") && heard.contains("protocol 99");
        figures.demand(
            is_refused,
            format!("another protocol was not refused: {heard}"),
        );
        let is_untouched = Footprint::of_node(&self.node)? == before
            && !agent.log().contains("a successor takes over");
        figures.demand(is_untouched, "another protocol changed something");
        figures.note("another protocol", "refused before anything changed");
        Ok(())
    }

    /// Successors that die on the way: some that only speak the protocol, and real processes.
    fn half_way(&self, agent: &mut Agent, figures: &mut Figures) -> Result<()> {
        for step in STEPS {
            self.hang_up_after(step)?;
        }
        let mut deaths = STEPS.len();
        // As soon as it has everything; and, if there are so many tenants that it takes a while, when
        // it has put some of them in place.
        let mut served = vec![0];
        if self.tenants.len() >= 100 {
            served.extend([1, self.tenants.len() / 4]);
        }
        for served in served {
            let mut next = self.builder().taking_over().start_unready()?;
            wait_for("a successor half way", SOON, || {
                let log = next.log();
                let is_there =
                    log.contains("taking over") && log.matches("tenant served").count() >= served;
                Ok(is_there.then_some(()))
            })?;
            next.signal(Signal::SIGKILL)?;
            next.wait(SOON)?;
            deaths += 1;
            ensure!(
                agent.ended()?.is_none(),
                "the old one has gone: {}",
                agent.log()
            );
            figures.demand(
                !agent.log().contains("draining"),
                "the old one let go for a successor that died",
            );
        }
        // It works on the node again: all is as it was.
        wait_until("the old one going on", SOON, || {
            agent.log().matches("nothing is handed over").count() >= deaths
        })?;
        figures.note("successors that died half way", deaths);
        Ok(())
    }

    /// Speaks the protocol as far as this step, then hangs up.
    fn hang_up_after(&self, step: &str) -> Result<()> {
        let next = self.successor()?;
        say(&next, r#"{"message":"hello","protocol":1,"version":"0"}"#)?;
        ensure!(hear(&next)?.contains("hello"), "no hello");
        if step == "hello" {
            return Ok(());
        }
        say(&next, r#"{"message":"give"}"#)?;
        while !hear(&next)?.contains(r#""message":"end""#) {}
        if step == "give" {
            return Ok(());
        }
        say(&next, r#"{"message":"ready"}"#)?;
        if step == "ready" {
            return Ok(());
        }
        while !hear(&next)?.contains(r#""message":"commit""#) {}
        Ok(())
    }

    /// A connection to the running agent, as a successor makes it.
    fn successor(&self) -> Result<OwnedFd> {
        let path = self.node.directory().join("admin.sock.takeover");
        let flags = SockFlag::SOCK_CLOEXEC;
        let next = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        setsockopt(&next, sockopt::ReceiveTimeout, &TimeVal::new(20, 0))?;
        connect(next.as_raw_fd(), &UnixAddr::new(&path)?).context("no agent to take over from")?;
        Ok(next)
    }

    /// Nothing more than before the first upgrade, and nothing at all after the end.
    fn nothing_left(
        &self,
        mut agent: Agent,
        pins: &Footprint,
        files: usize,
        figures: &mut Figures,
    ) -> Result<()> {
        let count = |footprint: &Footprint| footprint.to_string().lines().count();
        let now = Footprint::of_node(&self.node)?;
        figures.demand(
            count(&now) == count(pins),
            format!("other pins and hooks than before: {now}"),
        );
        let left = settled_files(&agent)?;
        figures.note("descriptors before and after", format!("{files}, {left}"));
        figures.demand(left <= files, "descriptors were left");
        let processes = self.node.processes()?;
        figures.demand(
            processes == [agent.pid()],
            format!("processes left: {processes:?}"),
        );
        agent.stop()?;
        let traces = traces_on_node(&self.node);
        figures.demand(traces.is_empty(), format!("left on the node: {traces:?}"));
        for tenant in self.tenants.iter().step_by(self.tenants.len() / 10) {
            let inside = Footprint::of_netns(&tenant.netns)?.to_string();
            let traces = [":9697", "proto 169", "tcx on"];
            let is_clean = !traces.iter().any(|trace| inside.contains(trace));
            figures.demand(is_clean, format!("left in a namespace:\n{inside}"));
        }
        Ok(())
    }
}

/// Descriptors of an agent once nobody is connected to it any more.
fn settled_files(agent: &Agent) -> Result<usize> {
    let mut last = usize::MAX;
    wait_for("a steady number of descriptors", SOON, || {
        thread::sleep(Duration::from_millis(300));
        let now = fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count();
        Ok((std::mem::replace(&mut last, now) == now).then_some(now))
    })
}

fn say(to: &OwnedFd, message: &str) -> Result<()> {
    send(to.as_raw_fd(), message.as_bytes(), MsgFlags::MSG_NOSIGNAL).context("cannot speak")?;
    Ok(())
}

/// The next message; descriptors that come with it are let go.
fn hear(from: &OwnedFd) -> Result<String> {
    let mut buffer = vec![0; 64 * 1024];
    let length = recv(from.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("cannot hear")?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
