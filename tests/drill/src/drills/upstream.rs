//! A hostile or broken upstream: guests get 502, 503 or 504 in time, memory stays bounded, and once
//! the upstream is well again guests are served, without anybody doing anything.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use metadata_proxy_tests::{
    Agent, Kind, Node, TenantFixture,
    crowd::{Member, all_at_once, multiply},
    raw_http::{Connection, Read},
};
use nix::unistd::{Gid, Uid, chown};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    figures::Figures,
    memory::{self, mebibytes},
    plan::Plan,
};

/// What the agent is configured to give the upstream for each of connect and answer.
const GIVEN: Duration = Duration::from_secs(1);
/// What an answer may take beyond both: a busy machine.
const SLACK: Duration = Duration::from_millis(1500);
/// What must be enough to be served again.
const RECOVERY: Duration = Duration::from_secs(3);
/// What is read ahead of guests at most, and what the process itself may grow by.
const MEMORY: u64 = (64 + 24) << 20;

/// How the upstream behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    Silent,
    ClosesAtOnce,
    ClosesUnread,
    Slow,
    SlowerThanAllowed,
    Dribbling,
    Garbage,
    EndlessHead,
    EndlessBody,
    EndlessChunks,
    HalfClosed,
    TooShort,
    TooLong,
    BadChunks,
    BadLength,
}

/// A mood, and what guests may get in it: statuses, or an answer that is cut (0).
const MOODS: &[(Mood, &[u16])] = &[
    (Mood::Silent, &[504]),
    (Mood::ClosesAtOnce, &[502]),
    (Mood::ClosesUnread, &[502, 503]),
    (Mood::Slow, &[200]),
    (Mood::SlowerThanAllowed, &[504]),
    (Mood::Dribbling, &[200]),
    (Mood::Garbage, &[502]),
    (Mood::EndlessHead, &[502]),
    // Whole, if the upstream ends it because nobody takes it.
    (Mood::EndlessBody, &[0, 200]),
    (Mood::EndlessChunks, &[0]),
    (Mood::HalfClosed, &[502]),
    (Mood::TooShort, &[502, 504]),
    // What was announced is passed on, and nothing else.
    (Mood::TooLong, &[200]),
    (Mood::BadChunks, &[502]),
    (Mood::BadLength, &[502]),
];

/// Runs the drill.
pub(crate) fn run(plan: &Plan) -> Result<Figures> {
    let mut figures = Figures::default();
    let node = Node::new()?;
    let socket = node.directory().join("agent");
    let mut upstream = Upstream::start(&socket, Mood::Well)?;
    // Root may connect to any socket, so this root may not.
    let agent = Agent::builder(&node)
        .upstream_agent(&socket)
        .set("timeouts.connect", "\"1s\"")
        .set("timeouts.server", "\"1s\"")
        .under(&[
            "setpriv",
            "--bounding-set",
            "-dac_override,-dac_read_search",
        ])
        .start()?;
    let tenant = TenantFixture::new(&node, Kind::Router)?;
    agent.wait_served(&tenant)?;
    let crowd = Crowd {
        tenant: &tenant,
        addresses: multiply(tenant.guest(), plan.choose(8, 32))?,
    };
    crowd.demand(&mut figures, "well", &[200], GIVEN)?;
    let idle = memory::of(agent.pid())?;
    let watch = memory::Watch::start(agent.pid());
    let rounds = plan.choose(1, 3);
    let until = Instant::now() + plan.length(Duration::ZERO, Duration::ZERO);
    let mut round = 0;
    while round < rounds || Instant::now() < until {
        round += 1;
        for (mood, statuses) in MOODS {
            upstream.become_(*mood)?;
            crowd.demand(
                &mut figures,
                &format!("{mood:?}"),
                statuses,
                2 * GIVEN + SLACK,
            )?;
            upstream.become_(Mood::Well)?;
            crowd.demand_recovery(&mut figures, &format!("{mood:?}"))?;
        }
        gone(&mut upstream, &crowd, &mut figures)?;
    }
    let most = watch.take();
    figures.note("rounds", round);
    figures.note("memory when idle", mebibytes(idle));
    figures.note("most memory", mebibytes(most));
    figures.demand(
        most <= idle + MEMORY,
        format!("memory stays within {} of what it was", mebibytes(MEMORY)),
    );
    Ok(figures)
}

