//! The haproxy that Neutron starts for each tenant, or whatever stands in for it.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use uuid::Uuid;

use crate::{
    neutron,
    node::Node,
    process::{is_alive, kill_and_wait, pid, run},
    subnet::METADATA_V6_ADDRESS,
    tenant::{Kind, TenantFixture},
    wait::{wait_for, wait_until},
};

/// How long Neutron waits after SIGTERM (its `SIGTERM_TIMEOUT`).
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Limits by source address, as Neutron configures them.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    /// 4 or 6; Neutron does not know both at once.
    pub ip_version: u8,
    /// Length of the base window.
    pub base_window_seconds: u32,
    /// Requests allowed within it.
    pub base_limit: u32,
    /// Length of the burst window.
    pub burst_window_seconds: u32,
    /// Requests allowed within it.
    pub burst_limit: u32,
}

/// How long haproxy waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the head of a request.
    pub request_head: Duration,
    /// For a connection to the agent.
    pub connect: Duration,
    /// For the next bytes of a guest.
    pub client: Duration,
    /// For the next bytes of the agent.
    pub server: Duration,
    /// For the next request on a connection.
    pub keep_alive: Duration,
}

impl Timeouts {
    /// As Neutron configures them.
    pub const NEUTRON: Self = Self {
        request_head: Duration::from_secs(30),
        connect: Duration::from_secs(30),
        client: Duration::from_secs(32),
        server: Duration::from_secs(32),
        keep_alive: Duration::from_secs(30),
    };
}

/// How a proxy is to be started.
#[derive(Clone, Debug)]
pub struct Builder {
    program: PathBuf,
    log: PathBuf,
    rate_limit: Option<RateLimit>,
    timeouts: Timeouts,
    ipv6: bool,
    search_path: Option<OsString>,
    environment: Vec<(String, OsString)>,
}

impl Builder {
    /// Starts this program instead of the `haproxy` found first on PATH.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    /// Logs to this socket instead of `/dev/log`.
    #[must_use]
    pub fn log(mut self, socket: &Path) -> Self {
        socket.clone_into(&mut self.log);
        self
    }

    /// Limits requests.
    #[must_use]
    pub const fn rate_limit(mut self, limit: RateLimit) -> Self {
        self.rate_limit = Some(limit);
        self
    }

    /// Waits for other times than Neutron's, for tests that wait too.
    #[must_use]
    pub const fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Calls it as Neutron does, `ip netns exec <namespace> haproxy ...`, the program being the first
    /// of that name on this search path.
    #[must_use]
    pub fn through_ip(mut self, search_path: &OsStr) -> Self {
        self.search_path = Some(search_path.to_owned());
        self
    }

    /// Sets an environment variable of it.
    #[must_use]
    pub fn env(mut self, name: &str, value: &OsStr) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Listens for IPv4 only, as where the node has no IPv6.
    #[must_use]
    pub const fn ipv4_only(mut self) -> Self {
        self.ipv6 = false;
        self
    }

    /// Writes the configuration and returns its path.
    ///
    /// `agent` is the metadata agent's socket.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, node: &Node, tenant: &TenantFixture, agent: &Path) -> Result<PathBuf> {
        let configs = node.directory().join("state").join(match tenant.kind {
            Kind::OvnNetwork => "ovn-metadata-proxy",
            Kind::Router | Kind::Network => "ns-metadata-proxy",
        });
        let pid_file = pid_file(node, tenant);
        for directory in [Some(configs.as_path()), pid_file.parent()]
            .into_iter()
            .flatten()
        {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let config = configs.join(format!("{}.conf", tenant.id));
        let text = self.configuration(tenant, agent, &pid_file);
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        Ok(config)
    }

    /// Writes the configuration and starts the proxy as Neutron does: success of the command means
    /// that requests are served.
    ///
    /// `agent` is the metadata agent's socket.
    ///
    /// # Errors
    /// It did not start, or Neutron would not recognise it.
    pub fn start(self, node: &Node, tenant: &TenantFixture, agent: &Path) -> Result<Haproxy> {
        let config = self.write(node, tenant, agent)?;
        let pid_file = pid_file(node, tenant);
        let mut command = match &self.search_path {
            Some(search_path) => through_ip(tenant, node, search_path)?,
            None => tenant.netns.command(&self.program)?,
        };
        command.envs(self.environment);
        node.enter_cgroup(&mut command)?;
        run(command.arg("-f").arg(&config))?;
        let pid = wait_for("a pid in the pid file", ENDS_WITHIN, || {
            Ok(fs::read_to_string(&pid_file)
                .ok()
                .and_then(|text| text.trim().parse().ok()))
        })?;
        let proxy = Haproxy {
            pid,
            pid_file,
            config,
        };
        if !proxy.is_active(tenant.id) {
            bail!(
                "process {pid} has no {} on its command line: not taken for ours",
                tenant.id
            );
        }
        Ok(proxy)
    }

