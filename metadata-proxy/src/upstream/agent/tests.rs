mod storms;

use std::{
    io::Read as _,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    sync::{Arc, Mutex},
};

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use tempfile::TempDir;

use super::*;
use crate::upstream::{
    AnswerBody, Upstream,
    fixture::{FixtureAgent, Reply, WIDE, adaptive, from, ok, request, until},
};

struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("metadata_proxy")
    }

    fn agent(&self) -> Arc<Upstream> {
        self.agent_taking(4_096)
    }

    fn agent_taking(&self, max_request_bytes: usize) -> Arc<Upstream> {
        let config = AgentConfig {
            path: self.path(),
            max_request_bytes,
            bound: adaptive(),
            waiting: WIDE,
        };
        Arc::new(Upstream::Agent(Agent::new(config).unwrap()))
    }
}

async fn ask(upstream: &Upstream, request: Outgoing) -> Result<(u16, String), UpstreamError> {
    let mut spent = Spent::default();
    let answer = upstream
        .ask(
            &request,
            Timeouts::default(),
            &mut spent,
            std::future::pending(),
        )
        .await?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn retries(upstream: &Upstream, reason: RetryReason) -> u64 {
    upstream.snapshot().retries[reason as usize].1
}

#[tokio::test]
async fn the_agent_reads_the_whole_request_at_once_with_the_tag_first() {
    let place = Place::new();
    let agent = FixtureAgent::start(&place.path(), 1, Duration::ZERO, |_| ok("hello"));
    let upstream = place.agent();
    let outgoing = request(Method::POST, "/openstack/latest/password", b"secret");
    assert_eq!(
        ask(&upstream, outgoing).await.unwrap(),
        (200, "hello".to_owned())
    );
    let seen = String::from_utf8(agent.seen.lock().unwrap()[0].clone()).unwrap();
    assert_eq!(
        seen,
        "POST /openstack/latest/password HTTP/1.1\r\n\
         X-Neutron-Router-ID: 00000000-0000-0000-0000-000000000001\r\n\
         X-Forwarded-For: 0.0.0.1\r\nhost: 169.254.169.254\r\ncontent-length: 6\r\n\
         connection: close\r\n\r\nsecret"
    );
}

#[tokio::test]
async fn what_the_agent_could_not_read_whole_is_never_sent() {
    let place = Place::new();
    let agent = FixtureAgent::start(&place.path(), 1, Duration::ZERO, |_| ok(""));
    let upstream = place.agent();
    let target = format!("/{}", "a".repeat(4_100));
    let error = ask(&upstream, request(Method::GET, &target, b""))
        .await
        .unwrap_err();
    assert_eq!(error.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let error = ask(&upstream, request(Method::POST, "/", &[b'x'; 4_000]))
        .await
        .unwrap_err();
    assert_eq!(error.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(agent.seen(), 0);
    assert_eq!(upstream.snapshot().too_large, 2);
}

#[tokio::test]
async fn a_request_of_exactly_the_limit_arrives_whole() {
    let place = Place::new();
    let agent = FixtureAgent::start(&place.path(), 1, Duration::ZERO, |_| ok(""));
    let overhead = {
        let mut message = BytesMut::new();
        request(Method::GET, "/", b"").encode("close", &mut message);
        message.len()
    };
    let target = format!("/{}", "a".repeat(4_096 - overhead));
    ask(&place.agent(), request(Method::GET, &target, b""))
        .await
        .unwrap();
    assert_eq!(agent.seen.lock().unwrap()[0].len(), 4_096);
}

#[tokio::test]
async fn an_agent_that_takes_more_gets_more_than_its_socket_takes_at_once() {
    static BODY: [u8; 1 << 20] = [b'x'; 1 << 20];
    let place = Place::new();
    let listener = UnixListener::bind(place.path()).unwrap();
    let server = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut seen = Vec::new();
        let mut buffer = vec![0; 65_536];
        while !seen.ends_with(b"xxxx") || seen.len() < BODY.len() {
            let len = connection.read(&mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..len]);
        }
        std::io::Write::write_all(&mut connection, b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        seen
    });
    let upstream = place.agent_taking(4 << 20);
    assert_eq!(
        ask(&upstream, request(Method::PUT, "/", &BODY))
            .await
            .unwrap()
            .0,
        200
    );
    assert!(server.join().unwrap().ends_with(&BODY));
}

#[tokio::test]
async fn a_request_the_agent_never_read_is_sent_again_whatever_its_method() {
    let place = Place::new();
    let deaf = FixtureAgent::start(&place.path(), 0, Duration::ZERO, |_| Reply::Silence);
    let upstream = place.agent();
    let asking = tokio::spawn({
        let upstream = Arc::clone(&upstream);
        async move { ask(&upstream, request(Method::POST, "/", b"once")).await }
    });
    until("the request is in the backlog", || {
        upstream.snapshot().queue.connected == 1
    })
    .await;
    deaf.kill();
    until("the agent is missed", || {
        retries(&upstream, RetryReason::Absent) > 0
    })
    .await;
    let agent = FixtureAgent::start(&place.path(), 1, Duration::ZERO, |_| ok("done"));
    assert_eq!(asking.await.unwrap().unwrap(), (200, "done".to_owned()));
    assert_eq!(agent.seen(), 1);
}

#[tokio::test]
async fn a_request_an_agent_died_over_is_sent_again_only_without_effects() {
    for (method, again) in [(Method::GET, true), (Method::POST, false)] {
        let place = Place::new();
        let slow =
            FixtureAgent::start(&place.path(), 1, Duration::from_mins(1), |_| Reply::Silence);
        let upstream = place.agent();
        let asking = tokio::spawn({
            let (upstream, method) = (Arc::clone(&upstream), method.clone());
            async move { ask(&upstream, request(method, "/", b"")).await }
        });
        until("the request was read", || slow.seen() == 1).await;
        slow.kill();
        if again {
            until("the agent is missed", || {
                retries(&upstream, RetryReason::Absent) > 0
            })
            .await;
            let _agent = FixtureAgent::start(&place.path(), 1, Duration::ZERO, |_| ok("done"));
            assert_eq!(asking.await.unwrap().unwrap(), (200, "done".to_owned()));
        } else {
            let error = asking.await.unwrap().unwrap_err();
            assert_eq!(error.status(), StatusCode::BAD_GATEWAY, "{method}");
        }
    }
}

#[tokio::test]
async fn an_agent_that_closes_without_a_byte_is_asked_once() {
    let place = Place::new();
    let agent = FixtureAgent::start(&place.path(), 1, Duration::ZERO, |_| Reply::Silence);
    let upstream = place.agent();
    let error = ask(&upstream, request(Method::GET, "/", b""))
        .await
        .unwrap_err();
    assert_eq!(error.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(agent.seen(), 1);
}

#[tokio::test]
async fn an_agent_that_resets_everything_is_given_up() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path()).unwrap();
    let accepted = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&accepted);
    let server = std::thread::spawn(move || {
        for _ in 0..=MOST_UNREAD {
            let (connection, _) = listener.accept().unwrap();
            *counted.lock().unwrap() += 1;
            // Unread data makes the close a reset.
            let mut ready = [nix::poll::PollFd::new(
                std::os::fd::AsFd::as_fd(&connection),
                nix::poll::PollFlags::POLLIN,
            )];
            nix::poll::poll(&mut ready, nix::poll::PollTimeout::NONE).unwrap();
        }
        listener
    });
    let upstream = place.agent();
    let error = ask(&upstream, request(Method::GET, "/", b""))
        .await
        .unwrap_err();
    assert_eq!(error.status(), StatusCode::BAD_GATEWAY, "{error}");
    assert_eq!(*accepted.lock().unwrap(), 1 + MOST_UNREAD);
    server.join().unwrap();
}

