//! The load generator: one thread that asks as many guests would, from inside their namespaces.
//!
//! Every answer is checked: its status, its length, and that it was given to the tenant that asked.
//! It counts what went wrong and never hides it by asking again.

mod connection;
mod pace;

use std::{
    fs::File,
    io,
    net::SocketAddr,
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use metadata_proxy_tests::{TenantFixture, wait_for};
use nix::{
    sched::{CloneFlags, setns},
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent},
};

pub(crate) use self::connection::find;
use self::{
    connection::{Connection, Progress},
    pace::Arrivals,
};

/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// How long one attempt to be answered may take while a proxy is starting.
const ATTEMPT: Duration = Duration::from_millis(25);
/// The same where the moment counts in which a tenant is served: a guest's first segment may have met
/// nobody. Many times what an answer takes when there is no load.
const SHORT_ATTEMPT: Duration = Duration::from_millis(3);

/// Whom to ask, from where, and for whom the answer must be.
pub(crate) struct Target {
    netns: File,
    address: SocketAddr,
    /// The tenant's UUID, which the upstream repeats; nothing where there is no proxy.
    tag: String,
}

impl Target {
    /// The first guest of a tenant, asking for metadata.
    pub(crate) fn guest(tenant: &TenantFixture) -> Result<Self> {
        Self::direct(
            tenant,
            SocketAddr::from(([169, 254, 169, 254], 80)),
            tenant.id.to_string(),
        )
    }

    /// The first guest of a tenant, asking some other address.
    pub(crate) fn direct(tenant: &TenantFixture, address: SocketAddr, tag: String) -> Result<Self> {
        let netns = tenant.guest().netns.file();
        let netns = netns.try_clone().context("cannot share a namespace")?;
        Ok(Self {
            netns,
            address,
            tag,
        })
    }

    fn enter(&self) -> io::Result<()> {
        setns(self.netns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(Into::into)
    }
}

/// Whether guests keep their connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A connection for each request, which the server closes.
    Close,
    /// Connections are kept.
    Keep,
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Whether connections are kept.
    pub(crate) mode: Mode,
    /// Connections at once, all targets together.
    pub(crate) connections: usize,
    /// Requests a second; as fast as answers come where there is none.
    pub(crate) rate: Option<f64>,
    /// Time before anything counts.
    pub(crate) warm_up: Duration,
    /// Time that counts.
    pub(crate) window: Duration,
    /// Ends sooner, after this many answers.
    pub(crate) at_most: usize,
}

/// What came of it, within the window.
#[derive(Debug)]
pub(crate) struct Outcome<T> {
    /// Requests answered well.
    pub(crate) answered: usize,
    /// Requests that failed.
    pub(crate) failed: usize,
    /// What the first failure was.
    pub(crate) why: Option<String>,
    /// How long the window was.
    pub(crate) elapsed: Duration,
    /// How long each answer took, nanoseconds, in ascending order.
    pub(crate) latencies: Vec<u32>,
    /// What the probe said at the window's beginning and end.
    pub(crate) probed: (T, T),
}

impl<T> Outcome<T> {
    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        count(self.answered) / self.elapsed.as_secs_f64()
    }

    /// The latency that this share of answers did not exceed, microseconds.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        percentile(&self.latencies, share) / 1_000.0
    }
}

/// The value that this share of sorted values does not exceed.
pub(crate) fn percentile(sorted: &[u32], share: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index below the length"
    )]
    let at = (share * count(sorted.len())) as usize;
    sorted
        .get(at.min(sorted.len().saturating_sub(1)))
        .copied()
        .map_or(f64::NAN, f64::from)
}

/// A count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
pub(crate) const fn count(count: usize) -> f64 {
    count as f64
}

/// Puts load on targets in turn, and asks `probe` at both ends of the window.
pub(crate) fn run<T: Send>(
    targets: &[Target],
    load: Load,
    probe: impl Fn() -> Result<T> + Send,
) -> Result<Outcome<T>> {
    on_own_thread(|| Generator::new(targets, load)?.run(probe))
}

/// Asks every target, each again until it is answered; returns when all are.
pub(crate) fn until_answered(targets: &[Target], deadline: Duration) -> Result<()> {
    on_own_thread(|| {
        let start = Instant::now();
        for target in targets {
            let left = deadline.saturating_sub(start.elapsed());
            wait_for("an answer", left, || Ok(ask(target, ATTEMPT).ok()))?;
        }
        Ok(())
    })
}

/// Asks again and again, each attempt a new connection; says when the answer was there.
pub(crate) fn answered_at(target: &Target, deadline: Duration) -> Result<Instant> {
    on_own_thread(|| {
        let start = Instant::now();
        loop {
            if ask(target, SHORT_ATTEMPT).is_ok() {
                return Ok(Instant::now());
            }
            if start.elapsed() > deadline {
                bail!("no answer within {deadline:?}");
            }
            thread::sleep(Duration::from_micros(200));
        }
    })
}

