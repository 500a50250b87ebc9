//! Hostile guests: whatever they do, others are served as fast, the upstream is asked only what was
//! admitted, memory stays bounded, and every answer to what is no request is a refusal.

mod attacks;
mod requests;

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use metadata_proxy_tests::{
    Kind, MetadataAgent, Node, Stage, TenantFixture,
    crowd::{Tally, multiply},
    metadata_agent::{Answer, Request, who_asked},
    raw_http::{Connection, Read},
    stage::builder,
    wait_until,
};

use self::attacks::{Attack, Ground};
use super::neighbours::{SLACK, ask_for, median, while_attacked};
use crate::{
    figures::Figures,
    memory::{self, mebibytes},
    plan::Plan,
};

/// Bytes of the answer that attackers take slowly.
const LONG_ANSWER: usize = 256 << 10;
/// Caps that are configured here; the rest is as by default.
const CONNECTIONS_PER_TENANT: u64 = 1024;
const HEAD_BYTES: u64 = 16 << 10;
const BODY_BYTES: u64 = 64 << 10;
/// Answers up to this long are held whole, and longer ones read ahead within a bound for all.
const ANSWER_BYTES: u64 = 64 << 10;
const AHEAD_OF_ALL: u64 = 64 << 20;

/// How long an attack goes on before anything is measured: its connections are open then.
const WARM_UP: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(20);

/// Runs the drill.
pub(crate) fn run(plan: &Plan) -> Result<Figures> {
    let mut figures = Figures::default();
    let stage = stage()?;
    let attacker = TenantFixture::new(&stage.node, Kind::Router)?;
    let addresses = multiply(attacker.guest(), plan.choose(32, 90))?;
    let neighbours = Kind::ALL
        .iter()
        .map(|kind| TenantFixture::new(&stage.node, *kind))
        .collect::<Result<Vec<_>>>()?;
    for tenant in neighbours.iter().chain([&attacker]) {
        stage.agent.wait_served(tenant)?;
    }
    smuggle(&stage, &attacker, &mut figures)?;

    // Warm, or the first window is slower than any attack.
    ask_for(&neighbours, Duration::from_millis(500))?;
    let idle = memory::of(stage.agent.pid())?;
    let bound =
        idle + CONNECTIONS_PER_TENANT * (HEAD_BYTES + BODY_BYTES + ANSWER_BYTES) + AHEAD_OF_ALL;
    figures.note("memory when idle", mebibytes(idle));
    figures.note("memory bound, as configured", mebibytes(bound));
    let mut most = 0;
    for attack in attacks::ALL {
        let peak = withstand(
            plan,
            &stage,
            &attacker,
            &addresses,
            &neighbours,
            attack,
            &mut figures,
        )?;
        most = most.max(peak);
    }
    figures.note("most memory during attacks", mebibytes(most));
    figures.demand(
        most <= bound,
        format!("memory stays within {}", mebibytes(bound)),
    );
    let after = settled(&stage, idle + (32 << 20))?;
    figures.note("memory afterwards", mebibytes(after));
    figures.demand(after <= idle + (32 << 20), "memory is given back");
    Ok(figures)
}

fn stage() -> Result<Stage> {
    let node = Node::new()?;
    let upstream = MetadataAgent::builder()
        .workers(8)
        .respond(respond)
        .start(&node.directory().join("agent"))?;
    let agent = builder(&node, &upstream)
        .set("log.level", "\"info\"")
        .set("timeouts.request_head", "\"1s\"")
        .set("timeouts.request_body", "\"1s\"")
        .set("timeouts.client", "\"3s\"")
        .set("limits.connections_per_tenant", CONNECTIONS_PER_TENANT)
        .set("limits.head_bytes", HEAD_BYTES)
        .set("limits.body_bytes", BODY_BYTES)
        .start()?;
    Ok(Stage {
        agent,
        upstream,
        node,
    })
}

fn respond(request: &Request) -> Answer {
    match &*request.target {
        attacks::LONG => Answer::ok(vec![b'x'; LONG_ANSWER]),
        _ => who_asked(request),
    }
}

/// Sends each of the table's requests by itself and compares what the upstream was asked.
fn smuggle(stage: &Stage, attacker: &TenantFixture, figures: &mut Figures) -> Result<()> {
    let mut sent_all = 0;
    stage.upstream.forget();
    attacker.guest().netns.run(|| {
        for sent in requests::all() {
            sent_all += 1;
            let mut connection = Connection::open(None, SOON).context("cannot connect")?;
            let _ = connection.send(&sent.bytes);
            let _ = connection.finish();
            let mut statuses = Vec::new();
            let end = loop {
                match connection.answer("POST", Instant::now() + SOON)? {
                    Read::Answer(answer) => statuses.push(answer.status),
                    end => break end,
                }
            };
            let heard = stage.take_requests();
            let targets: Vec<_> = heard.iter().map(|request| &*request.target).collect();
            let name = sent.name;
            let is_admitted = targets.is_empty() && !sent.must || targets == sent.admitted;
            figures.demand(
                is_admitted,
                format!("{name}: the upstream was asked {targets:?}"),
            );
            let served = statuses.iter().filter(|status| **status == 200).count();
            let is_clean = matches!(end, Read::Closed | Read::Reset)
                && statuses
                    .iter()
                    .all(|status| matches!(status, 200 | 400..=499 | 501))
                && served == targets.len();
            figures.demand(
                is_clean,
                format!("{name}: answered {statuses:?}, then {end:?}"),
            );
            for request in &heard {
                check_identity(figures, request, &[attacker]);
            }
        }
        Ok(())
    })?;
    figures.note("requests of the smuggler's table", sent_all);
    Ok(())
}

