//! Many tenants, and guests that never cease to ask.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use metadata_proxy_tests::{
    Kind, Node, TenantFixture,
    crowd::{Outcome, Tally, ask_once, ask_within},
    kept::KeepingGuest,
};

/// Threads that make namespaces.
const MAKERS: usize = 2;
/// Pauses of guests between two requests, from the busiest to the laziest.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(150),
];

/// Makes so many tenants, of every kind, with a guest each.
pub(super) fn tenants(node: &Node, count: usize) -> Result<Arc<Vec<TenantFixture>>> {
    let share = count.div_ceil(MAKERS);
    let makers: Vec<_> = (0..MAKERS)
        .map(|maker| {
            let node = node.clone();
            thread::spawn(move || {
                (maker * share..count.min((maker + 1) * share))
                    .map(|number| TenantFixture::new(&node, Kind::ALL[number % Kind::ALL.len()]))
                    .collect::<Result<Vec<_>>>()
            })
        })
        .collect();
    let mut tenants = Vec::with_capacity(count);
    for maker in makers {
        let made = maker.join().map_err(|_| anyhow!("a thread panicked"))?;
        tenants.extend(made.context("cannot make the tenants")?);
    }
    Ok(Arc::new(tenants))
}

/// What guests have seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) tally: Tally,
    /// When those were asked that failed.
    pub(super) failed: Vec<Instant>,
    /// Connections opened by those who keep theirs.
    pub(super) opened: usize,
    /// Kept connections that were closed before they were used again.
    pub(super) stale: usize,
    /// Requests that crossed with the close of a kept connection and were asked once more.
    pub(super) crossed: usize,
}

/// Guests that ask until this is stopped: every other one keeps its connection.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    guests: Vec<JoinHandle<Result<Seen>>>,
}

impl Load {
    /// Starts so many guests, spread over all tenants.
    pub(super) fn start(tenants: &Arc<Vec<TenantFixture>>, guests: usize) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let guests = (0..guests)
            .map(|number| {
                let (tenants, stop) = (Arc::clone(tenants), Arc::clone(&stop));
                thread::spawn(move || {
                    let tenant = &tenants[number * tenants.len() / guests];
                    let pause = PAUSES[number / 2 % PAUSES.len()];
                    ask_on(tenant, number % 2 == 0, pause, &stop)
                })
            })
            .collect();
        Self { stop, guests }
    }

    /// Stops, and tells what they have seen.
    pub(super) fn stop(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for guest in self.guests {
            let seen = guest.join().map_err(|_| anyhow!("a guest panicked"))??;
            all.tally.merge(seen.tally);
            all.failed.extend(seen.failed);
            all.opened += seen.opened;
            all.stale += seen.stale;
            all.crossed += seen.crossed;
        }
        Ok(all)
    }
}

fn ask_on(tenant: &TenantFixture, keeps: bool, pause: Duration, stop: &AtomicBool) -> Result<Seen> {
    tenant.guest().netns.enter()?;
    let id = tenant.id.to_string();
    let mut guest = KeepingGuest::default();
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        let at = Instant::now();
        let asked = if keeps {
            guest.ask(&[&id])
        } else {
            ask_once(None, &[&id])
        };
        seen.tally.add(asked);
        if asked.outcome != Outcome::Served {
            seen.failed.push(at);
        }
        thread::sleep(pause);
    }
    seen.opened = guest.opened;
    seen.stale = guest.stale;
    seen.crossed = guest.crossed;
    Ok(seen)
}

/// What a guest of every tenant was told, in the end.
pub(super) struct Answered {
    /// How long the first answer of each took, the last one last.
    pub(super) took: Vec<Duration>,
    /// Connections that were given up on; see [`until_all_answered`].
    pub(super) unheard: usize,
}

/// Asks a guest of every tenant until each has been answered; times count from `began`.
///
/// While nobody listens a SYN is refused, but now and then one is not answered at all, and its guest
/// would try again only after a second, by when its tenant has long been served. So these give up on
/// such a connection, which is counted, and try another port.
pub(super) fn until_all_answered(
    tenants: &Arc<Vec<TenantFixture>>,
    began: Instant,
    patience: Duration,
) -> Result<Answered> {
    const ASKERS: usize = 4;
    /// Between two rounds: a refusal costs the machine something too.
    const PAUSE: Duration = Duration::from_millis(10);
    /// Many times what a handshake takes.
    const CONNECT: Duration = Duration::from_millis(100);
    let askers: Vec<_> = (0..ASKERS)
        .map(|asker| {
            let tenants = Arc::clone(tenants);
            thread::spawn(move || -> Result<Answered> {
                let mut left: Vec<_> = tenants.iter().skip(asker).step_by(ASKERS).collect();
                let mut took = Vec::new();
                let mut unheard = 0;
                while !left.is_empty() {
                    if began.elapsed() > patience {
                        return Err(anyhow!("{} tenants are not served", left.len()));
                    }
                    let mut waiting = Vec::new();
                    for tenant in left {
                        tenant.guest().netns.enter()?;
                        let asked = ask_within(CONNECT, None, &[&tenant.id.to_string()]);
                        unheard += usize::from(asked.outcome == Outcome::TimedOut);
                        if asked.outcome == Outcome::Served {
                            took.push(began.elapsed());
                        } else {
                            waiting.push(tenant);
                        }
                    }
                    left = waiting;
                    if !left.is_empty() {
                        thread::sleep(PAUSE);
                    }
                }
                Ok(Answered { took, unheard })
            })
        })
        .collect();
    let mut all = Answered {
        took: Vec::new(),
        unheard: 0,
    };
    for asker in askers {
        let answered = asker.join().map_err(|_| anyhow!("an asker panicked"))??;
        all.took.extend(answered.took);
        all.unheard += answered.unheard;
    }
    all.took.sort_unstable();
    Ok(all)
}