#[tokio::test]
async fn a_slow_agent_is_a_gateway_timeout() {
    let place = Place::new();
    let agent = FixtureAgent::start(&place.path(), 1, Duration::from_mins(1), |_| ok(""));
    let upstream = place.agent();
    let timeouts = Timeouts {
        server: Duration::from_millis(30),
        ..Timeouts::default()
    };
    let mut spent = Spent::default();
    let outgoing = request(Method::GET, "/", b"");
    let error = upstream
        .ask(&outgoing, timeouts, &mut spent, std::future::pending())
        .await
        .err()
        .unwrap();
    assert_eq!(error.status(), StatusCode::GATEWAY_TIMEOUT);
    assert!(spent.upstream >= timeouts.server);
    assert_eq!(upstream.snapshot().queue.in_flight, 0);
    drop(agent);
}

#[tokio::test]
async fn an_absent_agent_is_waited_for_until_the_deadline() {
    let place = Place::new();
    let upstream = place.agent();
    let timeouts = Timeouts {
        connect: Duration::from_millis(40),
        ..Timeouts::default()
    };
    let mut spent = Spent::default();
    let outgoing = request(Method::GET, "/", b"");
    let error = upstream
        .ask(&outgoing, timeouts, &mut spent, std::future::pending())
        .await
        .err()
        .unwrap();
    assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(spent.retries > 0 && spent.upstream >= timeouts.connect);

    let asking = tokio::spawn({
        let upstream = Arc::clone(&upstream);
        async move { ask(&upstream, request(Method::GET, "/", b"")).await }
    });
    let before = retries(&upstream, RetryReason::Absent);
    until("it was looked for", || {
        retries(&upstream, RetryReason::Absent) > before + 1
    })
    .await;
    let _agent = FixtureAgent::start(&place.path(), 1, Duration::ZERO, |_| ok("there"));
    assert_eq!(asking.await.unwrap().unwrap().1, "there");
}

