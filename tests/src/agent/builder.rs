//! How the agent is started: its binary, and a configuration that keeps it within its node.

use std::{
    env, fmt, fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result};
use nix::fcntl::{FcntlArg, fcntl};

use super::Agent;
use crate::{netns::Netns, node::Node, process::Running};

/// Names the binary when it is not beside the test.
pub const BINARY_VARIABLE: &str = "METADATA_PROXY_BIN";

static LOGS: AtomicU32 = AtomicU32::new(1);

/// Finds the agent's binary: where the variable says, else in the target directory of the running
/// program.
///
/// # Errors
/// It has not been built.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os(BINARY_VARIABLE) {
        return Ok(path.into());
    }
    built("metadata-proxy")
}

/// Finds the stand-in for haproxy, in the target directory of the running program.
///
/// # Errors
/// It has not been built.
pub fn stand_in() -> Result<PathBuf> {
    built("haproxy")
}

fn built(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("where is this program?")?;
    // A test is in target/<profile>/deps, xtask in target/<profile>.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!("{name} has not been built; run the tests with `cargo xtask test`")
        })
}

/// How the agent is to be started.
#[derive(Clone, Debug)]
pub struct Builder {
    node: Node,
    binary: Option<PathBuf>,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    log_to: Option<Arc<OwnedFd>>,
    inside: Option<Arc<Netns>>,
    under: Vec<String>,
    takes_over: bool,
    kept: Vec<(String, Arc<OwnedFd>)>,
}

impl Builder {
    pub(super) fn new(node: &Node) -> Self {
        let path = |path: &Path| quoted(&path.display().to_string());
        Self {
            node: node.clone(),
            binary: None,
            settings: vec![],
            environment: vec![],
            log_to: None,
            inside: None,
            under: vec![],
            takes_over: false,
            kept: vec![],
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

    /// Runs it under another program: its name and arguments, before the agent's own.
    #[must_use]
    pub fn under(mut self, command: &[&str]) -> Self {
        self.under = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Lets it take over from the agent that runs on its node, if one does.
    #[must_use]
    pub const fn taking_over(mut self) -> Self {
        self.takes_over = true;
        self
    }

    /// Hands it descriptors with their names, as a service manager does that has kept them
    /// (`sd_listen_fds(3)`).
    #[must_use]
    pub fn kept(mut self, kept: Vec<(String, Arc<OwnedFd>)>) -> Self {
        self.kept = kept;
        // Its process id is known only once it is there.
        self.under(&["sh", "-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
    }

    /// Lets it log to this descriptor, as to journald's stream, instead of to a file.
    #[must_use]
    pub fn log_to(mut self, stream: OwnedFd) -> Self {
        self.log_to = Some(Arc::new(stream));
        self
    }

    /// Lets the agent run in this namespace, as if it were the node's own.
    #[must_use]
    pub fn inside(mut self, netns: Arc<Netns>) -> Self {
        self.inside = Some(netns);
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
        let log = self.log();
        let binary = self.binary.map_or_else(binary, Ok)?;
        let (program, arguments) = match self.under.split_first() {
            None => (binary.clone(), vec![]),
            Some((program, arguments)) => {
                let mut arguments = arguments.to_vec();
                arguments.push(binary.display().to_string());
                (PathBuf::from(program), arguments)
            }
        };
        let mut command = match &self.inside {
            Some(netns) => netns.command(&program)?,
            None => Command::new(&program),
        };
        command
            .args(arguments)
            .arg("run")
            .arg("--config")
            .arg(&configuration)
            // It begins as the agent's own settings do, and is none.
            .env_remove(BINARY_VARIABLE)
            .envs(self.environment);
        self.node.enter_cgroup(&mut command)?;
        if self.takes_over {
            command.arg("--takeover");
        }
        hand_over(&mut command, &self.kept)?;
        let running = match self.log_to {
            None => Running::start("metadata-proxy", &mut command, &log)?,
            Some(stream) => {
                let stream = stream
                    .try_clone()
                    .context("cannot share the log's stream")?;
                command.stdout(Stdio::null()).stderr(stream);
                Running::start_writing("metadata-proxy", &mut command, &log)?
            }
        };
        let admin = admin_socket(&self.node);
        Ok(Agent {
            running,
            binary,
            configuration,
            admin,
            takes_over: self.takes_over,
        })
    }

    /// Where it logs to; a predecessor goes on writing to its own.
    fn log(&self) -> PathBuf {
        let directory = self.node.directory();
        if !self.takes_over {
            return directory.join("metadata-proxy.log");
        }
        let number = LOGS.fetch_add(1, Ordering::Relaxed);
        directory.join(format!("metadata-proxy-{number}.log"))
    }
}

/// Lets a program find these descriptors from number 3 on.
fn hand_over(command: &mut Command, kept: &[(String, Arc<OwnedFd>)]) -> Result<()> {
    if kept.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = kept.iter().map(|(name, _)| name.as_str()).collect();
    command
        .env("LISTEN_FDS", kept.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    // Out of the way of the numbers that they are to have.
    let clear = i32::try_from(3 + kept.len()).context("too many descriptors")?;
    let copies = kept
        .iter()
        .map(|(_, file)| {
            let copy = fcntl(file, FcntlArg::F_DUPFD_CLOEXEC(clear.max(100)))?;
            // SAFETY: the kernel has just made it for us.
            Ok(unsafe { OwnedFd::from_raw_fd(copy) })
        })
        .collect::<Result<Vec<_>>>()?;
    // SAFETY: between fork and exec only dup2(2) is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            for (number, copy) in (3..).zip(&copies) {
                if libc::dup2(copy.as_raw_fd(), number) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Ok(())
}

/// Where the agent pins its maps and links: below the bpffs, which is the node's.
#[must_use]
pub fn bpffs_dir(node: &Node) -> PathBuf {
    node.bpffs().join("metadata-proxy")
}

pub(super) fn admin_socket(node: &Node) -> PathBuf {
    node.directory().join("admin.sock")
}

/// A TOML string.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
