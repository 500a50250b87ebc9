//! The real agent: the `metadata-proxy` binary with a configuration that keeps it within its node.

mod builder;

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use uuid::Uuid;

pub use self::builder::{BINARY_VARIABLE, Builder, binary, bpffs_dir, quoted, stand_in};
use crate::{
    node::Node,
    process::{Running, run},
    tenant::{Kind, TenantFixture},
    wait::wait_for,
};

/// How long it may take to get ready, on slow and busy machines.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How long it may take to end after SIGTERM.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// A running agent; stopped with SIGTERM when dropped, and killed if that does not end it.
#[derive(Debug)]
pub struct Agent {
    running: Running,
    binary: PathBuf,
    configuration: PathBuf,
    admin: PathBuf,
    takes_over: bool,
}

impl Agent {
    /// Begins an agent that keeps to the node's directories and cgroup.
    #[must_use]
    pub fn builder(node: &Node) -> Builder {
        Builder::new(node)
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
    pub fn admin_json(&self, path: &str) -> Result<Value> {
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
        run(&mut self.command(arguments))
    }

    /// Prepares a command of the agent's CLI against it.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .env_remove(BINARY_VARIABLE)
            .arg("--config")
            .arg(&self.configuration)
            .env_remove(BINARY_VARIABLE);
        command
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
            let is_ready = matches!(self.admin("/readyz"), Ok((200, _)));
            Ok((is_ready && (!self.takes_over || self.answers())).then_some(()))
        })
    }

    /// Whether it is this process that answers on the admin socket.
    fn answers(&self) -> bool {
        self.admin_json("/v1/status")
            .is_ok_and(|status| status["pid"] == self.pid())
    }

    /// Whether and how it has ended.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.running.ended()
    }

    /// What the agent says about a tenant, as its admin API has it; `None` if it does not know it.
    ///
    /// # Errors
    /// The admin socket does not answer.
    pub fn tenant(&self, tenant: &TenantFixture) -> Result<Option<Value>> {
        let mut list = self.admin_json("/v1/tenants")?;
        let tenants = list["tenants"]
            .as_array_mut()
            .context("no list of tenants")?;
        let found = tenants.iter_mut().find(|its| {
            its["kind"] == tenant.kind.word() && its["id"] == tenant.id.to_string().as_str()
        });
        Ok(found.map(Value::take))
    }

    /// Waits until the agent says that it serves the tenant, from this very namespace and, with the
    /// engine that attaches to devices, from all of them.
    ///
    /// # Errors
    /// The time is up; the message has what the agent said last.
    pub fn wait_served(&self, tenant: &TenantFixture) -> Result<()> {
        let inode = tenant.netns.inode()?;
        let attaches = self.admin_json("/v1/status")?["engine"]["name"] == "tc";
        let mut last = None;
        let waited = wait_for(
            &format!("service of {}", tenant.netns.name()),
            READY_WITHIN,
            || {
                last = self.tenant(tenant)?;
                let served = last.as_ref().is_some_and(|it| {
                    it["state"] == "serving"
                        && it["netns_inode"] == inode
                        && (!attaches
                            || tenant
                                .subnets
                                .iter()
                                .all(|subnet| is_attached(it, &subnet.device)))
                });
                Ok(served.then_some(()))
            },
        );
        waited.with_context(|| format!("the agent says: {last:?}"))
    }

    /// Waits until the agent has let go of a tenant.
    ///
    /// # Errors
    /// The time is up.
    pub fn wait_gone(&self, kind: Kind, id: Uuid) -> Result<()> {
        wait_for(
            &format!("end of service of {kind} {id}"),
            READY_WITHIN,
            || {
                let list = self.admin_json("/v1/tenants")?;
                let there = list["tenants"].as_array().is_some_and(|tenants| {
                    tenants.iter().any(|its| {
                        its["kind"] == kind.word() && its["id"] == id.to_string().as_str()
                    })
                });
                Ok((!there).then_some(()))
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

fn is_attached(tenant: &Value, device: &str) -> bool {
    tenant["interfaces"].as_array().is_some_and(|interfaces| {
        interfaces
            .iter()
            .any(|its| its["name"] == device && its["state"] == "attached")
    })
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
