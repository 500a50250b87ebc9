//! What a guest sends, and what becomes of it.

use super::*;

#[tokio::test]
async fn a_body_that_comes_byte_by_byte_is_given_up_on() {
    let bench = Bench::start(&Options {
        body_timeout: Some(Duration::from_millis(300)),
        ..Options::default()
    });
    let mut guest = bench.guest().await;
    guest
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        .await
        .unwrap();
    let (mut reading, mut writing) = guest.split();
    let dribbles = async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if writing.write_all(b"x").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut answer = [0; 32];
    let len = tokio::select! {
        len = timeout(DEADLINE, reading.read(&mut answer)) => len.unwrap().unwrap(),
        () = dribbles => unreachable!("it never ends"),
    };
    assert!(answer[..len].starts_with(b"HTTP/1.1 408 "));
    assert_eq!(bench.upstream.asked(), 0);
}

#[tokio::test]
async fn a_request_goes_upstream_with_its_tag_and_the_answer_comes_back() {
    let bench = Bench::start(&Options::default());
    let answer = bench
        .exchange(
            "GET /a?b HTTP/1.1\r\nHost: a\r\nX-Neutron-Network-ID: spoofed\r\n\
             Connection: close\r\n\r\n",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let (_, seen) = answer.split_once("\r\n\r\n").unwrap();
    let expected = format!(
        "GET /a?b HTTP/1.1\r\nX-Neutron-Network-ID: {}\r\nX-Forwarded-For: 127.0.0.1\r\n",
        TENANT.id
    );
    assert!(seen.starts_with(&expected), "{seen}");
    assert!(!seen.contains("spoofed"));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_on_one_connection() {
    let bench = Bench::start(&Options::default());
    let mut guest = bench.guest().await;
    let pipeline = [0, 1, 2, 3, 4]
        .map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"))
        .concat();
    guest.write_all(pipeline.as_bytes()).await.unwrap();
    guest
        .write_all(b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let answers = read_to_end(&mut guest).await;
    let places: Vec<_> = (0..5)
        .map(|n| answers.find(&format!("GET /{n} ")).unwrap())
        .collect();
    assert!(places.is_sorted(), "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 6);
}

#[tokio::test]
async fn what_is_no_request_is_answered_400_and_never_forwarded() {
    let bench = Bench::start(&Options::default());
    for garbage in [
        "\0\0\0\0\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET  HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\ncontent-length:3\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nbad name: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    ] {
        let answer = bench.exchange(garbage).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 "),
            "{garbage:?} got {answer:?}"
        );
    }
    assert_eq!(bench.upstream.asked(), 0);
}

#[tokio::test]
async fn a_body_is_forwarded_whole_and_too_large_a_one_not_at_all() {
    let bench = Bench::start(&Options {
        body_bytes: Some(8),
        ..Options::default()
    });
    let chunked = "POST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\
                   Connection: close\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let answer = bench.exchange(chunked).await;
    assert!(answer.contains("\r\ncontent-length: 5\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nabcde"), "{answer}");
    assert_eq!(bench.upstream.asked(), 1);
    for too_large in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n123456789\r\n",
    ] {
        let answer = bench.exchange(too_large).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(
            answer.to_lowercase().contains("connection: close"),
            "{answer}"
        );
    }
    assert_eq!(bench.upstream.asked(), 1);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up_on() {
    let client_timeout = Some(Duration::from_millis(50));
    let bench = Bench::start(&Options {
        client_timeout,
        ..Options::default()
    });
    let answer = bench
        .exchange("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
        .await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(bench.upstream.asked(), 0);
}

#[tokio::test]
async fn a_guest_that_sends_nothing_more_still_gets_its_answer() {
    let bench = Bench::start(&Options {
        is_gated: true,
        ..Options::default()
    });
    let mut guest = bench.guest().await;
    guest.write_all(GET.as_bytes()).await.unwrap();
    guest.shutdown().await.unwrap();
    until("the upstream is asked", || bench.upstream.asked() == 1).await;
    bench.upstream.gate.notify_one();
    let answer = read_to_end(&mut guest).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_request_that_does_not_come_in_time_is_answered_408() {
    let bench = Bench::start(&Options {
        head_timeout: Some(Duration::from_millis(50)),
        ..Options::default()
    });
    for unfinished in ["", "GET / HT", "GET / HTTP/1.1\r\nHost: a\r\n"] {
        let answer = bench.exchange(unfinished).await;
        assert!(
            answer.starts_with("HTTP/1.1 408 "),
            "{unfinished:?} got {answer:?}"
        );
        assert!(
            answer.ends_with("408 the request did not come in time\n"),
            "{answer:?}"
        );
    }
    let mut guest = bench.guest().await;
    guest.write_all(GET.as_bytes()).await.unwrap();
    assert!(read_one(&mut guest).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(
        read_to_end(&mut guest).await,
        "",
        "who asks no more is told nothing"
    );
}
