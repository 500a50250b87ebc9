//! What a guest sends, through the server and the rewriting, to what an upstream reads.

use std::{
    cell::OnceCell,
    net::SocketAddr,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use metadata_proxy::{
    access::Metrics,
    admission::{BoundPolicy, Caps, Limits, QueueLimits, RateLimiter},
    config::Config,
    identity::Tenant,
    kernel::{Kernel as _, PlainKernel},
    listener::{self, Acceptor},
    serve::{Ends, Node, accept},
    tenants::{Counters, Service, Settings},
    upstream::{Agent, AgentConfig, Upstream},
};
use metadata_proxy_common::TenantKind;
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixListener},
    runtime::Runtime,
    time::timeout,
};
use uuid::Uuid;

use crate::{netns::leave_the_node, reader};

const TENANT: Tenant = Tenant {
    kind: TenantKind::Router,
    id: Uuid::from_u128(0xfeed_0000_0000_4000_8000_0000_0000_beef),
};
const TAG: (&str, &str) = (
    "X-Neutron-Router-ID",
    "feed0000-0000-4000-8000-00000000beef",
);
/// What Neutron's agent reads of a request.
const ONE_READ: usize = 4096;
/// Nothing here waits for anything but this process.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whatever a guest sends on a connection: the upstream reads messages that are one request each,
/// short enough, with the true identity first and no other. It gets no more of them than the guest
/// asked for; and where nobody can disagree about what the guest asked for, exactly those. Each is
/// answered, everything else is refused, and the connection ends.
pub fn request(data: &[u8]) {
    thread_local! {
        static BENCH: OnceCell<Bench> = const { OnceCell::new() };
    }
    BENCH.with(|bench| bench.get_or_init(Bench::start).check(data));
}

struct Bench {
    runtime: Runtime,
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn start() -> Self {
        leave_the_node();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("no runtime");
        let directory = tempfile::tempdir().expect("no directory");
        let heard = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let socket = directory.path().join("agent");
        let address = runtime.block_on(async {
            let agent = UnixListener::bind(&socket).expect("no socket");
            tokio::spawn(hear(agent, Arc::clone(&heard)));
            serve(
                Agent::new(AgentConfig {
                    path: socket,
                    max_request_bytes: ONE_READ,
                    bound: BoundPolicy::Fixed(NonZeroU32::MIN),
                    waiting: QueueLimits {
                        waiting: 10,
                        waiting_per_tenant: 10,
                    },
                })
                .expect("a socket's path"),
            )
        });
        Self {
            runtime,
            address,
            heard,
            _directory: directory,
        }
    }

    fn check(&self, data: &[u8]) {
        lock(&self.heard).clear();
        let answers = self
            .runtime
            .block_on(async { timeout(PATIENCE, self.exchange(data)).await });
        let answers = answers.expect("the connection does not end");
        let heard = std::mem::take(&mut *lock(&self.heard));
        let read: Vec<_> = heard.iter().map(|message| one_request(message)).collect();

        let asked = count(data, b"HTTP/1.");
        assert!(read.len() <= asked, "{} of {asked} requests", read.len());
        for request in &read {
            let target = request.target.trim_start_matches('/').as_bytes();
            assert!(
                contains(data, target),
                "nobody asked for {}",
                request.target
            );
            assert!(contains(data, request.method.as_bytes()));
        }
        let served = count(&answers, b"HTTP/1.1 200 ") + count(&answers, b"HTTP/1.0 200 ");
        assert_eq!(served, read.len(), "answers to what was asked");
        assert!(answers.is_empty() || answers.starts_with(b"HTTP/1."));
        assert_eq!(
            count(&answers, b"HTTP/1.1 5"),
            count(&answers, b"HTTP/1.1 501 ")
        );

        if let Some(plain) = reader::plain_requests(data) {
            let what = |request: &reader::Read| {
                (
                    request.method.clone(),
                    request.target.clone(),
                    request.body.clone(),
                )
            };
            let plain: Vec<_> = plain.iter().map(what).collect();
            let read: Vec<_> = read.iter().map(what).collect();
            assert_eq!(read, plain, "requests about which nobody can disagree");
        }
    }

