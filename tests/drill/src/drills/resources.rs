//! Resources run out: the agent says which, in its log or its status, and those who are served go on
//! being served.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::fd::{FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use metadata_proxy_tests::{
    Agent, Connection, Kind, MetadataAgent, Node, TenantFixture,
    agent::Builder,
    metadata_agent::{Answer, Request, who_asked},
    raw_http::Connection as RawConnection,
    stage::builder,
    wait_until,
};

use super::neighbours::{ask_for, while_attacked};
use nix::sys::signal::Signal;

use crate::{
    figures::Figures,
    memory::{self, mebibytes},
    plan::Plan,
};

const SOON: Duration = Duration::from_secs(20);
/// The answer to whoever asks for `/long`.
const LONG_ANSWER: usize = 900 << 10;

/// Runs the drill.
pub(crate) fn run(plan: &Plan) -> Result<Figures> {
    let mut figures = Figures::default();
    let window = plan.length(Duration::from_secs(6), Duration::from_secs(30)) / 6;
    let steps: [Step; 6] = [files, map, memory_limit, threads, watches, logs];
    for (number, step) in steps.iter().enumerate() {
        println!("    {} of {}", number + 1, steps.len());
        step(&Bench::new()?, window, &mut figures)?;
    }
    Ok(figures)
}

/// Uses one thing up, for as long as is said.
type Step = fn(&Bench, Duration, &mut Figures) -> Result<()>;

/// A node with an upstream and tenants, before its agent.
struct Bench {
    tenants: Vec<TenantFixture>,
    upstream: MetadataAgent,
    node: Node,
}

impl Bench {
    fn new() -> Result<Self> {
        let node = Node::new()?;
        let upstream = MetadataAgent::builder()
            .workers(8)
            .forgetful()
            .respond(respond)
            .start(&node.directory().join("agent"))?;
        let tenants = Kind::ALL
            .iter()
            .map(|kind| TenantFixture::new(&node, *kind))
            .collect::<Result<_>>()?;
        Ok(Self {
            tenants,
            upstream,
            node,
        })
    }

    fn builder(&self) -> Builder {
        builder(&self.node, &self.upstream).set("log.level", "\"info\"")
    }

    fn start(&self, configure: impl FnOnce(Builder) -> Builder) -> Result<Agent> {
        let agent = configure(self.builder()).start()?;
        for tenant in &self.tenants {
            agent.wait_served(tenant)?;
        }
        Ok(agent)
    }

    /// Guests of all tenants ask for a while and are all served.
    fn demand_served(&self, window: Duration, what: &str, figures: &mut Figures) -> Result<()> {
        let tally = ask_for(&self.tenants, window)?;
        figures.note(what, format!("{tally} of {} requests", tally.asked()));
        figures.demand(
            tally.failed() == 0 && tally.asked() > 0,
            format!("{what}: existing tenants are served, not {tally}"),
        );
        Ok(())
    }
}

fn respond(request: &Request) -> Answer {
    match &*request.target {
        "/long" => Answer::ok(vec![b'x'; LONG_ANSWER]),
        _ => who_asked(request),
    }
}

/// Few file descriptors, and a tenant whose guest takes as many connections as it can.
fn files(bench: &Bench, window: Duration, figures: &mut Figures) -> Result<()> {
    let agent = bench.start(|agent| agent.under(&["prlimit", "--nofile=256:256"]))?;
    let greedy = TenantFixture::new(&bench.node, Kind::Router)?;
    agent.wait_served(&greedy)?;
    let mut held: Vec<_> = (0..400)
        .filter_map(|_| Connection::v4(greedy.guest()).ok())
        .collect();
    // One that would be refused in any case: so many are open now as there may be.
    held.push(Connection::v4(greedy.guest())?);
    let status = agent.admin_json("/v1/status")?;
    let open = status["connections"]["open"].as_u64().unwrap_or_default();
    figures.note("files: connections of 400 that are open", open);
    let warnings = status["warnings"].to_string();
    figures.demand(
        warnings.contains("LimitNOFILE") && agent.log().contains("LimitNOFILE"),
        format!("files: log and status say what to raise, not {warnings}"),
    );
    // As many guests of others as ever get in while the greedy one keeps what it has.
    drop(held.split_off(open.saturating_sub(16).try_into().unwrap_or(0)));
    wait_until("room for others", SOON, || {
        agent
            .admin_json("/v1/status")
            .is_ok_and(|now| now["connections"]["open"].as_u64() < Some(open))
    })?;
    bench.demand_served(window, "files: others", figures)?;
    drop(held);
    Ok(())
}

