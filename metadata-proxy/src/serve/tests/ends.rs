//! How connections end: by the guest, with the tenant, with the process.

use super::*;

#[tokio::test]
async fn a_guest_that_leaves_gives_up_its_place() {
    let bench = Bench::start(&Options {
        is_gated: true,
        most_in_flight: Some(1),
        ..Options::default()
    });
    let mut first = bench.guest().await;
    first.write_all(GET.as_bytes()).await.unwrap();
    until("the upstream is asked", || bench.upstream.asked() == 1).await;
    let mut leaving = bench.guest().await;
    leaving.write_all(GET.as_bytes()).await.unwrap();
    let waiting = || {
        bench
            .service
            .settings
            .load()
            .upstream
            .snapshot()
            .queue
            .waiting
    };
    until("the second waits", || waiting() == 1).await;
    drop(leaving);
    until("the second has left", || waiting() == 0).await;
    bench.upstream.gate.notify_one();
    assert!(read_one(&mut first).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(bench.upstream.asked(), 1);
}

#[tokio::test]
async fn draining_finishes_what_is_in_flight_and_accepts_nothing_more() {
    let bench = Bench::start(&Options {
        is_gated: true,
        ..Options::default()
    });
    let mut guest = bench.guest().await;
    let request = "POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
    guest.write_all(request.as_bytes()).await.unwrap();
    until("the upstream is asked", || bench.upstream.asked() == 1).await;
    bench.node.ends.stopping.cancel();
    until("the listener is closed", || bench.accepting.is_finished()).await;
    assert_eq!(
        TcpStream::connect(bench.address)
            .await
            .map_err(|e| e.kind())
            .err(),
        Some(io::ErrorKind::ConnectionRefused)
    );
    bench.upstream.gate.notify_one();
    let answer = read_to_end(&mut guest).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("body"),
        "{answer}"
    );
    timeout(DEADLINE, bench.node.connections_over())
        .await
        .expect("the node is idle");
}

#[tokio::test]
async fn a_guest_that_asks_while_the_process_ends_is_answered_and_told() {
    let bench = Bench::start(&Options::default());
    let mut asked_before = bench.guest().await;
    asked_before.write_all(GET.as_bytes()).await.unwrap();
    let answer = read_one(&mut asked_before).await;
    assert!(!answer.contains("Connection: close"), "{answer}");
    let mut connected_before = bench.guest().await;
    until("both are accepted", || bench.node.open_connections() == 3).await;
    bench.node.ends.stopping.cancel();
    for guest in [&mut asked_before, &mut connected_before] {
        guest.write_all(GET.as_bytes()).await.unwrap();
        let answer = read_to_end(guest).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_guest_that_asks_no_more_does_not_hold_up_the_end() {
    let bench = Bench::start(&Options::default());
    let mut guest = bench.guest().await;
    guest.write_all(GET.as_bytes()).await.unwrap();
    read_one(&mut guest).await;
    bench.node.ends.stopping.cancel();
    assert_eq!(read_to_end(&mut guest).await, "");
    timeout(DEADLINE, bench.node.connections_over())
        .await
        .expect("the node is idle");
}

#[tokio::test]
async fn a_tenant_that_is_gone_takes_its_connections_with_it() {
    let bench = Bench::start(&Options {
        is_gated: true,
        ..Options::default()
    });
    let mut guest = bench.guest().await;
    guest.write_all(GET.as_bytes()).await.unwrap();
    until("the upstream is asked", || bench.upstream.asked() == 1).await;
    bench.service.gone.cancel();
    assert_eq!(read_to_end(&mut guest).await, "");
    timeout(DEADLINE, bench.node.connections_over())
        .await
        .expect("the node is idle");
}
