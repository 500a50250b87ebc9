//! A node in miniature: a directory with Neutron's configuration, and an agent in this process.

use std::{
    collections::HashMap,
    fs,
    os::unix::{fs::MetadataExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use metadata_proxy::{
    identity::Tenant,
    register::{LeaseId, Limits, Listener, RegisterEvent, Registration, Server},
};
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// How long anything may take that does not promise to be faster.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How long it may take until a tenant's service ends.
pub(crate) const PROMPT: Duration = Duration::from_secs(1);

/// Waits until something is there, and fails after `patience` if it is not.
pub(crate) fn within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The program under test.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("STANDIN").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_haproxy")),
        PathBuf::from,
    )
}

/// A directory with what Neutron leaves there for one tenant.
pub(crate) struct Node {
    pub(crate) directory: TempDir,
    syslog: UnixDatagram,
}

impl Node {
    pub(crate) fn new() -> Self {
        // Processes that outlive their parents become ours, so that each can be waited for.
        prctl::set_child_subreaper(true).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let syslog = UnixDatagram::bind(directory.path().join("log")).unwrap();
        syslog.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { directory, syslog }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("register.sock")
    }

    pub(crate) fn pidfile(&self, id: &str) -> PathBuf {
        self.path(&format!("{id}.pid.haproxy"))
    }

    /// Writes a router's configuration as Neutron does.
    pub(crate) fn configure(&self, id: &str) -> PathBuf {
        let directory = self.directory.path().display();
        let config = self.path(&format!("{id}.conf"));
        let text = format!(
            "
global
    log         {directory}/log local0 info
    log-tag     haproxy-metadata-proxy-{id}
    user        root
    group       root
    maxconn     1024
    nbthread    2
    pidfile     {directory}/{id}.pid.haproxy
    daemon

defaults
    log global
    mode http
    option httplog
    option dontlognull
    option http-server-close
    option forwardfor
    retries                 3
    timeout http-request    30s
    timeout connect         30s
    timeout client          32s
    timeout server          32s
    timeout http-keep-alive 30s

listen listener
    bind 0.0.0.0:9697
    \n    server metadata {directory}/metadata_proxy

    http-request del-header X-Neutron-Network-ID
    http-request set-header X-Neutron-Router-ID {id}
"
        );
        fs::write(&config, text).unwrap();
        config
    }

    /// The program, told where this node's agent is.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        self.tell(&mut command);
        command.args(arguments);
        command
    }

    /// Tells a program where this node's agent is.
    pub(crate) fn tell(&self, command: &mut Command) {
        command
            .env_clear()
            .env("METADATA_PROXY_REGISTER_SOCKET", self.socket())
            .env("METADATA_PROXY_STANDIN_CONFIG", self.path("standin.conf"))
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    /// Starts a tenant's process as Neutron does and waits for it to return.
    pub(crate) fn start(&self, id: &str) -> (Output, Option<Standin>) {
        let config = self.configure(id);
        let output = self
            .command(&["-f", config.to_str().unwrap()])
            .output()
            .unwrap();
        let pid = fs::read_to_string(self.pidfile(id)).ok();
        let standin = pid.map(|pid| Standin(Pid::from_raw(pid.trim().parse().unwrap())));
        (output, standin)
    }

    /// Starts a tenant's process that is known to come up.
    pub(crate) fn started(&self, id: &str) -> Standin {
        let (output, standin) = self.start(id);
        assert!(output.status.success(), "{output:?}");
        standin.expect("a served tenant has a pidfile")
    }

    /// The next line that was sent to syslog.
    pub(crate) fn logged(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.syslog.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }
}

/// A process that stays for a tenant; killed when dropped.
#[derive(Debug)]
pub(crate) struct Standin(pub(crate) Pid);

