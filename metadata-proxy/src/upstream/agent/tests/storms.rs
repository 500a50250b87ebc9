use tokio::task::JoinSet;

use super::*;

/// Guests that each ask so many times, one request after the other, tenants of three guests.
async fn storm(upstream: &Arc<Upstream>, guests: u32, requests: u32) -> Vec<UpstreamError> {
    let mut tasks = JoinSet::new();
    for guest in 0..guests {
        let upstream = Arc::clone(upstream);
        tasks.spawn(async move {
            let mut failed = Vec::new();
            for _ in 0..requests {
                let outgoing = from(guest / 3, guest, Method::GET, "/latest/meta-data/", b"");
                match ask(&upstream, outgoing).await {
                    Ok((status, _)) => assert_eq!(status, 200),
                    Err(error) => failed.push(error),
                }
            }
            failed
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

#[tokio::test]
async fn a_boot_storm_costs_nobody_an_error() {
    for (guests, threads) in [(10, 1), (100, 1), (100, 8)] {
        let place = Place::new();
        let agent = FixtureAgent::start(&place.path(), threads, Duration::ZERO, |_| ok("x"));
        let upstream = place.agent();
        let failed = storm(&upstream, guests, 20).await;
        assert!(
            failed.is_empty(),
            "{} failed, the first: {}",
            failed.len(),
            failed[0]
        );
        assert_eq!(
            agent.seen(),
            guests as usize * 20,
            "no request was sent twice"
        );
        let queue = upstream.snapshot().queue;
        assert_eq!((queue.in_flight, queue.connected, queue.waiting), (0, 0, 0));
    }
}

#[tokio::test]
async fn the_bound_becomes_what_the_agent_takes() {
    let place = Place::new();
    // One being served and six in the backlog.
    let _agent = FixtureAgent::start(&place.path(), 1, Duration::from_millis(5), |_| ok("x"));
    let upstream = place.agent();
    let storm = storm(&upstream, 60, 5);
    let watch = async {
        until("the bound has settled", || {
            let snapshot = upstream.snapshot();
            snapshot.answered > 100 && (6..=8).contains(&snapshot.queue.bound)
        })
        .await;
    };
    let (failed, ()) = tokio::join!(storm, watch);
    assert!(failed.is_empty());
    let queue = upstream.snapshot().queue;
    assert!(
        queue.backlog_full < 100,
        "{} refusals for 300 requests",
        queue.backlog_full
    );
}

#[tokio::test]
async fn restarts_under_load_cost_nobody_an_error() {
    let place = Place::new();
    let serving = |_: &[u8]| ok("x");
    let service = Duration::from_millis(2);
    let mut agent = FixtureAgent::start(&place.path(), 2, service, serving);
    let upstream = place.agent();
    let load = tokio::spawn({
        let upstream = Arc::clone(&upstream);
        async move { storm(&upstream, 40, 20).await }
    });
    for round in 1..=3 {
        until("the agent is under load", || agent.seen() > 40 * round).await;
        // Off this thread: the load goes on while the agent dies.
        tokio::task::spawn_blocking(|| agent.kill()).await.unwrap();
        let refused = retries(&upstream, RetryReason::Absent);
        until("it was missed", || {
            retries(&upstream, RetryReason::Absent) > refused
        })
        .await;
        agent = FixtureAgent::start(&place.path(), 2, service, serving);
    }
    let failed = load.await.unwrap();
    assert!(
        failed.is_empty(),
        "{} failed, the first: {}",
        failed.len(),
        failed[0]
    );
    assert!(
        retries(&upstream, RetryReason::Unread) > 0,
        "some were in the backlog"
    );
    assert!(
        retries(&upstream, RetryReason::Restarted) > 0,
        "some were being served"
    );
}
