use std::{num::NonZeroU32, sync::atomic::Ordering::SeqCst};

use ::http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::upstream::{
    Upstream,
    fixture::{FixtureServer, WIDE, request, until},
};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

fn upstream(endpoint: SocketAddr, longest_idle: Duration, patience: Duration) -> Upstream {
    at(Endpoint::Tcp(endpoint), longest_idle, patience)
}

fn at(endpoint: Endpoint, longest_idle: Duration, patience: Duration) -> Upstream {
    Upstream::Http(Http::new(HttpConfig {
        endpoint,
        most_idle: 4,
        longest_idle,
        patience,
        bound: BoundPolicy::Fixed(NonZeroU32::new(64).unwrap()),
        waiting: WIDE,
    }))
}

fn keeping(endpoint: SocketAddr) -> Upstream {
    upstream(endpoint, Duration::from_secs(30), Duration::ZERO)
}

async fn ask(upstream: &Upstream, method: Method) -> Result<(u16, usize), UpstreamError> {
    let outgoing = request(method, "/", b"");
    let answer = upstream
        .ask(
            &outgoing,
            Timeouts::default(),
            &mut Spent::default(),
            std::future::pending(),
        )
        .await?;
    let status = answer.status().as_u16();
    Ok((status, answer.into_body().collect().await?.to_bytes().len()))
}