/// The upstream's socket goes, comes back, is replaced, and may not be opened.
fn gone(upstream: &mut Upstream, crowd: &Crowd<'_>, figures: &mut Figures) -> Result<()> {
    let socket = upstream.path.clone();
    upstream.stop();
    crowd.demand(figures, "gone, socket left", &[502, 503], 2 * GIVEN + SLACK)?;
    fs::remove_file(&socket).context("cannot remove the socket")?;
    crowd.demand(figures, "gone", &[502, 503], 2 * GIVEN + SLACK)?;
    fs::write(&socket, b"").context("cannot put a file there")?;
    crowd.demand(
        figures,
        "a file in its place",
        &[502, 503],
        2 * GIVEN + SLACK,
    )?;
    fs::remove_file(&socket).context("cannot remove the file")?;
    *upstream = Upstream::start(&socket, Mood::Well)?;
    crowd.demand_recovery(figures, "gone and back again")?;
    // Another takes its place while requests are with the first.
    upstream.become_(Mood::Silent)?;
    let other = socket.with_extension("new");
    let replacement = Upstream::start(&other, Mood::Well)?;
    let (asked, ()) = thread::scope(|scope| {
        let asking = scope.spawn(|| crowd.ask());
        thread::sleep(GIVEN / 4);
        let renamed = fs::rename(&other, &socket);
        (asking.join(), renamed.expect("the socket can be renamed"))
    });
    let asked = asked.ok().context("a guest panicked")??;
    figures.demand(
        asked
            .iter()
            .all(|(status, _)| matches!(status, 200 | 502 | 504)),
        format!("replaced: {asked:?}"),
    );
    crowd.demand_recovery(figures, "replaced")?;
    *upstream = replacement;
    upstream.path.clone_from(&socket);
    // Whose socket it is, the agent's user is not.
    let nobody = (Uid::from_raw(65_534), Gid::from_raw(65_534));
    chown(&socket, Some(nobody.0), Some(nobody.1)).context("cannot give the socket away")?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o700)).context("cannot set a mode")?;
    crowd.demand(figures, "permission denied", &[502, 503], 2 * GIVEN + SLACK)?;
    chown(&socket, Some(Uid::from_raw(0)), Some(Gid::from_raw(0))).context("cannot take it")?;
    crowd.demand_recovery(figures, "permission denied")
}

/// Guests of one tenant, who ask at the same time.
struct Crowd<'a> {
    tenant: &'a TenantFixture,
    addresses: Vec<std::net::Ipv4Addr>,
}

impl Crowd<'_> {
    /// Status and time of each guest's answer; 0 for one that is cut, or goes on and on.
    fn ask(&self) -> Result<Vec<(u16, Duration)>> {
        let members: Vec<_> = self
            .addresses
            .iter()
            .map(|source| Member {
                tenant: self.tenant,
                source: *source,
            })
            .collect();
        all_at_once(&members, |member| {
            let began = Instant::now();
            let status = ask_one(member.source);
            (status, began.elapsed())
        })
    }

    fn demand(
        &self,
        figures: &mut Figures,
        what: &str,
        statuses: &[u16],
        within: Duration,
    ) -> Result<()> {
        let asked = self.ask()?;
        let longest = asked
            .iter()
            .map(|(_, took)| *took)
            .max()
            .unwrap_or_default();
        let mut seen: Vec<_> = asked.iter().map(|(status, _)| *status).collect();
        seen.sort_unstable();
        seen.dedup();
        figures.note(what, format!("{seen:?} within {} ms", longest.as_millis()));
        figures.demand(
            seen.iter().all(|status| statuses.contains(status)),
            format!("{what}: guests get {statuses:?}, not {seen:?}"),
        );
        figures.demand(
            longest <= within || statuses.contains(&0),
            format!("{what}: an answer within {within:?}, not {longest:?}"),
        );
        Ok(())
    }

    /// Guests are served again, soon.
    fn demand_recovery(&self, figures: &mut Figures, after: &str) -> Result<()> {
        let until = Instant::now() + RECOVERY;
        loop {
            let asked = self.ask()?;
            if asked.iter().all(|(status, _)| *status == 200) {
                return Ok(());
            }
            if Instant::now() > until {
                figures.demand(false, format!("after {after}: served again, not {asked:?}"));
                return Ok(());
            }
        }
    }
}