/// A map with fewer places than tenants.
fn map(bench: &Bench, window: Duration, figures: &mut Figures) -> Result<()> {
    let agent = bench.start(|agent| agent.set("steering.max_tenants", bench.tenants.len()))?;
    let beyond = TenantFixture::new(&bench.node, Kind::Router)?;
    let mut reason = String::new();
    wait_until("word of the full map", SOON, || {
        if let Ok(Some(tenant)) = agent.tenant(&beyond) {
            tenant["reason"]
                .as_str()
                .unwrap_or_default()
                .clone_into(&mut reason);
        }
        reason.contains("steering.max_tenants")
    })?;
    figures.note("map: status of one tenant more", &reason);
    wait_until("a word in the log about the map", SOON, || {
        agent.log().contains("steering.max_tenants")
    })?;
    bench.demand_served(window, "map: others", figures)?;
    // A place that is free is taken without anybody's doing.
    drop(TenantFixture::new(&bench.node, Kind::Network)?);
    let list = agent.admin_json("/v1/status")?;
    figures.demand(
        list["tenants"]["serving"] == bench.tenants.len(),
        format!(
            "map: as many are served as there are places: {}",
            list["tenants"]
        ),
    );
    Ok(())
}

/// A memory limit, and a guest that takes nothing of long answers.
fn memory_limit(bench: &Bench, window: Duration, figures: &mut Figures) -> Result<()> {
    let agent = bench.start(|agent| {
        agent
            .set("timeouts.client", "\"5s\"")
            .set("limits.connections_per_tenant", 256)
    })?;
    let idle = memory::of(agent.pid())?;
    // What is read ahead of all guests (64 MiB), and 256 connections with their buffers in the kernel.
    let limit = idle + ((64 + 32) << 20);
    let group = Group::of("memory", &["memory.limit_in_bytes", "memory.max"], limit)?;
    group.enter(agent.pid())?;
    let greedy = TenantFixture::new(&bench.node, Kind::Router)?;
    agent.wait_served(&greedy)?;
    let watch = memory::Watch::start(agent.pid());
    let ((), held) = while_attacked(
        |stop| {
            greedy.guest().netns.enter()?;
            let mut held = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                if held.len() < 256
                    && let Ok(mut connection) = RawConnection::open(None, SOON)
                {
                    let _ = connection.send(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n");
                    held.push(connection);
                } else {
                    thread::sleep(Duration::from_millis(10));
                }
            }
            Ok(held.len() as u64)
        },
        || bench.demand_served(window * 2, "memory: others", figures),
    )?;
    figures.note(
        "memory: limit",
        format!(
            "{}; most used {}; {held} long answers asked",
            mebibytes(limit),
            mebibytes(watch.take())
        ),
    );
    figures.demand(agent.admin("/readyz")?.0 == 200, "memory: the agent lives");
    bench.demand_served(window, "memory: others afterwards", figures)?;
    // The group can go only once nobody is in it.
    drop((agent, group));
    Ok(())
}

/// No thread more than there are, then too few to start with.
fn threads(bench: &Bench, window: Duration, figures: &mut Figures) -> Result<()> {
    let mut agent = bench.start(|agent| agent)?;
    let count = fs::read_dir(format!("/proc/{}/task", agent.pid()))?.count();
    let group = Group::of("pids", &["pids.max"], u64::try_from(count)?)?;
    group.enter(agent.pid())?;
    let another = TenantFixture::new(&bench.node, Kind::Router)?;
    agent.wait_served(&another)?;
    agent.signal(Signal::SIGHUP)?;
    wait_until("a reload", SOON, || {
        agent.log().contains("configuration reloaded")
    })?;
    figures.note("threads: at their limit", count);
    bench.demand_served(window, "threads: others, and a tenant more", figures)?;
    drop((agent, group));

    let group = Group::of("pids", &["pids.max"], 2)?;
    let procs = group.path.join("cgroup.procs").display().to_string();
    let enter = format!("echo 0 > {procs}; exec \"$@\"");
    let mut agent = bench
        .builder()
        .under(&["sh", "-c", &enter, "sh"])
        .start_unready()?;
    let status = agent.wait(SOON)?;
    let log = agent.log();
    let last = log.lines().last().unwrap_or_default();
    figures.note("threads: too few to start", last);
    figures.demand(
        !status.success() && last.contains("thread") || last.contains("worker"),
        format!("threads: too few to start is a clear error, not {status}: {log}"),
    );
    Ok(())
}

/// No inotify instance left: all that the agent's user may have are taken. That user is nobody else's,
/// so that no other process of the machine misses any.
fn watches(bench: &Bench, window: Duration, figures: &mut Figures) -> Result<()> {
    const USER: u32 = 47_169;
    // That user with what the agent needs of root's capabilities.
    const CAPABILITIES: &str = "cap_sys_admin,cap_net_admin,cap_bpf,cap_perfmon,cap_dac_override,\
        cap_net_raw,cap_sys_ptrace,cap_net_bind_service,cap_chown,cap_fowner";
    let taken = all_watches_of(USER)?;
    let [user, inheritable, ambient] = [
        format!("--uid={USER}"),
        format!("--inh={CAPABILITIES}"),
        format!("--addamb={CAPABILITIES}"),
    ];
    let agent = bench.start(|agent| {
        agent.under(&[
            "capsh",
            "--keep=1",
            &user,
            &inheritable,
            &ambient,
            "--",
            "-c",
            "exec \"$@\"",
            "sh",
        ])
    })?;
    figures.note("watches: instances that were taken", taken.len());
    let log = agent.log();
    figures.demand(
        log.contains("cannot watch"),
        format!("watches: the log says so: {log}"),
    );
    bench.demand_served(window, "watches: existing tenants", figures)?;
    // Found by the scan.
    let another = TenantFixture::new(&bench.node, Kind::Router)?;
    agent.wait_served(&another)?;
    drop(taken);
    wait_until("a watch, once there may be one", SOON, || {
        fs::read_dir(format!("/proc/{}/fd", agent.pid())).is_ok_and(|all| {
            all.flatten()
                .filter_map(|fd| fs::read_link(fd.path()).ok())
                .any(|target| target.to_string_lossy().contains("inotify"))
        })
    })
}

