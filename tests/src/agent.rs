//! The real agent: the `metadata-proxy` binary with a configuration that keeps it within its node.

use std::{
    env, fmt, fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use crate::{
    node::Node,
    process::{Running, run},
    tenant::TenantFixture,
    wait::{wait_for, wait_until},
};

/// Names the binary when it is not beside the test.
pub const BINARY_VARIABLE: &str = "METADATA_PROXY_BINARY";

/// How long it may take to get ready, on slow and busy machines.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How long it may take to end after SIGTERM.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// Finds the agent's binary: where the variable says, else in the target directory of the running
/// program.
///
/// # Errors
/// It has not been built.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os(BINARY_VARIABLE) {
        return Ok(path.into());
    }
    let own = env::current_exe().context("where is this program?")?;
    // A test is in target/<profile>/deps, xtask in target/<profile>.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("metadata-proxy"))
        .find(|path| path.is_file())
        .context("metadata-proxy has not been built; run the tests with `cargo xtask test`")
}

/// How the agent is to be started.
#[derive(Clone, Debug)]
pub struct Builder {
    node: Node,
    binary: Option<PathBuf>,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
}

impl Builder {
    /// Uses this binary.
    #[must_use]
    pub fn binary(mut self, path: &Path) -> Self {
        self.binary = Some(path.to_owned());
        self
    }

    /// Sets a key of the configuration: `limits.connections`, and its value as TOML has it.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.settings.retain(|(its, _)| its != key);
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }

    /// Sets an environment variable of the agent.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends requests to the metadata agent at this unix socket.
    #[must_use]
    pub fn upstream_agent(self, socket: &Path) -> Self {
        self.set("upstream.kind", quoted("agent")).set(
            "upstream.agent.socket",
            quoted(&socket.display().to_string()),
        )
    }

    /// Sends requests to an HTTP server.
    #[must_use]
    pub fn upstream_http(self, address: &str) -> Self {
        self.set("upstream.kind", quoted("http"))
            .set("upstream.http.address", quoted(address))
    }

    /// Lets the agent answer by itself from this file of instances.
    #[must_use]
    pub fn upstream_embedded(self, file: &Path) -> Self {
        self.set("upstream.kind", quoted("embedded")).set(
            "upstream.embedded.file",
            quoted(&file.display().to_string()),
        )
    }

    /// Writes the configuration and returns its path.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_configuration(&self) -> Result<PathBuf> {
        let path = self.node.directory().join("metadata-proxy.toml");
        let lines: Vec<_> = self
            .settings
            .iter()
            .map(|(key, value)| {
                format!(
                    "{key} = {value}
"
                )
            })
            .collect();
        fs::write(&path, lines.concat())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Starts the agent and waits until it says that it is ready.
    ///
    /// # Errors
    /// It ended, or is not ready in time; the message has its log.
    pub fn start(self) -> Result<Agent> {
        let mut agent = self.start_unready()?;
        match agent.wait_ready() {
            Ok(()) => Ok(agent),
            Err(error) => Err(error.context(format!("the agent's log:\n{}", agent.log()))),
        }
    }

    /// Starts the agent without waiting.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_unready(self) -> Result<Agent> {
        let configuration = self.write_configuration()?;
        let binary = self.binary.map_or_else(binary, Ok)?;
        let mut command = Command::new(&binary);
        command
            .arg("run")
            .arg("--config")
            .arg(&configuration)
            .envs(self.environment);
        self.node.enter_cgroup(&mut command)?;
        let log = self.node.directory().join("metadata-proxy.log");
        let running = Running::start("metadata-proxy", &mut command, &log)?;
        let admin = admin_socket(&self.node);
        Ok(Agent {
            running,
            binary,
            configuration,
            admin,
        })
    }
}

/// A running agent; stopped with SIGTERM when dropped, and killed if that does not end it.
#[derive(Debug)]
pub struct Agent {
    running: Running,
    binary: PathBuf,
    configuration: PathBuf,
    admin: PathBuf,
}

