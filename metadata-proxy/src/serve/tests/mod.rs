//! Serving with a fake kernel, real sockets on loopback, and an upstream that tests script.

mod ends;
mod guests;
mod requests;

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
    listener::{self, Acceptor},
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
            Arc::new(Acceptor::new(listener).unwrap()),
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