fn stale(upstream: &Upstream) -> u64 {
    upstream.snapshot().retries[RetryReason::Stale as usize].1
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let server = FixtureServer::start(|_| (ANSWER.to_vec(), false));
    let upstream = keeping(server.address);
    for _ in 0..10 {
        assert_eq!(ask(&upstream, Method::GET).await.unwrap(), (200, 2));
    }
    assert_eq!(server.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn requests_at_once_use_as_many_connections_and_share_them_later() {
    let server = FixtureServer::start(|_| (ANSWER.to_vec(), false));
    let upstream = keeping(server.address);
    for _ in 0..5 {
        let (one, two, three) = tokio::join!(
            ask(&upstream, Method::GET),
            ask(&upstream, Method::GET),
            ask(&upstream, Method::GET)
        );
        assert!(one.is_ok() && two.is_ok() && three.is_ok());
    }
    assert_eq!(server.connections.load(SeqCst), 3);
}

#[tokio::test]
async fn a_connection_the_server_closed_is_replaced_unnoticed() {
    let server = FixtureServer::start(|_| (ANSWER.to_vec(), false));
    let upstream = keeping(server.address);
    for round in 1..=20 {
        assert_eq!(
            ask(&upstream, Method::GET).await.unwrap(),
            (200, 2),
            "round {round}"
        );
        server.hang_up();
    }
    assert_eq!(server.connections.load(SeqCst), 20);
}

#[tokio::test]
async fn a_server_that_closes_every_other_request_unasked_is_asked_again_once() {
    // Answers the first request of a connection, and closes on the second without a byte.
    let server = FixtureServer::start({
        let count = std::sync::Mutex::new(0);
        move |_| {
            let mut count = count.lock().unwrap();
            *count += 1;
            if *count % 2 == 0 {
                (Vec::new(), true)
            } else {
                (ANSWER.to_vec(), false)
            }
        }
    });
    let upstream = keeping(server.address);
    for _ in 0..5 {
        assert_eq!(ask(&upstream, Method::GET).await.unwrap(), (200, 2));
    }
    assert_eq!(stale(&upstream), 4);
}

#[tokio::test]
async fn a_fresh_connection_closed_without_a_byte_is_a_bad_gateway() {
    let server = FixtureServer::start(|_| (Vec::new(), true));
    let upstream = keeping(server.address);
    let error = ask(&upstream, Method::GET).await.unwrap_err();
    assert_eq!(error.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(server.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn methods_with_effects_get_a_connection_of_their_own() {
    let server = FixtureServer::start(|_| (ANSWER.to_vec(), false));
    let upstream = keeping(server.address);
    for method in [Method::GET, Method::POST, Method::POST] {
        ask(&upstream, method).await.unwrap();
    }
    assert_eq!(server.connections.load(SeqCst), 3);
}

#[tokio::test]
async fn a_connection_said_to_close_is_not_kept() {
    let server = FixtureServer::start(|_| {
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
            false,
        )
    });
    let upstream = keeping(server.address);
    for _ in 0..3 {
        ask(&upstream, Method::GET).await.unwrap();
    }
    assert_eq!(server.connections.load(SeqCst), 3);
    assert_eq!(stale(&upstream), 0);
}

#[tokio::test]
async fn idle_connections_are_closed_in_time() {
    let server = FixtureServer::start(|_| (ANSWER.to_vec(), false));
    let upstream = upstream(server.address, Duration::from_millis(30), Duration::ZERO);
    ask(&upstream, Method::GET).await.unwrap();
    let closed = std::sync::Arc::clone(&server.closed_by_client);
    until("the idle connection is closed", || closed.load(SeqCst) == 1).await;
    ask(&upstream, Method::GET).await.unwrap();
    assert_eq!(server.connections.load(SeqCst), 2);
}

#[tokio::test]
async fn a_connection_is_kept_after_a_long_answer_too() {
    let server = FixtureServer::start(|_| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n".as_slice();
        ([head, &vec![b'x'; 200_000]].concat(), false)
    });
    let upstream = keeping(server.address);
    for _ in 0..3 {
        assert_eq!(ask(&upstream, Method::GET).await.unwrap(), (200, 200_000));
    }
    assert_eq!(server.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn where_nobody_listens_it_says_so_at_once_unless_told_to_be_patient() {
    let server = FixtureServer::start(|_| (ANSWER.to_vec(), false));
    let address = server.address;
    drop(server);
    let error = ask(&keeping(address), Method::GET).await.unwrap_err();
    assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);

    let patient = upstream(address, Duration::ZERO, Duration::from_millis(30));
    let started = Instant::now();
    let error = ask(&patient, Method::GET).await.unwrap_err();
    assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(started.elapsed() >= Duration::from_millis(30));
    assert!(patient.snapshot().retries[RetryReason::Absent as usize].1 > 0);
}

/// A server on a unix socket that answers a request with its connection's number.
async fn serve_unix(listener: tokio::net::UnixListener) {
    for connection in 1.. {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut room = [0; 4096];
            while stream.read(&mut room).await.is_ok_and(|read| read > 0) {
                let body = "x".repeat(connection);
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
    }
}

#[tokio::test]
async fn a_unix_socket_carries_many_requests_over_one_connection() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("http.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(serve_unix(listener));
    let endpoint = Endpoint::Unix(path);
    let upstream = at(endpoint, Duration::from_secs(30), Duration::ZERO);
    assert!(upstream.name().starts_with("unix:/"));
    for _ in 0..5 {
        assert_eq!(ask(&upstream, Method::GET).await.unwrap(), (200, 1));
    }
    // Not safe to be sent twice: on a connection of its own.
    assert_eq!(ask(&upstream, Method::POST).await.unwrap(), (200, 2));
    server.abort();
}

#[tokio::test]
async fn a_unix_socket_that_is_not_there_yet_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("http.sock");
    let endpoint = Endpoint::Unix(path.clone());
    let upstream = at(endpoint, Duration::ZERO, Duration::from_secs(5));
    let late = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(serve_unix(listener)).abort_handle()
    };
    let (answer, server) = tokio::join!(ask(&upstream, Method::GET), late);
    assert_eq!(answer.unwrap(), (200, 1));
    server.abort();

    let nowhere = Endpoint::Unix(directory.path().join("nowhere"));
    let upstream = at(nowhere, Duration::ZERO, Duration::from_millis(20));
    let error = ask(&upstream, Method::GET).await.unwrap_err();
    assert!(
        matches!(error, UpstreamError::Unreachable { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_unix_socket_whose_backlog_is_full_is_waited_for() {
    use socket2::{Domain, SockAddr, Socket, Type};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("http.sock");
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
    socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let listener = tokio::net::UnixListener::from_std(OwnedFd::from(socket).into()).unwrap();
    // One more than a backlog of none takes.
    let waiting = UnixStream::connect(&path).await.unwrap();
    let endpoint = Endpoint::Unix(path);
    let upstream = at(endpoint, Duration::ZERO, Duration::ZERO);
    let late = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        tokio::spawn(serve_unix(listener)).abort_handle()
    };
    let (answer, server) = tokio::join!(ask(&upstream, Method::GET), late);
    assert_eq!(answer.unwrap(), (200, 2));
    let full = upstream.snapshot().retries[RetryReason::BacklogFull as usize].1;
    assert!(full > 0, "the backlog was never full");
    drop(waiting);
    server.abort();
}
