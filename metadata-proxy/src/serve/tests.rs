//! Serving with a fake kernel, real sockets on loopback, and an upstream that tests script.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use metadata_proxy_common::TenantKind;
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixListener},
    sync::Notify,
    time::timeout,
};
use uuid::Uuid;

use super::{Ends, Node, accept};
use crate::{
    access::Metrics,
    admission::{BoundPolicy, Caps, Limits, QueueLimits, RateLimiter, RateLimits, WindowLimit},
    config::Config,
    identity::Tenant,
    kernel::{Kernel as _, NetnsCookie, fake::FakeKernel},
    listener,
    tenants::{Counters, Service, Settings},
    upstream::{Agent, AgentConfig, Upstream},
};

const TENANT: Tenant = Tenant {
    kind: TenantKind::Network,
    id: Uuid::from_u128(0xfeed),
};
const DEADLINE: Duration = Duration::from_secs(10);
const GET: &str = "GET /openstack HTTP/1.1\r\nHost: a\r\n\r\n";

/// A node with one tenant, served on loopback.
struct Bench {
    node: Arc<Node>,
    service: Arc<Service>,
    kernel: Arc<FakeKernel>,
    address: SocketAddr,
    upstream: ScriptedAgent,
    accepting: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

/// Answers every request with 200 and the request's own head, once it is let go.
struct ScriptedAgent {
    asked: Arc<AtomicUsize>,
    gate: Arc<Notify>,
}

impl ScriptedAgent {
    fn start(path: &Path, is_gated: bool) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let agent = Self {
            asked: Arc::default(),
            gate: Arc::default(),
        };
        let (asked, gate) = (Arc::clone(&agent.asked), Arc::clone(&agent.gate));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 4096];
                let len = stream.read(&mut request).await.unwrap_or(0);
                if len == 0 {
                    continue;
                }
                asked.fetch_add(1, Ordering::SeqCst);
                if is_gated {
                    gate.notified().await;
                }
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n");
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&request[..len]).await;
            }
        });
        agent
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[derive(Default)]
struct Options {
    is_gated: bool,
    rate_limits: Option<RateLimits>,
    connections_per_guest: Option<u32>,
    undeclared: bool,
    no_internal_network: bool,
    body_bytes: Option<usize>,
    client_timeout: Option<Duration>,
    head_timeout: Option<Duration>,
    most_in_flight: Option<u32>,
    body_timeout: Option<Duration>,
    max_connections: Option<u32>,
}

impl Bench {
    fn start(options: &Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket: PathBuf = dir.path().join("agent");
        let upstream = ScriptedAgent::start(&socket, options.is_gated);
        let config = Config::default();
        let listener = listener::bind(0).unwrap();
        let address = SocketAddr::new([127, 0, 0, 1].into(), listener.local_addr().unwrap().port());
        let cookie = listener::netns_cookie().unwrap();
        let kernel = Arc::new(FakeKernel::default());
        if !options.undeclared {
            kernel.declare(cookie, TENANT).unwrap();
        }
        let caps = Caps {
            connections: 100,
            connections_per_tenant: 100,
            connections_per_guest: options.connections_per_guest.unwrap_or(100),
            requests_per_guest: 100,
        };
        let node = Arc::new(Node::new(
            Arc::clone(&kernel) as _,
            Limits::new(caps),
            RateLimiter::new(100, 100),
            Metrics::new(&mut Registry::default()),
            Ends::default(),
        ));
        let agent = Agent::new(AgentConfig {
            path: socket,
            max_request_bytes: 4096,
            bound: BoundPolicy::Adaptive {
                ceiling: options.most_in_flight.unwrap_or(16).try_into().unwrap(),
            },
            waiting: QueueLimits {
                waiting: 100,
                waiting_per_tenant: 100,
            },
        });
        let mut timeouts = config.timeouts;
        timeouts.client = options.client_timeout.unwrap_or(timeouts.client);
        timeouts.request_body = options.body_timeout.unwrap_or(timeouts.request_body);
        timeouts.request_head = options.head_timeout.unwrap_or(timeouts.request_head);
        let settings = Settings {
            upstream: Arc::new(Upstream::Agent(agent.unwrap())),
            timeouts,
            rate_limits: options.rate_limits,
            head_bytes: 8192,
            body_bytes: options.body_bytes.unwrap_or(1024),
            max_connections: options.max_connections,
            log_access: false,
        };
        let service = Arc::new(Service::new(
            TENANT,
            cookie,
            "test".to_owned(),
            Arc::new(settings),
            Arc::<Counters>::default(),
        ));
        service.set_may_forward(!options.no_internal_network);
        let accepting = tokio::spawn(accept(
            Arc::new(tokio::net::TcpListener::from_std(listener).unwrap()),
            Arc::clone(&service),
            Arc::clone(&node),
        ));
        Self {
            node,
            service,
            kernel,
            address,
            upstream,
            accepting,
            _dir: dir,
        }
    }

    async fn guest(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes on a connection of their own and reads until the other side closes.
    async fn exchange(&self, request: &str) -> String {
        let mut guest = self.guest().await;
        guest.write_all(request.as_bytes()).await.unwrap();
        read_to_end(&mut guest).await
    }
}

async fn read_to_end(guest: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset ends an answer as well as a close does.
    let _ = timeout(DEADLINE, guest.read_to_end(&mut answer))
        .await
        .expect("no end in time");
    String::from_utf8_lossy(&answer).into_owned()
}

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

/// Reads one answer whose length is announced.
async fn read_one(guest: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| {
                    line.to_ascii_lowercase()
                        .strip_prefix("content-length: ")?
                        .parse()
                        .ok()
                })
                .unwrap_or(0);
            if body.len() >= length {
                return text;
            }
        }
        let mut chunk = [0; 4096];
        let len = timeout(DEADLINE, guest.read(&mut chunk))
            .await
            .expect("no answer")
            .unwrap();
        assert!(len > 0, "closed early: {text}");
        answer.extend_from_slice(&chunk[..len]);
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = timeout(DEADLINE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen"));
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
