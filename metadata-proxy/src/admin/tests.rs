//! Server and client over a real unix socket, with a fake agent behind.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use http::StatusCode;
use metadata_proxy_common::TenantKind;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    api::{AddTenant, NamespaceRef, TenantCounts},
    fake::{Fake, tenant},
    *,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server that runs until this is dropped or stopped.
struct Running {
    directory: TempDir,
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Running {
    fn start(fake: Fake, change: impl FnOnce(AdminServer) -> AdminServer) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let server = change(AdminServer::bind(&directory.path().join("run/admin.sock")).unwrap());
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.serve(Arc::new(fake), stop.clone()));
        Self {
            directory,
            stop,
            task,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("run/admin.sock")
    }

    fn client(&self) -> AdminClient {
        AdminClient::new(self.socket()).with_patience(PATIENCE)
    }

    /// Sends bytes, and returns all that comes back.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // A server that closes without reading all resets; what it said before counts.
        let _reset = timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn stop(self) -> PathBuf {
        self.stop.cancel();
        timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let socket = self.directory.path().join("run/admin.sock");
        assert!(
            socket.parent().unwrap().is_dir(),
            "the directory is there while it is looked at"
        );
        assert!(!socket.exists(), "the socket goes with the server");
        socket
    }
}

fn add(id: Uuid) -> AddTenant {
    AddTenant {
        kind: TenantKind::Router,
        id,
        namespace: NamespaceRef::Name("a".into()),
    }
}

#[tokio::test]
async fn tenants_are_added_listed_and_removed() {
    let server = Running::start(Fake::default(), |server| server);
    let client = server.client();
    let id = Uuid::from_u128(5);
    assert_eq!(client.add(&add(id)).await.unwrap().id, id);
    assert_eq!(
        client.tenants().await.unwrap(),
        [tenant(TenantKind::Router, id, "a".into())]
    );
    let status = client.status().await.unwrap();
    assert_eq!(
        status.tenants,
        TenantCounts {
            pending: 1,
            ..TenantCounts::default()
        }
    );
    assert_eq!(
        client.remove(TenantKind::Router, id).await.unwrap().message,
        format!("router/{id} is no longer served")
    );
    assert_eq!(client.tenants().await.unwrap(), []);
    server.stop().await;
}