impl Agent {
    /// Begins an agent that keeps to the node's directories and cgroup.
    #[must_use]
    pub fn builder(node: &Node) -> Builder {
        let path = |path: &Path| quoted(&path.display().to_string());
        Builder {
            node: node.clone(),
            binary: None,
            settings: vec![],
            environment: vec![],
        }
        .set("discovery.netns_dir", path(&node.netns_dir()))
        .set("steering.bpffs_dir", path(&bpffs_dir(node)))
        .set("steering.cgroup", path(node.cgroup()))
        .set("admin.socket", path(&admin_socket(node)))
        .set(
            "admin.register_socket",
            path(&node.directory().join("register.sock")),
        )
        .set("log.level", quoted("debug"))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// All it has logged until now.
    #[must_use]
    pub fn log(&self) -> String {
        self.running.log()
    }

    /// Its configuration file.
    #[must_use]
    pub fn configuration(&self) -> &Path {
        &self.configuration
    }

    /// Asks its admin socket and returns status and body.
    ///
    /// # Errors
    /// It does not answer.
    pub fn admin(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = UnixStream::connect(&self.admin)
            .with_context(|| format!("cannot reach {}", self.admin.display()))?;
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .context("no timeout")?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .context("cannot ask the admin socket")?;
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .context("no answer from the admin socket")?;
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text
            .split_once("\r\n\r\n")
            .context("the admin answer has no head")?;
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        let chunked = head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked");
        let body = if chunked {
            dechunked(body)?
        } else {
            body.to_owned()
        };
        Ok((status.context("the admin answer has no status")?, body))
    }

    /// Asks its admin socket for JSON.
    ///
    /// # Errors
    /// It does not answer with 200, or not with JSON.
    pub fn admin_json(&self, path: &str) -> Result<serde_json::Value> {
        let (status, body) = self.admin(path)?;
        if status != 200 {
            bail!("{path}: {status}: {body}");
        }
        serde_json::from_str(&body).with_context(|| format!("{path}: not JSON: {body}"))
    }

    /// The value of a metric, all its series added; 0 when there is none.
    ///
    /// # Errors
    /// The metrics cannot be read.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let (_, text) = self.admin("/metrics")?;
        Ok(text
            .lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
                    && labels
                        .iter()
                        .all(|(key, value)| line.contains(&format!("{key}=\"{value}\"")))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    /// Runs a command of the agent's CLI against it and returns what it printed.
    ///
    /// # Errors
    /// It failed.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .arg("--config")
            .arg(&self.configuration);
        run(&mut command)
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// It ended, or the time is up.
    pub fn wait_ready(&mut self) -> Result<()> {
        wait_for("readiness of the agent", READY_WITHIN, || {
            if let Some(status) = self.running.ended()? {
                bail!("the agent ended ({status}) instead of getting ready");
            }
            Ok(matches!(self.admin("/readyz"), Ok((200, _))).then_some(()))
        })
    }

    /// Waits until a guest of the tenant gets an answer, whatever it is.
    ///
    /// # Errors
    /// The time is up.
    pub fn wait_served(&self, tenant: &TenantFixture) -> Result<()> {
        let guest = tenant.guest();
        let url = format!("{}/", crate::METADATA_V4);
        wait_until(
            &format!("service of {}", tenant.netns.name()),
            READY_WITHIN,
            || {
                guest
                    .curl(&url, &["--max-time", "1"])
                    .is_ok_and(|reply| reply.status != 0)
            },
        )
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.running.signal(signal)
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.running.stop(ENDS_WITHIN)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It runs still at the deadline.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.running.wait(deadline)
    }

    /// Kills it, as a crash would.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn crash(&mut self) -> Result<()> {
        self.running.signal(Signal::SIGKILL)?;
        self.running.wait(ENDS_WITHIN).map(drop)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("the agent is killed: {error:#}\n{}", self.log());
        }
    }
}

/// Where the agent pins its maps and links: below the bpffs, which is the node's.
#[must_use]
pub fn bpffs_dir(node: &Node) -> PathBuf {
    node.bpffs().join("metadata-proxy")
}

fn admin_socket(node: &Node) -> PathBuf {
    node.directory().join("admin.sock")
}

/// A TOML string.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn dechunked(mut text: &str) -> Result<String> {
    let mut body = String::new();
    loop {
        let (size, rest) = text.split_once("\r\n").context("a chunk has no size")?;
        let size = usize::from_str_radix(size.trim(), 16).context("a chunk has no size")?;
        if size == 0 {
            return Ok(body);
        }
        body += rest.get(..size).context("a chunk is cut")?;
        text = rest.get(size + 2..).context("a chunk is cut")?;
    }
}