/// Whether a target is answered.
pub(crate) fn is_served(target: &Target) -> Result<bool> {
    on_own_thread(|| Ok(ask(target, ATTEMPT).is_ok()))
}

/// Asks once.
fn ask(target: &Target, patience: Duration) -> Result<()> {
    let load = Load {
        mode: Mode::Close,
        connections: 1,
        rate: None,
        warm_up: Duration::ZERO,
        window: patience,
        at_most: 1,
    };
    let outcome = Generator::new(std::slice::from_ref(target), load)?.run(|| Ok(()))?;
    match outcome.answered {
        0 => bail!(
            "{}",
            outcome
                .why
                .unwrap_or_else(|| "no answer in time".to_owned())
        ),
        _ => Ok(()),
    }
}

/// Runs on a thread that ends with it, since it changes its namespace.
fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        scope
            .spawn(work)
            .join()
            .map_err(|_| anyhow!("the load generator panicked"))?
    })
}

struct Generator<'a> {
    targets: &'a [Target],
    load: Load,
    epoll: Epoll,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    arrivals: Arrivals,
    /// The target whose namespace this thread is in.
    inside: Option<usize>,
    answered: usize,
    failed: usize,
    why: Option<String>,
    latencies: Vec<u32>,
}

impl<'a> Generator<'a> {
    fn new(targets: &'a [Target], load: Load) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("no epoll")?;
        // In turn over the targets: each keeps its own.
        let connections: Vec<_> = (0..load.connections)
            .map(|at| Connection::new(at % targets.len()))
            .collect();
        Ok(Self {
            targets,
            load,
            epoll,
            idle: (0..connections.len()).rev().collect(),
            connections,
            arrivals: Arrivals::new(load.rate),
            inside: None,
            answered: 0,
            failed: 0,
            why: None,
            latencies: Vec::new(),
        })
    }

    fn run<T>(mut self, probe: impl Fn() -> Result<T>) -> Result<Outcome<T>> {
        pace::sharpen_timers();
        self.phase(self.load.warm_up)?;
        (self.answered, self.failed, self.why) = (0, 0, None);
        self.latencies.clear();
        let before = probe()?;
        let start = Instant::now();
        self.phase(self.load.window)?;
        let elapsed = start.elapsed();
        let after = probe()?;
        self.latencies.sort_unstable();
        Ok(Outcome {
            answered: self.answered,
            failed: self.failed,
            why: self.why,
            elapsed,
            latencies: self.latencies,
            probed: (before, after),
        })
    }

    fn phase(&mut self, duration: Duration) -> Result<()> {
        let end = Instant::now() + duration;
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let now = Instant::now();
            if now >= end || self.answered + self.failed >= self.load.at_most {
                return Ok(());
            }
            while let Some(due) = self.arrivals.next(now) {
                let Some(at) = self.idle.pop() else { break };
                self.arrivals.taken();
                self.start(at, due);
            }
            let wait = self
                .arrivals
                .wait(now, !self.idle.is_empty())
                .min(end - now);
            let ready = pace::wait(&self.epoll, &mut events, wait).context("epoll failed")?;
            for event in &events[..ready] {
                let at = usize::try_from(event.data()).context("not one of ours")?;
                self.go_on(at);
            }
        }
    }

    fn start(&mut self, at: usize, due: Instant) {
        let target = self.connections[at].target;
        if !self.connections[at].is_open() && self.inside != Some(target) {
            if let Err(error) = self.targets[target].enter() {
                return self.fail(at, &error.to_string());
            }
            self.inside = Some(target);
        }
        let request = match self.load.mode {
            Mode::Close => connection::REQUEST_CLOSE,
            Mode::Keep => connection::REQUEST_KEEP,
        };
        let address = self.targets[target].address;
        if let Err(error) =
            self.connections[at].start(due, address, request, &self.epoll, at as u64)
        {
            self.fail(at, &error.to_string());
        }
    }

    fn go_on(&mut self, at: usize) {
        let tag = &self.targets[self.connections[at].target].tag;
        loop {
            match self.connections[at].go_on(tag, self.load.mode) {
                Ok(Progress::Waits) => return,
                Ok(Progress::Answered(took)) => {
                    self.answered += 1;
                    let nanos = u32::try_from(took.as_nanos()).unwrap_or(u32::MAX);
                    self.latencies.push(nanos);
                    if self.connections[at].is_idle() {
                        self.idle.push(at);
                        return;
                    }
                }
                Ok(Progress::Idle) => {
                    self.idle.push(at);
                    return;
                }
                Err(error) => return self.fail(at, &error.to_string()),
            }
        }
    }

    fn fail(&mut self, at: usize, why: &str) {
        self.failed += 1;
        self.why.get_or_insert_with(|| why.to_owned());
        self.connections[at].reset();
        self.idle.push(at);
    }
}
