//! Many guests at once: threads with sockets in guests' namespaces, each with an address of its own.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::Ipv4Addr,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    raw_http::{Connection, Read},
    subnet::{GUEST_DEVICE, Guest},
    tenant::TenantFixture,
};

/// How long a guest waits for a connection, and for an answer; longer than any proxy does.
const PATIENCE: Duration = Duration::from_secs(40);

/// What became of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Answered as it should be.
    Served,
    /// Answered with another status.
    Status(u16),
    /// Answered with 200 and not with what was asked for.
    Wrong,
    /// The connection was refused.
    Refused,
    /// The connection ended before an answer, or within it.
    Broken,
    /// Nothing came in time.
    TimedOut,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served => f.write_str("served"),
            Self::Status(status) => write!(f, "{status}"),
            Self::Wrong => f.write_str("wrong answer"),
            Self::Refused => f.write_str("refused"),
            Self::Broken => f.write_str("connection broken"),
            Self::TimedOut => f.write_str("timed out"),
        }
    }
}

/// One request of a guest.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// What became of it.
    pub outcome: Outcome,
    /// How long it took, from before the connect to after the answer.
    pub took: Duration,
}

/// What became of many requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    outcomes: BTreeMap<Outcome, usize>,
    took: Vec<Duration>,
}

impl Tally {
    /// Counts one.
    pub fn add(&mut self, asked: Asked) {
        *self.outcomes.entry(asked.outcome).or_default() += 1;
        self.took.push(asked.took);
    }

    /// Counts those another has counted.
    pub fn merge(&mut self, other: Self) {
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        self.took.extend(other.took);
    }

    /// How many were asked.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.took.len()
    }

    /// How many were not served.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.asked() - self.outcomes.get(&Outcome::Served).copied().unwrap_or(0)
    }

    /// The time within which this share of the requests was over.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "an index of a list that fits memory many times over"
        )]
        let at = (share * took.len() as f64) as usize;
        took.get(at.min(took.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (outcome, count)) in self.outcomes.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{count} {outcome}")?;
        }
        Ok(())
    }
}

/// Asks once, over a connection of its own, from inside the guest's namespace. An answer counts if
/// its body has all of `wanted` in it.
///
/// # Panics
/// When the socket cannot be made or read for reasons of the test's own.
#[must_use]
pub fn ask_once(source: Option<Ipv4Addr>, wanted: &[&str]) -> Asked {
    ask_within(PATIENCE, source, wanted)
}

/// The same, and waits for the connection no longer than this.
///
/// # Panics
/// As [`ask_once`].
#[must_use]
pub fn ask_within(connect: Duration, source: Option<Ipv4Addr>, wanted: &[&str]) -> Asked {
    const REQUEST: &[u8] = b"GET /openstack/latest/meta_data.json HTTP/1.1\r\n\
        Host: 169.254.169.254\r\nUser-Agent: guest\r\nAccept: */*\r\nConnection: close\r\n\r\n";
    let began = Instant::now();
    let outcome = match Connection::open(source, connect) {
        Ok(mut connection) => {
            // Who is refused while writing is told so when reading.
            let _ = connection.send(REQUEST);
            judged(&connection.answer("GET", Instant::now() + PATIENCE), wanted)
        }
        Err(error) => match error.kind() {
            io::ErrorKind::TimedOut => Outcome::TimedOut,
            io::ErrorKind::ConnectionRefused => Outcome::Refused,
            io::ErrorKind::ConnectionReset => Outcome::Broken,
            _ => panic!("the guest cannot connect: {error}"),
        },
    };
    Asked {
        outcome,
        took: began.elapsed(),
    }
}

/// What an answer is to a guest that wanted something.
///
/// # Panics
/// When the socket could not be read for reasons of the test's own.
#[must_use]
pub fn judged(read: &Result<Read>, wanted: &[&str]) -> Outcome {
    match read {
        Ok(Read::Answer(answer)) if answer.status != 200 => Outcome::Status(answer.status),
        Ok(Read::Answer(answer)) => {
            let body = String::from_utf8_lossy(&answer.body);
            if wanted.iter().all(|wanted| body.contains(wanted)) {
                Outcome::Served
            } else {
                Outcome::Wrong
            }
        }
        Ok(Read::Cut(_) | Read::Closed | Read::Reset | Read::NotHttp(_)) => Outcome::Broken,
        Ok(Read::Nothing) => Outcome::TimedOut,
        Err(error) => panic!("{error:#}"),
    }
}

/// Gives a guest's namespace further addresses, so that it stands for many guests. Returns all.
///
/// # Errors
/// There is no room for so many, or the kernel refused.
pub fn multiply(guest: &Guest, count: u8) -> Result<Vec<Ipv4Addr>> {
    let [a, b, c, first] = guest.v4.octets();
    let Some(end) = first.checked_add(count).filter(|end| *end < 255) else {
        bail!("a subnet has no room for {count} guests");
    };
    let all: Vec<_> = (first..end)
        .map(|last| Ipv4Addr::new(a, b, c, last))
        .collect();
    let lines = all[1..]
        .iter()
        .map(|v4| format!("addr add {v4}/24 dev {GUEST_DEVICE}\n"));
    guest.netns.ip_batch(&lines.collect::<String>())?;
    Ok(all)
}

/// A guest of a crowd: whose it is, and its address.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Its tenant.
    pub tenant: &'a TenantFixture,
    /// Its address.
    pub source: Ipv4Addr,
}

/// Lets every member do something, all at once, each on a thread inside its guest's namespace.
///
/// # Errors
/// A namespace cannot be entered.
pub fn all_at_once<T: Send>(
    members: &[Member<'_>],
    act: impl Fn(&Member<'_>) -> T + Sync,
) -> Result<Vec<T>> {
    let start = Barrier::new(members.len());
    thread::scope(|scope| {
        let (act, start) = (&act, &start);
        let threads: Vec<_> = members
            .iter()
            .map(|member| {
                thread::Builder::new()
                    .name(format!("guest {}", member.source))
                    .stack_size(256 * 1024)
                    .spawn_scoped(scope, move || {
                        member.tenant.guest().netns.enter()?;
                        start.wait();
                        Ok(act(member))
                    })
                    .context("cannot start a thread")
            })
            .collect::<Result<_>>()?;
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    })
}
