//! One tenant asks far more than all others together: they hardly notice.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::{
    ptr,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use metadata_proxy_tests::{
    Agent, Kind, MetadataAgent, Node, TenantFixture,
    crowd::{self, Member, Tally},
    wait_until,
};

/// Tenants with one guest that asks again as soon as it is answered, as a guest that boots.
const MODEST: usize = 50;
/// Addresses of the greedy tenant, and connections from each: together far beyond what the modest
/// have, and within what one guest may have.
const GREEDY_GUESTS: u8 = 10;
const GREEDY_CONNECTIONS: usize = 20;
/// Requests of each modest guest in a round.
const REQUESTS: usize = 20;
/// Rounds without and with the greedy tenant, in turn, so that both see the machine as it is.
const ROUNDS: usize = 5;
/// What the agent takes for an answer: long beside what everything else takes, so that the order
/// in which requests reach it decides.
const SERVICE_TIME: Duration = Duration::from_millis(1);
/// What a busy machine may add to the 99th of 100 in any round.
const SLACK: Duration = Duration::from_millis(30);

#[test]
fn a_greedy_tenant_does_not_slow_the_others_down() {
    let node = Node::new().unwrap();
    let upstream = MetadataAgent::builder()
        .delay(SERVICE_TIME)
        .start(&node.directory().join("agent"))
        .unwrap();
    let tenants: Vec<_> = (0..=MODEST)
        .map(|_| TenantFixture::new(&node, Kind::Network).unwrap())
        .collect();
    let agent = Agent::builder(&node)
        .upstream_agent(upstream.socket())
        .set("log.level", "\"info\"")
        .set("log.access", false)
        .start()
        .unwrap();
    for tenant in &tenants {
        agent.wait_served(tenant).unwrap();
    }

    let (greedy, modest) = tenants.split_first().unwrap();
    let greedy_guests = crowd::multiply(greedy.guest(), GREEDY_GUESTS).unwrap();
    let member = |tenant| Member {
        tenant,
        source: TenantFixture::guest(tenant).v4,
    };
    let modest: Vec<_> = modest.iter().map(member).collect();
    let greedy: Vec<_> = greedy_guests
        .iter()
        .flat_map(|source| {
            [Member {
                tenant: greedy,
                source: *source,
            }; GREEDY_CONNECTIONS]
        })
        .collect();
    let all: Vec<_> = modest.iter().chain(&greedy).copied().collect();

    let mut without = Vec::new();
    let mut with = Vec::new();
    for round in 0..ROUNDS {
        let alone = play(&agent, &modest);
        let together = play(&agent, &all);
        upstream.forget();
        println!(
            "round {round}: modest p99 {:.1?} alone ({alone}), {:.1?} beside {} of the greedy \
             ({together})",
            alone.modest.quantile(0.99),
            together.modest.quantile(0.99),
            together.greedy.asked(),
        );
        assert_eq!((alone.modest.failed(), together.modest.failed()), (0, 0));
        assert!(
            together.greedy.asked() > greedy.len(),
            "the greedy tenant hardly asked: this shows nothing"
        );
        without.push(alone.modest.quantile(0.99));
        with.push(together.modest.quantile(0.99));
    }
    let (without, with) = (median(without), median(with));
    println!("modest p99, median of {ROUNDS} rounds: {without:.1?} alone, {with:.1?} beside");
    assert!(
        with <= without * 2 + SLACK,
        "the modest wait {with:?} beside the greedy tenant, {without:?} without"
    );
}

/// What the guests of one round got.
#[derive(Default)]
struct Round {
    modest: Tally,
    greedy: Tally,
}

impl std::fmt::Display for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.modest)
    }
}

/// The modest, who are the first, ask their number of requests; the greedy, if there are any, have
/// filled the queue before, and go on until the modest are through.
fn play(agent: &Agent, guests: &[Member<'_>]) -> Round {
    let greedy = guests.len() - MODEST;
    let left = AtomicUsize::new(MODEST);
    let start = Barrier::new(MODEST + 1);
    let tallies = thread::scope(|scope| {
        scope.spawn(|| {
            // Nearly all: one is always about to ask again, and some are with the agent.
            let wanted = greedy * 9 / 10;
            let waiting = || agent.admin_json("/v1/status").unwrap()["queue"]["waiting"].as_u64();
            let filled = wait_until("a full queue", Duration::from_secs(10), || {
                usize::try_from(waiting().unwrap()).unwrap() >= wanted
            });
            start.wait();
            filled.unwrap();
        });
        crowd::all_at_once(guests, |guest| {
            let tenant = guest.tenant.id.to_string();
            let ask = || crowd::ask_once(Some(guest.source), &[&tenant]);
            let is_modest = guests[..MODEST]
                .iter()
                .any(|one| ptr::eq(one.tenant, guest.tenant));
            let mut round = Round::default();
            if is_modest {
                start.wait();
                (0..REQUESTS).for_each(|_| round.modest.add(ask()));
                left.fetch_sub(1, Ordering::SeqCst);
            } else {
                while left.load(Ordering::SeqCst) > 0 {
                    round.greedy.add(ask());
                }
            }
            round
        })
    });
    let mut whole = Round::default();
    for round in tallies.unwrap() {
        whole.modest.merge(round.modest);
        whole.greedy.merge(round.greedy);
    }
    whole
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values[values.len() / 2]
}