impl Standin {
    pub(crate) fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.0)).unwrap_or_default()
    }

    pub(crate) fn command_line(&self) -> String {
        self.proc("cmdline").replace('\0', " ")
    }

    /// A line of `status`, `smaps_rollup` or the like.
    pub(crate) fn number(&self, file: &str, field: &str) -> u64 {
        let text = self.proc(file);
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let value = line.and_then(|line| line.split_whitespace().next());
        value
            .unwrap_or_else(|| panic!("{field} in {text}"))
            .parse()
            .unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.0, signal).unwrap();
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<WaitStatus> {
        match waitpid(self.0, Some(WaitPidFlag::WNOHANG)).unwrap() {
            WaitStatus::StillAlive => None,
            status => Some(status),
        }
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        // Reaped already if it has ended; then its number is not ours to use any more.
        if let Ok(WaitStatus::StillAlive) = waitpid(self.0, Some(WaitPidFlag::WNOHANG)) {
            let _ = kill(self.0, Signal::SIGKILL);
            let _ = waitpid(self.0, None);
        }
    }
}

/// A child in the foreground; killed when dropped.
pub(crate) struct Foreground(pub(crate) Child);

impl Foreground {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }

    pub(crate) fn exit(&mut self, patience: Duration) -> ExitStatus {
        within(patience, "exit", || self.0.try_wait().unwrap())
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What an agent does with every registration.
#[derive(Clone, Copy)]
pub(crate) enum Policy {
    Serve,
    Refuse(&'static str),
    /// Leaves it to the test.
    Ask,
}

/// What an agent has seen.
pub(crate) enum Seen {
    Started {
        tenant: Tenant,
        lease: LeaseId,
        pid: i32,
        client_pid: u32,
        netns: u64,
        registration: Option<Box<Registration>>,
    },
    Ended(LeaseId),
}

/// An agent in this process that only takes registrations.
pub(crate) struct Agent {
    seen: mpsc::Receiver<Seen>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    pub(crate) fn start(socket: &Path, policy: Policy) -> Self {
        let (sender, seen) = mpsc::channel();
        let stop = CancellationToken::new();
        let listener = Listener::bind(socket).unwrap();
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(serve(listener, policy, &sender, stopped));
        });
        Self {
            seen,
            stop,
            thread: Some(thread),
        }
    }

    pub(crate) fn next(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).expect("an event")
    }

    pub(crate) fn started(&self) -> (Tenant, LeaseId, i32) {
        match self.next() {
            Seen::Started {
                tenant, lease, pid, ..
            } => (tenant, lease, pid),
            Seen::Ended(lease) => panic!("lease {lease} ended"),
        }
    }

    /// The lease that ends next, within `patience`.
    pub(crate) fn ended(&self, patience: Duration) -> LeaseId {
        match self.seen.recv_timeout(patience) {
            Ok(Seen::Ended(lease)) => lease,
            Ok(Seen::Started { tenant, .. }) => panic!("{tenant} started"),
            Err(error) => panic!("no lease ended within {patience:?}: {error}"),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

async fn serve(
    listener: Listener,
    policy: Policy,
    seen: &mpsc::Sender<Seen>,
    stop: CancellationToken,
) {
    let (sender, mut events) = tokio::sync::mpsc::channel(64);
    let server = Server::new(listener, Limits::default()).unwrap();
    let server = tokio::spawn(server.serve(sender, stop));
    let mut held = HashMap::new();
    while let Some(event) = events.recv().await {
        // A test that is over listens no more.
        let _ = match event {
            RegisterEvent::Started(registration) => {
                let netns = fs::File::from(registration.netns.try_clone().unwrap());
                let (tenant, lease) = (registration.tenant, registration.lease);
                let (pid, client_pid) = (registration.pid, registration.client.pid);
                match policy {
                    Policy::Serve => registration.reply.serving(),
                    Policy::Refuse(reason) => registration.reply.failed(reason),
                    Policy::Ask => {}
                }
                let registration = if matches!(policy, Policy::Ask) {
                    Some(registration)
                } else {
                    held.insert(lease, registration);
                    None
                };
                seen.send(Seen::Started {
                    tenant,
                    lease,
                    pid,
                    client_pid,
                    netns: netns.metadata().unwrap().ino(),
                    registration,
                })
            }
            RegisterEvent::Ended(lease) => {
                held.remove(&lease);
                seen.send(Seen::Ended(lease))
            }
        };
    }
    drop(server.await.unwrap());
}