    /// Sends everything, says that there is no more, and returns what was answered.
    async fn exchange(&self, data: &[u8]) -> Vec<u8> {
        let mut guest = TcpStream::connect(self.address)
            .await
            .expect("no connection");
        let (mut reading, mut writing) = guest.split();
        let mut answers = Vec::new();
        let send = async {
            // A refusal may come before all was sent.
            let _ = writing.write_all(data).await;
            let _ = writing.shutdown().await;
        };
        // A reset ends it as well.
        let ((), _) = tokio::join!(send, reading.read_to_end(&mut answers));
        answers
    }
}

/// What the upstream reads is one request, and this tenant's.
fn one_request(message: &[u8]) -> reader::Read {
    let shown = String::from_utf8_lossy(message);
    assert!(message.len() <= ONE_READ, "{} bytes", message.len());
    let (mut request, body) = reader::head(message).unwrap_or_else(|| panic!("no head: {shown}"));
    body.clone_into(&mut request.body);
    let (name, value) = &request.headers[0];
    assert_eq!((&**name, &**value), TAG, "{shown}");
    assert_eq!(request.headers[1].0, "X-Forwarded-For", "{shown}");
    assert_eq!(request.headers[1].1, "127.0.0.1", "{shown}");
    for (name, _) in &request.headers[2..] {
        let name = name.to_ascii_lowercase().replace('_', "-");
        for claim in [
            "x-neutron",
            "x-ovn",
            "x-instance",
            "x-tenant",
            "x-metadata",
            "x-forwarded",
            "forwarded",
            "x-real-ip",
            "transfer-encoding",
        ] {
            assert!(!name.starts_with(claim), "{name} left: {shown}");
        }
    }
    let lengths: Vec<_> = request.all("content-length").collect();
    match &*lengths {
        [] => assert!(body.is_empty(), "more than one request: {shown}"),
        [length] => assert_eq!(length.parse(), Ok(body.len()), "{shown}"),
        _ => panic!("more than one length: {shown}"),
    }
    assert!(request.target.starts_with('/'), "{shown}");
    request
}

/// Neutron's agent: one read of each connection, and it would read more than it should get.
async fn hear(agent: UnixListener, heard: Arc<Mutex<Vec<Vec<u8>>>>) {
    while let Ok((mut stream, _)) = agent.accept().await {
        let mut message = vec![0; 16 * ONE_READ];
        let len = stream.read(&mut message).await.unwrap_or(0);
        message.truncate(len);
        lock(&heard).push(message);
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let _ = stream.write_all(answer).await;
    }
}

/// Serves the tenant on loopback.
fn serve(agent: Agent) -> SocketAddr {
    let listener = listener::bind(0).expect("no listener");
    let port = listener.local_addr().expect("no address").port();
    let cookie = listener::netns_cookie().expect("no cookie");
    let caps = Caps {
        connections: 100,
        connections_per_tenant: 100,
        connections_per_guest: 100,
        requests_per_guest: 100,
    };
    let kernel = PlainKernel::default();
    kernel
        .declare(cookie, TENANT)
        .expect("nothing keeps it from being declared");
    let node = Node::new(
        Arc::new(kernel),
        Limits::new(caps),
        RateLimiter::new(100, 100),
        Metrics::new(&mut Registry::default()),
        Ends::default(),
    );
    let config = Config::default();
    let settings = Settings {
        upstream: Arc::new(Upstream::Agent(agent)),
        timeouts: config.timeouts,
        rate_limits: None,
        head_bytes: config.limits.head_bytes,
        body_bytes: config.limits.body_bytes,
        max_connections: None,
        log_access: false,
    };
    let service = Service::new(
        TENANT,
        cookie,
        "fuzz".to_owned(),
        Arc::new(settings),
        Arc::<Counters>::default(),
    );
    service.set_may_forward(true);
    let listener = Acceptor::new(listener).expect("no runtime");
    tokio::spawn(accept(
        Arc::new(listener),
        Arc::new(service),
        Arc::new(node),
    ));
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn count(bytes: &[u8], what: &[u8]) -> usize {
    bytes
        .windows(what.len())
        .filter(|window| *window == what)
        .count()
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    what.is_empty() || count(bytes, what) > 0
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
