//! What a client of the admin socket sends.

use std::{cell::OnceCell, path::PathBuf, sync::Arc, time::Duration};

use metadata_proxy::admin::{
    AdminServer, Control, ControlError,
    api::{AddTenant, NodeStatus, TenantStatus},
};
use metadata_proxy_common::TenantKind;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    runtime::Runtime,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(10);

/// Whatever a client sends: it gets one answer that is HTTP, or none, and the connection ends. No
/// namespace is ever named to the agent that leads out of its directory.
pub fn admin(data: &[u8]) {
    thread_local! {
        static BENCH: OnceCell<Bench> = const { OnceCell::new() };
    }
    BENCH.with(|bench| bench.get_or_init(Bench::start).check(data));
}

struct Bench {
    runtime: Runtime,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("no runtime");
        let directory = tempfile::tempdir().expect("no directory");
        let socket = directory.path().join("admin");
        let server = AdminServer::bind(&socket).unwrap_or_else(|error| panic!("{error}"));
        runtime.spawn(server.serve(Arc::new(Nobody), CancellationToken::new()));
        Self {
            runtime,
            socket,
            _directory: directory,
        }
    }

    fn check(&self, data: &[u8]) {
        let answer = self
            .runtime
            .block_on(async { timeout(PATIENCE, self.exchange(data)).await });
        let answer = answer.expect("the connection does not end");
        if answer.is_empty() {
            return;
        }
        let text = String::from_utf8_lossy(&answer);
        let status: u16 = text
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.get(2..5)?.parse().ok())
            .unwrap_or_else(|| panic!("no answer: {text}"));
        assert!(
            [200, 201, 204].contains(&status) || (400..500).contains(&status),
            "{text}"
        );
        // An error may quote what was sent, but on no line of its own.
        let answers = text.lines().filter(|line| line.starts_with("HTTP/1."));
        assert_eq!(answers.count(), 1, "more than one answer: {text}");
    }

    async fn exchange(&self, data: &[u8]) -> Vec<u8> {
        let mut client = UnixStream::connect(&self.socket)
            .await
            .expect("no connection");
        let (mut reading, mut writing) = client.split();
        let mut answer = Vec::new();
        let send = async {
            let _ = writing.write_all(data).await;
            let _ = writing.shutdown().await;
        };
        let ((), _) = tokio::join!(send, reading.read_to_end(&mut answer));
        answer
    }
}

/// An agent without tenants, which refuses whatever it is asked to do.
struct Nobody;

impl Control for Nobody {
    async fn status(&self) -> NodeStatus {
        serde_json::from_value(json!({
            "version": "0", "abi_version": 1, "pid": 1, "uptime_seconds": 0, "kernel": "6.18.0",
            "engine": {"name": "tc", "reason": "", "attach": "tcx"},
            "upstream": {"kind": "agent", "place": "/x", "last_error": null},
            "queue": {"in_flight": 0, "bound": 1, "waiting": 0},
            "tenants": {"serving": 0, "pending": 0, "failing": 0, "leaving": 0},
            "connections": {"open": 0, "total": 0}, "requests": {"open": 0, "total": 0},
            "outcomes": {}, "warnings": [],
        }))
        .unwrap_or_else(|error| panic!("{error}"))
    }

    async fn tenants(&self) -> Vec<TenantStatus> {
        Vec::new()
    }

    async fn add(&self, request: AddTenant) -> Result<TenantStatus, ControlError> {
        if let Err(reason) = request.namespace.validate() {
            panic!("{:?} got through: {reason}", request.namespace);
        }
        Err(ControlError::Conflict(request.namespace.to_string()))
    }

    async fn remove(&self, _: TenantKind, _: Uuid) -> Result<(), ControlError> {
        Err(ControlError::NotFound(String::from("it is not there")))
    }

    async fn metrics(&self) -> String {
        String::from("# EOF\n")
    }

    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    async fn reload(&self) -> Result<String, String> {
        Ok(String::from("nothing changed"))
    }

    async fn config(&self) -> String {
        String::new()
    }
}