#[tokio::test]
async fn a_request_whose_turn_does_not_come_is_refused_and_its_time_told() {
    let place = Place::new();
    let agent = FixtureAgent::start(&place.path(), 1, Duration::from_mins(1), |_| ok(""));
    let upstream = place.agent();
    upstream.reconfigure(BoundPolicy::Fixed(std::num::NonZeroU32::MIN), WIDE);
    let first = tokio::spawn({
        let upstream = Arc::clone(&upstream);
        async move { ask(&upstream, request(Method::GET, "/", b"")).await }
    });
    until("the first is with the agent", || agent.seen() == 1).await;
    let timeouts = Timeouts {
        connect: Duration::from_millis(30),
        ..Timeouts::default()
    };
    let mut spent = Spent::default();
    let outgoing = request(Method::GET, "/", b"");
    let error = upstream
        .ask(&outgoing, timeouts, &mut spent, std::future::pending())
        .await
        .err()
        .unwrap();
    assert!(
        matches!(error, UpstreamError::QueueTimedOut { .. }),
        "{error}"
    );
    assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(spent.queued >= timeouts.connect);
    first.abort();
    let _ = first.await;
    assert_eq!(
        upstream.snapshot().queue.in_flight,
        0,
        "a guest that hangs up frees its place"
    );
}

#[tokio::test]
async fn a_forbidden_socket_is_refused_at_once_and_says_whose_it_is() {
    let place = Place::new();
    let _agent = FixtureAgent::start(&place.path(), 1, Duration::ZERO, |_| ok(""));
    let permit = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    permit(place.directory.path(), 0o755);
    permit(&place.path(), 0o000);
    let upstream = place.agent();
    // Root may connect to anything: this thread gives that up for file access.
    // SAFETY: takes an integer and changes this thread's credentials only.
    let before = unsafe { libc::setfsuid(65_534) };
    let outcome = ask(&upstream, request(Method::GET, "/", b"")).await;
    // SAFETY: as above.
    unsafe { libc::setfsuid(u32::try_from(before).unwrap()) };
    let error = outcome.unwrap_err();
    assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
    let text = error.to_string();
    assert!(
        text.contains("mode 0000") && text.contains("belongs to user"),
        "{text}"
    );
    assert_eq!(
        upstream
            .snapshot()
            .retries
            .iter()
            .map(|retry| retry.1)
            .sum::<u64>(),
        0
    );
}

#[tokio::test]
async fn a_long_answer_holds_its_place_until_it_was_passed_on() {
    let place = Place::new();
    let body = "x".repeat(300_000);
    let expected = body.clone();
    let _agent = FixtureAgent::start(&place.path(), 1, Duration::ZERO, move |_| ok(&body));
    let upstream = place.agent();
    let outgoing = request(Method::GET, "/", b"");
    let answer = upstream
        .ask(
            &outgoing,
            Timeouts::default(),
            &mut Spent::default(),
            std::future::pending(),
        )
        .await
        .unwrap();
    assert!(matches!(answer.body(), AnswerBody::Streaming(_)));
    assert_eq!(upstream.snapshot().queue.in_flight, 1);
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        expected
    );
    assert_eq!(upstream.snapshot().queue.in_flight, 0);
}