/// Takes every inotify instance that a user may have.
fn all_watches_of(user: u32) -> Result<Vec<OwnedFd>> {
    let taking = thread::spawn(move || {
        // SAFETY: the system call takes integers, and changes the calling thread only, which ends.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
        ensure!(changed == 0, "cannot become another user");
        let mut taken = Vec::new();
        loop {
            // SAFETY: takes a flag, returns a new descriptor or an error.
            let descriptor = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
            if descriptor < 0 {
                let error = std::io::Error::last_os_error();
                ensure!(error.raw_os_error() == Some(libc::EMFILE), "{error}");
                return Ok(taken);
            }
            // SAFETY: the kernel just made it for us.
            taken.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    });
    taking.join().ok().context("the taker panicked")?
}

/// A log that takes nothing: a full disk, then a reader that does not read.
fn logs(bench: &Bench, window: Duration, figures: &mut Figures) -> Result<()> {
    let full = OpenOptions::new().write(true).open("/dev/full")?;
    let agent = bench.start(|agent| agent.log_to(full.into()))?;
    bench.demand_served(window, "logs: disk full", figures)?;
    agent.cli(&["status"])?;
    drop(agent);

    let (reader, writer) = nix::unistd::pipe().context("no pipe")?;
    let mut agent = bench.start(|agent| {
        let agent = agent.set("timeouts.connect", "\"200ms\"");
        agent.log_to(writer)
    })?;
    bench.demand_served(window * 2, "logs: nobody reads", figures)?;
    // What warns is written by who says it: refused connections do.
    let another = TenantFixture::new(&bench.node, Kind::Router)?;
    agent.wait_served(&another)?;
    agent.cli(&["status"])?;
    // Something that warns, which is written at once if it can be written at all.
    let away = bench.node.directory().join("away");
    fs::rename(bench.upstream.socket(), &away)?;
    agent.signal(Signal::SIGHUP)?;
    let asked = ask_for(&bench.tenants[..1], Duration::from_millis(100))?;
    fs::rename(&away, bench.upstream.socket())?;
    figures.note("logs: without an upstream", asked);
    bench.demand_served(window, "logs: nobody reads, after a warning", figures)?;
    let ended = agent.stop();
    figures.demand(
        ended.as_ref().is_ok_and(std::process::ExitStatus::success),
        format!("logs: it ends although nobody reads: {ended:?}"),
    );
    drop(reader);
    Ok(())
}

/// A cgroup of ours with one limit, whichever hierarchy has the controller; below the group of this
/// process, so that what limits this process limits it too.
struct Group {
    path: PathBuf,
}

impl Group {
    fn of(controller: &str, files: &[&str], limit: u64) -> Result<Self> {
        let parent = hierarchy(controller)?;
        let name = format!("mdp-test-{controller}-{}", process::id());
        let path = parent.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let group = Self { path };
        let file = files
            .iter()
            .map(|name| group.path.join(name))
            .find(|file| file.exists())
            .with_context(|| format!("the controller {controller} is not enabled here"))?;
        fs::write(&file, limit.to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(group)
    }

    fn enter(&self, pid: u32) -> Result<()> {
        let mut procs = File::options()
            .write(true)
            .open(self.path.join("cgroup.procs"))
            .context("cannot open the group's process list")?;
        procs
            .write_all(pid.to_string().as_bytes())
            .context("cannot move a process")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Processes may be a moment from their end.
        let gone = wait_until("an empty cgroup", SOON, || {
            fs::remove_dir(&self.path).is_ok()
        });
        if let Err(error) = gone {
            eprintln!("cannot remove {}: {error:#}", self.path.display());
        }
    }
}

/// Where this process is in the hierarchy that has the controller.
fn hierarchy(controller: &str) -> Result<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").context("cannot read our cgroups")?;
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(names), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let path = path.trim_start_matches('/');
        if names.split(',').any(|name| name == controller) {
            return Ok(Path::new("/sys/fs/cgroup").join(controller).join(path));
        }
        let unified = Path::new("/sys/fs/cgroup").join(path);
        let enabled = fs::read_to_string(unified.join("cgroup.subtree_control"));
        if names.is_empty()
            && enabled.is_ok_and(|all| all.split_whitespace().any(|it| it == controller))
        {
            return Ok(unified);
        }
    }
    anyhow::bail!("there is no cgroup hierarchy with the controller {controller}")
}