    /// The configuration as Neutron's agents write it (`neutron.common.metadata`, and the drivers of
    /// the L3, DHCP and OVN agents).
    fn configuration(&self, tenant: &TenantFixture, agent: &Path, pid_file: &Path) -> String {
        let id = tenant.id;
        let bind = match tenant.kind {
            Kind::Router => {
                let any = if self.ipv6 { "::" } else { "0.0.0.0" };
                format!("    bind {any}:{}\n", neutron::METADATA_PORT)
            }
            Kind::Network | Kind::OvnNetwork => {
                let subnet = tenant.subnets.first().filter(|_| self.ipv6);
                let v6 = subnet.map_or_else(String::new, |subnet| {
                    format!(
                        "    bind {METADATA_V6_ADDRESS}:80 interface {}\n",
                        subnet.device
                    )
                });
                format!("    bind 169.254.169.254:80\n{v6}")
            }
        };
        let header = match tenant.kind {
            Kind::Router => format!(
                "    http-request del-header X-Neutron-Network-ID\n    \
                 http-request set-header X-Neutron-Router-ID {id}\n"
            ),
            Kind::Network => format!(
                "    http-request del-header X-Neutron-Router-ID\n    \
                 http-request set-header X-Neutron-Network-ID {id}\n"
            ),
            Kind::OvnNetwork => format!("    http-request add-header X-OVN-Network-ID {id}\n"),
        };
        let (tables, limits) = self
            .rate_limit
            .as_ref()
            .map_or_else(Default::default, rate_limits);
        let (pid_file, log, agent) = (pid_file.display(), self.log.display(), agent.display());
        let Timeouts {
            request_head,
            connect,
            client,
            server,
            keep_alive,
        } = self.timeouts;
        let [request_head, connect, client, server, keep_alive] =
            [request_head, connect, client, server, keep_alive].map(written);
        format!(
            "global\n    log {log} local0 info\n    log-tag haproxy-metadata-proxy-{id}\n    \
             user root\n    group root\n    maxconn 1024\n    nbthread 2\n    pidfile {pid_file}\n    \
             daemon\n\n\
             defaults\n    log global\n    mode http\n    option httplog\n    option dontlognull\n    \
             option http-server-close\n    option forwardfor\n    retries 3\n    \
             timeout http-request {request_head}\n    timeout connect {connect}\n    \
             timeout client {client}\n    timeout server {server}\n    \
             timeout http-keep-alive {keep_alive}\n\n\
             {tables}listen listener\n{bind}{limits}    server metadata {agent}\n{header}"
        )
    }
}

fn pid_file(node: &Node, tenant: &TenantFixture) -> PathBuf {
    let pids = node.directory().join("state/external/pids");
    pids.join(format!("{}.pid.haproxy", tenant.id))
}

/// Begins `ip netns exec <namespace> haproxy`. `ip` knows `/run/netns` only, so for it the node's
/// directory of namespaces is there, and nobody else sees that.
fn through_ip(tenant: &TenantFixture, node: &Node, search_path: &OsStr) -> Result<Command> {
    const KNOWN_TO_IP: &str = "/run/netns";
    const SCRIPT: &str = "mount --rbind \"$1\" /run/netns && shift && exec ip netns exec \"$@\"";
    fs::create_dir_all(KNOWN_TO_IP).with_context(|| format!("cannot create {KNOWN_TO_IP}"))?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", SCRIPT, "sh"])
        .arg(node.netns_dir())
        .args([&tenant.netns.name(), "haproxy"])
        .env("PATH", search_path);
    Ok(command)
}

/// A proxy of one tenant; ended when dropped.
#[derive(Debug)]
pub struct Haproxy {
    pid: u32,
    pid_file: PathBuf,
    config: PathBuf,
}

impl Haproxy {
    /// Begins a proxy without limits.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            program: PathBuf::from("haproxy"),
            log: PathBuf::from("/dev/log"),
            rate_limit: None,
            timeouts: Timeouts::NEUTRON,
            ipv6: true,
            search_path: None,
            environment: Vec::new(),
        }
    }

    /// Its process id, as it wrote it.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Whether Neutron would take it for alive: the process is there and has the tenant's UUID on
    /// its command line.
    #[must_use]
    pub fn is_active(&self, tenant: Uuid) -> bool {
        fs::read(format!("/proc/{}/cmdline", self.pid))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&tenant.to_string()))
    }

    /// Leaves the process and its files as they are.
    pub fn forget(self) {
        std::mem::forget(self);
    }

    /// Ends it as Neutron does.
    ///
    /// # Errors
    /// It is there still five seconds after SIGTERM.
    pub fn stop(&self) -> Result<()> {
        if is_alive(self.pid) {
            kill(pid(self.pid)?, Signal::SIGTERM).context("cannot signal the proxy")?;
        }
        wait_until("the end of the proxy", ENDS_WITHIN, || !is_alive(self.pid))
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        if let Err(error) = self.stop().or_else(|_| kill_and_wait(&[self.pid])) {
            eprintln!("cannot end the proxy {}: {error:#}", self.pid);
        }
        for file in [&self.pid_file, &self.config] {
            let _ = fs::remove_file(file);
        }
    }
}

/// A time as haproxy reads it: in seconds where that says it, as Neutron writes it.
fn written(time: Duration) -> String {
    if time.subsec_millis() == 0 {
        format!("{}s", time.as_secs())
    } else {
        format!("{}ms", time.as_millis())
    }
}

/// The stick tables of the limits, and the rules that use them.
fn rate_limits(limit: &RateLimit) -> (String, String) {
    let kind = if limit.ip_version == 6 { "ipv6" } else { "ip" };
    let expire = limit.base_window_seconds.max(limit.burst_window_seconds);
    let windows = [
        (
            "base_rate_limiter",
            limit.base_window_seconds,
            limit.base_limit,
        ),
        (
            "burst_rate_limiter",
            limit.burst_window_seconds,
            limit.burst_limit,
        ),
    ];
    let tables = windows.iter().map(|(table, window, _)| {
        format!(
            "backend {table}\n    stick-table type {kind} size 10k expire {expire}s store \
             http_req_rate({window}s)\n\n"
        )
    });
    let rules = windows
        .iter()
        .enumerate()
        .map(|(counter, (table, _, allowed))| {
            format!(
                "    http-request track-sc{counter} src table {table}\n    \
             http-request deny deny_status 429 if {{ src_http_req_rate({table}) gt {allowed} }}\n"
            )
        });
    (tables.collect(), rules.collect())
}