/// Every request that reaches the upstream names one tenant, and one of those that asked.
fn check_identity(figures: &mut Figures, request: &Request, tenants: &[&TenantFixture]) {
    let tags: Vec<_> = request
        .headers
        .iter()
        .filter(|(name, _)| {
            let name = name.replace('_', "-");
            name.starts_with("x-neutron") || name.starts_with("x-ovn")
        })
        .collect();
    let is_true = tags.len() == 1
        && request.headers.first() == Some(tags[0])
        && tenants.iter().any(|tenant| {
            tags[0].0 == tenant.kind.tag_name() && tags[0].1 == tenant.id.to_string()
        });
    figures.demand(
        is_true,
        format!("one true identity: {tags:?} of {}", request.target),
    );
}

/// Quiet, attack, quiet, attack, ...; returns the most memory.
fn withstand(
    plan: &Plan,
    stage: &Stage,
    attacker: &TenantFixture,
    addresses: &[Ipv4Addr],
    neighbours: &[TenantFixture],
    attack: &Attack,
    figures: &mut Figures,
) -> Result<u64> {
    let began = Instant::now();
    let windows = plan.choose(2, 5);
    let length = plan.length(Duration::from_secs(14), Duration::from_mins(2));
    // As long in quiet as under attack.
    let window = length / (2 * windows * u32::try_from(attacks::ALL.len())?);
    let [asked, wrong, refused] = [const { AtomicU64::new(0) }; 3];
    let ground = Ground {
        guest: attacker.guest(),
        addresses,
        asked: &asked,
        wrong: &wrong,
        refused: &refused,
    };
    stage.upstream.forget();
    let (mut quiet, mut busy) = (Vec::new(), Vec::new());
    let mut neighbours_all = Tally::default();
    let mut done = 0;
    let watch = memory::Watch::start(stage.agent.pid());
    for _ in 0..windows {
        let tally = ask_for(neighbours, window)?;
        quiet.push(tally.quantile(0.99));
        neighbours_all.merge(tally);
        let (tally, did) = while_attacked(
            |stop| attack.run(&ground, stop),
            || {
                std::thread::sleep(WARM_UP);
                ask_for(neighbours, window)
            },
        )?;
        done += did;
        busy.push(tally.quantile(0.99));
        neighbours_all.merge(tally);
        wait_until("the end of an attack's connections", SOON, || {
            stage
                .agent
                .admin_json("/v1/status")
                .is_ok_and(|status| status["connections"]["open"].as_u64() == Some(0))
        })?;
    }
    let peak = watch.take();
    let (quiet, busy) = (median(quiet), median(busy));
    let name = attack.name;
    println!("    {name}: {:.1} s", began.elapsed().as_secs_f64());
    figures.note(
        name,
        format!(
            "{done} times, {} refused with a status; others' p99 {:.1} ms, was {:.1} ms; memory {}",
            refused.load(Ordering::Relaxed),
            busy.as_secs_f64() * 1e3,
            quiet.as_secs_f64() * 1e3,
            mebibytes(peak),
        ),
    );
    figures.demand(done > 0, format!("{name}: the attack happened"));
    figures.demand(
        busy <= quiet * 2 + SLACK,
        format!("{name}: others' p99 is {busy:?}, more than twice {quiet:?} and {SLACK:?}"),
    );
    let failed = neighbours_all.failed();
    figures.demand(failed == 0, format!("{name}: others got {neighbours_all}"));
    let wrong = wrong.load(Ordering::Relaxed);
    figures.demand(
        wrong == 0,
        format!("{name}: {wrong} answers are no refusals"),
    );
    check_heard(
        stage,
        attacker,
        neighbours,
        (&neighbours_all, &asked),
        name,
        figures,
    );
    Ok(peak)
}

/// What the upstream was asked is what was sent as it should be, and no more.
fn check_heard(
    stage: &Stage,
    attacker: &TenantFixture,
    neighbours: &[TenantFixture],
    (tally, asked): (&Tally, &AtomicU64),
    name: &str,
    figures: &mut Figures,
) {
    let heard = stage.take_requests();
    let tenants: Vec<_> = neighbours.iter().chain([attacker]).collect();
    for request in &heard {
        check_identity(figures, request, &tenants);
    }
    let id = attacker.id.to_string();
    let (of_attacker, of_others): (Vec<_>, Vec<_>) = heard.iter().partition(|request| {
        request
            .headers
            .first()
            .is_some_and(|(_, value)| *value == id)
    });
    let asked = asked.load(Ordering::Relaxed);
    figures.demand(
        of_attacker.len() as u64 <= asked,
        format!(
            "{name}: {} requests of {asked} that were asked",
            of_attacker.len()
        ),
    );
    let hidden = of_attacker
        .iter()
        .filter(|request| {
            !["/seen", "/again", attacks::FLOOD, attacks::LONG].contains(&&*request.target)
        })
        .count();
    figures.demand(
        hidden == 0,
        format!("{name}: {hidden} requests that nobody sent"),
    );
    figures.demand(
        of_others.len() == tally.asked(),
        format!(
            "{name}: {} requests of others, not {}",
            of_others.len(),
            tally.asked()
        ),
    );
}

/// Waits until the agent has given memory back; what it has then, or at the end of patience.
fn settled(stage: &Stage, wanted: u64) -> Result<u64> {
    let pid = stage.agent.pid();
    let _ = wait_until("memory to be given back", SOON, || {
        memory::of(pid).is_ok_and(|now| now <= wanted)
    });
    memory::of(pid)
}
