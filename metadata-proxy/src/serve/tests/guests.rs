//! Who is served, and how much of it.

use super::*;

#[tokio::test]
async fn a_tenant_s_own_cap_on_connections_holds() {
    let bench = Bench::start(&Options {
        max_connections: Some(1),
        ..Options::default()
    });
    let mut first = bench.guest().await;
    first.write_all(GET.as_bytes()).await.unwrap();
    read_one(&mut first).await;
    assert_eq!(bench.exchange(GET).await, "");
    drop(first);
    until("room", || bench.node.limits.snapshot().connections == 0).await;
    let mut third = bench.guest().await;
    third.write_all(GET.as_bytes()).await.unwrap();
    assert!(read_one(&mut third).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_connection_whose_namespace_is_no_tenant_is_closed_unread() {
    let bench = Bench::start(&Options {
        undeclared: true,
        ..Options::default()
    });
    assert_eq!(bench.exchange(GET).await, "");
    assert_eq!(bench.upstream.asked(), 0);
    assert_eq!(bench.service.counters.refused.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_namespace_that_changes_hands_is_refused() {
    let bench = Bench::start(&Options::default());
    let other = Tenant {
        id: Uuid::from_u128(1),
        ..TENANT
    };
    bench.kernel.declare(bench.service.cookie, other).unwrap();
    assert_eq!(bench.exchange(GET).await, "");
    assert_eq!(bench.upstream.asked(), 0);
    bench
        .kernel
        .withdraw(NetnsCookie(bench.service.cookie.0))
        .unwrap();
    assert_eq!(bench.exchange(GET).await, "");
}

#[tokio::test]
async fn more_than_the_rate_limit_is_429_with_a_time_to_come_back() {
    let window = WindowLimit {
        period: Duration::from_mins(1),
        requests: 2,
    };
    let limits = RateLimits {
        base: window,
        burst: window,
        families: crate::admission::Families { v4: true, v6: true },
    };
    let bench = Bench::start(&Options {
        rate_limits: Some(limits),
        ..Options::default()
    });
    let mut guest = bench.guest().await;
    for expected in ["200", "200", "429"] {
        guest.write_all(GET.as_bytes()).await.unwrap();
        let answer = read_one(&mut guest).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected} ")),
            "{answer}"
        );
        assert_eq!(
            expected == "429",
            answer.to_lowercase().contains("\r\nretry-after: ")
        );
    }
    assert_eq!(bench.upstream.asked(), 2);
}

#[tokio::test]
async fn a_guest_has_only_so_many_connections() {
    let bench = Bench::start(&Options {
        connections_per_guest: Some(1),
        ..Options::default()
    });
    let mut first = bench.guest().await;
    first.write_all(GET.as_bytes()).await.unwrap();
    read_one(&mut first).await;
    assert_eq!(bench.exchange(GET).await, "", "the second is closed");
    drop(first);
    until("the place is free again", || {
        bench.node.limits.snapshot().connections == 0
    })
    .await;
    let mut third = bench.guest().await;
    third.write_all(GET.as_bytes()).await.unwrap();
    assert!(read_one(&mut third).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_router_without_internal_network_is_never_forwarded_for() {
    let bench = Bench::start(&Options {
        no_internal_network: true,
        ..Options::default()
    });
    let mut guest = bench.guest().await;
    guest.write_all(GET.as_bytes()).await.unwrap();
    assert!(read_one(&mut guest).await.starts_with("HTTP/1.1 404 "));
    assert_eq!(bench.upstream.asked(), 0);
}