fn ask_one(source: std::net::Ipv4Addr) -> u16 {
    let until = Instant::now() + 2 * GIVEN + 2 * SLACK;
    let Ok(mut connection) = Connection::open(Some(source), GIVEN) else {
        return 0;
    };
    let sent = connection.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    match sent.map(|()| connection.answer("GET", until)) {
        Ok(Ok(Read::Answer(answer))) => answer.status,
        _ => 0,
    }
}

/// The upstream on its socket, a thread for each connection.
struct Upstream {
    path: PathBuf,
    listener: Arc<Socket>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    fn start(path: &Path, mood: Mood) -> Result<Self> {
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).context("no socket")?;
        listener
            .bind(&SockAddr::unix(path)?)
            .with_context(|| format!("cannot bind {}", path.display()))?;
        listener.listen(64).context("cannot listen")?;
        let (listener, stopped) = (Arc::new(listener), Arc::<AtomicBool>::default());
        let (its_listener, its_stopped) = (Arc::clone(&listener), Arc::clone(&stopped));
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = its_listener.accept() {
                if its_stopped.load(Ordering::SeqCst) {
                    return;
                }
                let stopped = Arc::clone(&its_stopped);
                let stream = UnixStream::from(OwnedFd::from(stream));
                thread::spawn(move || answer(stream, mood, &stopped));
            }
        });
        Ok(Self {
            path: path.to_owned(),
            listener,
            stopped,
            thread: Some(thread),
        })
    }

    /// Ends what listens now and lets another in its place; those connected keep their mood until
    /// they see that it is over.
    fn become_(&mut self, mood: Mood) -> Result<()> {
        self.stop();
        let _ = fs::remove_file(&self.path);
        *self = Self::start(&self.path, mood)?;
        Ok(())
    }

    fn stop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = self.listener.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Answers one connection; who does not take it is gone, which is no fault here.
fn answer(mut stream: UnixStream, mood: Mood, stopped: &AtomicBool) {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let wait = |time: Duration| {
        let until = Instant::now() + time;
        while Instant::now() < until && !stopped.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(10));
        }
    };
    if mood == Mood::ClosesUnread {
        return;
    }
    let _ = stream.read(&mut [0; 4096]);
    let repeat = |stream: &mut UnixStream, bytes: &[u8]| {
        while !stopped.load(Ordering::SeqCst) && stream.write_all(bytes).is_ok() {}
    };
    let _ = stream.set_write_timeout(Some(Duration::from_millis(200)));
    let written = match mood {
        Mood::Well => stream.write_all(OK),
        Mood::Silent => {
            wait(GIVEN * 10);
            Ok(())
        }
        Mood::ClosesAtOnce | Mood::ClosesUnread => Ok(()),
        Mood::Slow => {
            wait(GIVEN / 2);
            stream.write_all(OK)
        }
        Mood::SlowerThanAllowed => {
            wait(GIVEN * 2);
            stream.write_all(OK)
        }
        Mood::Dribbling => OK.iter().try_for_each(|byte| {
            thread::sleep(Duration::from_millis(10));
            stream.write_all(&[*byte])
        }),
        Mood::Garbage => stream.write_all(b"\x16\x03\x01 this is no answer\r\n\r\n"),
        Mood::EndlessHead => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
            repeat(
                &mut stream,
                &b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(100),
            );
            Ok(())
        }
        Mood::EndlessBody => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            repeat(&mut stream, &[b'x'; 16 << 10]);
            Ok(())
        }
        Mood::EndlessChunks => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = [b"4000\r\n".as_slice(), &[b'x'; 0x4000], b"\r\n"].concat();
            repeat(&mut stream, &chunk);
            Ok(())
        }
        Mood::HalfClosed => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le");
            let closed = stream.shutdown(Shutdown::Write);
            wait(GIVEN * 10);
            closed
        }
        Mood::TooShort => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nshort"),
        Mood::TooLong => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1")
        }
        Mood::BadChunks => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        }
        Mood::BadLength => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok"),
    };
    drop(written);
}
