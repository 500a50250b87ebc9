//! Having the tenant served, and keeping it served.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use metadata_proxy::register::{
    Reply,
    client::{Lease, ReplyError, own_namespace},
};

use crate::{
    report::{Failure, Report},
    signals::{Event, Signals},
};

/// How long an agent may be out of reach when a tenant is first registered: an agent that restarts
/// is back by then, and one that is not there must not hold Neutron up.
const PATIENCE: Duration = Duration::from_secs(1);

/// Longest pause between two attempts while the agent is out of reach.
const UNREACHABLE_PAUSE: Duration = Duration::from_secs(1);

/// Longest pause between two attempts while the agent refuses.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// Registers one tenant, as often as it takes.
#[derive(Debug)]
pub(crate) struct Registrar {
    socket: PathBuf,
    request: Vec<u8>,
    pause: Pause,
}

/// What the agent made of a registration.
enum Verdict {
    Serving,
    Refused(String),
    Lost(ReplyError),
    Late,
    Stopped,
}

impl Registrar {
    /// Makes one that sends `request` to the agent at `socket`.
    pub(crate) fn new(socket: &Path, request: Vec<u8>) -> Self {
        Self {
            socket: socket.to_owned(),
            request,
            pause: Pause::new(),
        }
    }

    /// Has the tenant served for the first time; `None` if a signal came first.
    pub(crate) fn first(
        &mut self,
        wait: Duration,
        signals: &Signals,
    ) -> Result<Option<Lease>, Failure> {
        let deadline = Instant::now() + wait;
        let mut reached = Instant::now();
        loop {
            match self.attempt() {
                Ok(lease) => match verdict(&lease, deadline, signals) {
                    Verdict::Serving => {
                        self.pause.reset();
                        return Ok(Some(lease));
                    }
                    Verdict::Stopped => return Ok(None),
                    Verdict::Refused(reason) => {
                        return Err(Failure::new(format_args!(
                            "the agent does not serve this tenant: {reason}"
                        )));
                    }
                    Verdict::Late => {
                        return Err(Failure::new(format_args!(
                            "the agent has taken the registration, but did not serve within {} s",
                            wait.as_secs()
                        )));
                    }
                    Verdict::Lost(error @ (ReplyError::Message(_) | ReplyError::Connection(_))) => {
                        return Err(Failure::new(error));
                    }
                    // It is going down, and another may be on its way.
                    Verdict::Lost(_) => reached = Instant::now(),
                },
                Err(error) if reached.elapsed() >= PATIENCE => {
                    return Err(Failure::new(format_args!(
                        "no agent takes registrations on {}: {error}; is metadata-proxy running?",
                        self.socket.display()
                    )));
                }
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(format_args!(
                    "no agent served this tenant within {} s",
                    wait.as_secs()
                )));
            }
            let pause = self.pause.next(PATIENCE / 4);
            if signals.wait(None, Some(Instant::now() + pause)) == Event::Stop {
                return Ok(None);
            }
        }
    }

    /// Keeps the tenant served until a signal asks the process to end.
    pub(crate) fn hold(mut self, lease: Lease, signals: &Signals, report: &Report) {
        let mut lease = Some(lease);
        let mut trouble = None;
        give_memory_back();
        loop {
            let Some(held) = &lease else {
                let longest = match trouble {
                    Some(Trouble::Refused) => REFUSED_PAUSE,
                    _ => UNREACHABLE_PAUSE,
                };
                let pause = self.pause.next(longest);
                if signals.wait(None, Some(Instant::now() + pause)) == Event::Stop {
                    return;
                }
                lease = self.attempt().ok();
                continue;
            };
            if signals.wait(Some(held.as_fd()), None) == Event::Stop {
                return;
            }
            match held.reply() {
                Ok(Reply::Serving) => {
                    self.pause.reset();
                    if trouble.take().is_some() {
                        report.notice(&"the tenant is served again");
                    }
                }
                Ok(Reply::Failed { reason }) => {
                    if trouble.replace(Trouble::Refused) != Some(Trouble::Refused) {
                        report.alert(&format_args!("the tenant is not served: {reason}"));
                    }
                }
                Ok(Reply::Accepted) | Err(ReplyError::None) => {}
                Err(error) => {
                    lease = None;
                    if trouble.is_none() {
                        trouble = Some(Trouble::Lost);
                        report.notice(&format_args!("{error}; registering again"));
                    }
                }
            }
        }
    }

    fn attempt(&self) -> io::Result<Lease> {
        let netns = own_namespace()?;
        Lease::request(&self.socket, &self.request, netns.as_fd())
    }
}

/// Waits for the agent to say whether the tenant is served.
fn verdict(lease: &Lease, deadline: Instant, signals: &Signals) -> Verdict {
    loop {
        match signals.wait(Some(lease.as_fd()), Some(deadline)) {
            Event::Stop => return Verdict::Stopped,
            Event::Elapsed => return Verdict::Late,
            Event::Readable => {}
        }
        match lease.reply() {
            Ok(Reply::Accepted) | Err(ReplyError::None) => {}
            Ok(Reply::Serving) => return Verdict::Serving,
            Ok(Reply::Failed { reason }) => return Verdict::Refused(reason),
            Err(error) => return Verdict::Lost(error),
        }
    }
}

/// Why a tenant that was served is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Lost,
    Refused,
}

/// Pauses that grow, each with a chance of its own, so that not every tenant of a node comes at
/// once.
#[derive(Debug)]
struct Pause {
    longest: Duration,
    random: u32,
}

impl Pause {
    const SHORTEST: Duration = Duration::from_millis(20);

    fn new() -> Self {
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed = clock.map_or(0, |since| since.subsec_nanos());
        Self {
            longest: Self::SHORTEST,
            // Never 0, where xorshift would stay.
            random: (seed ^ std::process::id().rotate_left(16)) | 1,
        }
    }

    fn reset(&mut self) {
        self.longest = Self::SHORTEST;
    }

    /// The next pause, between half and all of what it may be.
    fn next(&mut self, cap: Duration) -> Duration {
        let longest = self.longest.min(cap);
        self.longest = (longest * 2).min(cap.max(Self::SHORTEST));
        // Marsaglia's xorshift; nobody gains anything by guessing it.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        longest / 2 + longest / 2 * (self.random >> 16) / 0xffff
    }
}

/// Gives the memory back that reading the configuration took.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it only returns free memory to the system.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_cap_and_start_anew() {
        let mut pause = Pause::new();
        let cap = Duration::from_secs(1);
        let mut longest = Pause::SHORTEST;
        for _ in 0..20 {
            let next = pause.next(cap);
            assert!(
                next >= longest / 2 && next <= longest,
                "{next:?} of {longest:?}"
            );
            longest = (longest * 2).min(cap);
        }
        assert_eq!(longest, cap);
        pause.reset();
        assert!(pause.next(cap) <= Pause::SHORTEST);
    }
}