#[tokio::test]
async fn the_agents_refusals_arrive_with_their_reason() {
    let server = Running::start(Fake::default(), |server| server);
    let client = server.client();
    let refusal = |result: Result<_, ClientError>| match result {
        Err(ClientError::Refused { status, message }) => (status.as_u16(), message),
        other => panic!("not refused: {other:?}"),
    };
    client.add(&add(Uuid::nil())).await.unwrap();
    let again = refusal(client.add(&add(Uuid::nil())).await);
    assert_eq!(again, (409, String::from("it is there already")));
    let host = AddTenant {
        namespace: NamespaceRef::Pid(1),
        ..add(Uuid::nil())
    };
    assert_eq!(
        refusal(client.add(&host).await),
        (422, String::from("pid 1 is the host"))
    );
    let out = AddTenant {
        namespace: NamespaceRef::Name("../a".into()),
        ..add(Uuid::nil())
    };
    assert_eq!(refusal(client.add(&out).await).0, 400);
    match client.remove(TenantKind::Network, Uuid::nil()).await {
        Err(ClientError::Refused {
            status: StatusCode::NOT_FOUND,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn readiness_and_reload_tell_what_is_missing() {
    let server = Running::start(Fake::default(), |server| server);
    assert_eq!(server.client().ready().await.unwrap(), Ok(()));
    assert_eq!(
        server.client().reload().await.unwrap().message,
        "nothing changed"
    );
    assert_eq!(server.client().config().await.unwrap(), "workers = 1\n");

    let server = Running::start(
        Fake {
            broken: true,
            ..Fake::default()
        },
        |server| server,
    );
    assert_eq!(
        server.client().ready().await.unwrap(),
        Err(String::from("no scan was finished yet"))
    );
    match server.client().reload().await {
        Err(ClientError::Refused {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            message,
        }) => {
            assert_eq!(message, "FILE:1: x: there is no such key");
        }
        other => panic!("{other:?}"),
    }
    assert!(
        server
            .raw(b"GET /healthz HTTP/1.0\r\n\r\n")
            .await
            .ends_with("\r\n\r\nok\n")
    );
}

#[tokio::test]
async fn metrics_have_prometheus_type() {
    let server = Running::start(Fake::default(), |server| server);
    let answer = server
        .raw(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(answer.ends_with("\r\n\r\n# EOF\n"));
}

#[tokio::test]
async fn requests_that_make_no_sense_get_the_status_that_says_so() {
    let server = Running::start(Fake::default(), |server| server);
    let id = Uuid::nil();
    let long = "x".repeat(20_000);
    for (request, status) in [
        (
            String::from("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"),
            "404",
        ),
        (
            String::from("GET /v1/tenants/router HTTP/1.1\r\nHost: x\r\n\r\n"),
            "404",
        ),
        (
            String::from("PUT /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"),
            "405",
        ),
        (
            String::from("DELETE /v1/tenants/router/1 HTTP/1.1\r\nHost: x\r\n\r\n"),
            "400",
        ),
        (
            format!("DELETE /v1/tenants/switch/{id} HTTP/1.1\r\nHost: x\r\n\r\n"),
            "400",
        ),
        (
            format!("DELETE /v1/tenants/router/{id} HTTP/1.1\r\nHost: x\r\n\r\n"),
            "404",
        ),
        (
            String::from("POST /v1/tenants HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"),
            "400",
        ),
        (
            format!(
                "POST /v1/tenants HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{long}",
                long.len()
            ),
            "413",
        ),
        (format!("GET /{long} HTTP/1.1\r\n\r\n"), "431"),
        (String::from("\0\x01\x02 garbage\r\n\r\n"), "400"),
    ] {
        let answer = server.raw(request.as_bytes()).await;
        let got = answer.split(' ').nth(1).unwrap_or_default();
        assert_eq!(got, status, "{request:.80} -> {answer}");
    }
    let answer = server
        .raw(b"PUT /v1/tenants HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert!(
        answer.contains("\r\nallow: GET, HEAD, POST\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn clients_that_say_nothing_keep_nobody_out() {
    let server = Running::start(Fake::default(), |server| server);
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(UnixStream::connect(server.socket()).await.unwrap());
    }
    // All slots are taken: the refusal is an answer, not a hang.
    match server.client().status().await {
        Err(
            ClientError::Refused {
                status: StatusCode::SERVICE_UNAVAILABLE,
                ..
            }
            | ClientError::Garbled { .. },
        ) => {}
        other => panic!("{other:?}"),
    }
    // The silent ones are closed after a while, although they never leave.
    let answered = async {
        while server.client().status().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, answered).await.unwrap();
    drop(silent);
    server.stop().await;
}

#[tokio::test]
async fn users_who_are_not_admitted_get_nothing_but_a_refusal() {
    let server = Running::start(Fake::default(), |server| server.admitting(|_| false));
    let error = server.client().status().await.unwrap_err();
    assert!(matches!(error, ClientError::Denied { .. }), "{error}");
    let answer = server
        .raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[tokio::test]
async fn the_socket_is_for_its_owner_only_and_its_directory_is_made() {
    let server = Running::start(Fake::default(), |server| server);
    let metadata = fs::metadata(server.socket()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let directory = fs::metadata(server.socket().parent().unwrap()).unwrap();
    assert_eq!(directory.permissions().mode() & 0o755, 0o755);
    assert_eq!(directory.permissions().mode() & 0o022, 0);
}

#[tokio::test]
async fn a_second_agent_is_told_who_runs() {
    let server = Running::start(Fake::default(), |server| server);
    match AdminServer::bind(&server.socket()) {
        Err(BindError::InUse { pid: Some(pid), .. }) => {
            assert_eq!(u32::try_from(pid).unwrap(), std::process::id());
        }
        other => panic!("{other:?}"),
    }
    // The attempt did no harm.
    server.client().status().await.unwrap();
}

#[test]
fn a_socket_left_behind_is_replaced_and_anything_else_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "std leaves the file behind");
    drop(AdminServer::bind(&path).unwrap());
    assert!(!path.exists());

    fs::write(&path, "precious").unwrap();
    assert!(matches!(
        AdminServer::bind(&path),
        Err(BindError::NotASocket { .. })
    ));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_socket_that_took_the_place_of_ours_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let server = AdminServer::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
}

#[tokio::test]
async fn a_client_without_an_agent_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let client = AdminClient::new(directory.path().join("admin.sock"));
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }));
    let text = error.to_string();
    assert!(
        text.contains("admin.sock") && text.contains("metadata-proxy run"),
        "{text}"
    );
}

#[tokio::test]
async fn an_agent_that_hangs_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let client = AdminClient::new(&path).with_patience(Duration::from_millis(50));
    assert!(matches!(
        client.status().await,
        Err(ClientError::TimedOut { .. })
    ));
}
