//! Finds tenants by the names of their namespaces.
//!
//! Watches the directory of named namespaces and scans it now and then, since a watch can overflow
//! and says nothing of mounts: a scan looks at every name if there were any. It only tells the registry who is there; it enters no namespace,
//! except to read the cookie of one that somebody else may have declared in the map.

mod mounts;
mod watch;

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::time::sleep_until;
use tracing::{debug, info, warn};

use self::{
    mounts::MountWatch,
    watch::{DirectoryWatch, Seen},
};
use crate::{
    config::Config,
    identity::Tenant,
    kernel::{Kernel, KernelError, NetnsCookie},
    listener,
    netns::{self, Netns, NetnsId, NetnsThread},
    tenants::{Command, Declaration, Provider, RegistryHandle, Source},
};

/// First wait for a file that is not yet a namespace: `ip netns add` makes the file, then mounts.
const YOUNG_MIN: Duration = Duration::from_millis(1);
/// After this a file is left to the periodic scan.
const YOUNG_MAX: Duration = Duration::from_secs(2);
/// Of so many scans one looks at every name although nothing has told of a change.
const LOOKS: u32 = 10;

/// What others declare in the map of tenants.
type Foreign = HashMap<NetnsCookie, Tenant>;

fn foreign(kernel: &dyn Kernel) -> Result<Foreign, KernelError> {
    let mut foreign = Foreign::new();
    kernel.declared(&mut |cookie, declared| {
        if !declared.by_agent {
            foreign.insert(cookie, declared.tenant);
        }
    })?;
    Ok(foreign)
}

/// Watches the directory of named namespaces.
pub struct Discovery {
    config: Arc<ArcSwap<Config>>,
    dir: PathBuf,
    kernel: Arc<dyn Kernel>,
    netns: NetnsThread,
    registry: RegistryHandle,
    known: HashMap<String, Known>,
    young: HashMap<String, Young>,
    /// Cookies of namespaces whose names say nothing, read once each.
    cookies: HashMap<NetnsId, NetnsCookie>,
    /// None where they cannot be watched.
    mounts: Option<MountWatch>,
    /// None if the next scan is to look at every name.
    last_look: Option<LastLook>,
    /// Whether nothing kept a scan from seeing what is there.
    was_all_seen: bool,
}

/// With what every name was looked at for the last time.
struct LastLook {
    config: Arc<Config>,
    foreign: Option<Foreign>,
    /// Scans since then.
    scans: u32,
}

/// A namespace that was declared.
struct Known {
    netns: NetnsId,
    provider: Provider,
    tenant: Tenant,
}

/// A file that is not a namespace yet.
struct Young {
    wait: Duration,
    at: Instant,
}

impl Discovery {
    /// Makes a watcher of the configured directory.
    #[must_use]
    pub fn new(
        config: Arc<ArcSwap<Config>>,
        kernel: Arc<dyn Kernel>,
        netns: NetnsThread,
        registry: RegistryHandle,
    ) -> Self {
        let dir = config.load().discovery.netns_dir.clone();
        Self {
            config,
            dir,
            kernel,
            netns,
            registry,
            known: HashMap::new(),
            young: HashMap::new(),
            cookies: HashMap::new(),
            mounts: MountWatch::start().ok(),
            last_look: None,
            was_all_seen: false,
        }
    }

    /// Watches until the future is dropped. Calls `scanned` once all that the first scan found is served,
    /// or was tried.
    pub async fn run(mut self, scanned: impl FnOnce()) {
        let mut watch = self.watch();
        self.scan(false).await;
        self.registry.settle().await;
        scanned();
        let mut next_scan = Instant::now() + self.scan_interval();
        loop {
            let wake = self
                .young
                .values()
                .map(|young| young.at)
                .chain([next_scan])
                .min();
            let wake = wake.unwrap_or(next_scan);
            tokio::select! {
                seen = watch::next(&mut watch) => match seen {
                    Seen::Changed(name) => self.look_at(&name).await,
                    Seen::Lost => {
                        self.last_look = None;
                        next_scan = Instant::now();
                    }
                    Seen::Ended => watch = None,
                },
                () = sleep_until(wake.into()) => {
                    let now = Instant::now();
                    for name in self.due(now) {
                        self.look_at(&name).await;
                    }
                    if now >= next_scan {
                        let was_watched = watch.is_some();
                        if !was_watched {
                            watch = self.watch();
                        }
                        self.scan(was_watched).await;
                        self.registry.send(Command::Scanned).await;
                        next_scan = now + self.scan_interval();
                    }
                }
            }
        }
    }

    fn scan_interval(&self) -> Duration {
        self.config.load().discovery.scan_interval
    }

    fn watch(&self) -> Option<DirectoryWatch> {
        match DirectoryWatch::start(&self.dir) {
            Ok(watch) => Some(watch),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                debug!(dir = %self.dir.display(), "no namespaces yet");
                None
            }
            Err(error) => {
                warn!(dir = %self.dir.display(), %error,
                    "cannot watch for namespaces; they are found by the scan only");
                None
            }
        }
    }

    fn due(&self, now: Instant) -> Vec<String> {
        let due = self.young.iter().filter(|(_, young)| young.at <= now);
        due.map(|(name, _)| name.clone()).collect()
    }

    /// Looks at every name in the directory and at every name that was there, unless nothing can
    /// have changed. `was_watched` says whether the directory was, all the time since the last scan.
    async fn scan(&mut self, was_watched: bool) {
        let foreign = match foreign(&*self.kernel) {
            Ok(foreign) => Some(foreign),
            Err(error) => {
                warn!(%error, "what others declare is left as it was");
                None
            }
        };
        // Asked before anything is looked at: what comes later is seen by the next scan.
        let are_mounts_same = self.mounts.as_ref().is_some_and(|it| !it.have_changed());
        let config = self.config.load_full();
        if let Some(last) = &mut self.last_look {
            last.scans += 1;
            let is_same = Arc::ptr_eq(&last.config, &config) && last.foreign == foreign;
            if was_watched && are_mounts_same && is_same && last.scans < LOOKS {
                return;
            }
        }
        let entries = std::fs::read_dir(&self.dir);
        self.was_all_seen = entries.is_ok();
        let mut names: HashSet<String> = entries
            .map(|entries| {
                entries
                    .filter_map(Result::ok)
                    .filter_map(|entry| entry.file_name().into_string().ok())
                    .collect()
            })
            .unwrap_or_default();
        names.extend(self.known.keys().cloned());
        for name in names {
            self.look(&name, foreign.as_ref()).await;
        }
        self.last_look = self.was_all_seen.then_some(LastLook {
            config,
            foreign,
            scans: 0,
        });
    }

    async fn look_at(&mut self, name: &str) {
        let was_known = self.known.contains_key(name);
        self.look(name, None).await;
        if !was_known && !self.known.contains_key(name) {
            // None of ours, but it may be what somebody named by hand, or declares in the map.
            self.last_look = None;
            let path = self.dir.join(name);
            self.registry.send(Command::PathChanged(path)).await;
        }
    }

    /// Compares what a name stands for now with what it stood for. What others declare in the map
    /// is read by a scan only: otherwise it is taken to be as it was.
    async fn look(&mut self, name: &str, foreign: Option<&Foreign>) {
        let path = self.dir.join(name);
        if self.is_unchanged(name, &path) {
            return;
        }
        let found = self.found(name, &path, foreign).await;
        if let Some(known) = self.known.get(name) {
            let is_same = found.as_ref().is_some_and(|found| {
                found.netns == known.netns
                    && found.provider == known.provider
                    && found.tenant == known.tenant
            });
            if is_same {
                return;
            }
            // It may be there still, with a name that is none of ours any more.
            let is_there = NetnsId::of_path(&path).is_ok_and(|id| id == known.netns);
            let command = if is_there {
                Command::Withdraw(known.netns, known.provider)
            } else {
                Command::Gone(known.netns)
            };
            self.registry.send(command).await;
            self.known.remove(name);
        }
        if let Some(found) = found {
            let Declaration {
                netns,
                provider,
                tenant,
                ..
            } = found;
            self.known.insert(
                name.to_owned(),
                Known {
                    netns,
                    provider,
                    tenant,
                },
            );
            self.registry.send(Command::Declare(found, None)).await;
        }
    }

    /// Whether a name stands for what it stood for: nearly always, and told by one system call.
    fn is_unchanged(&self, name: &str, path: &Path) -> bool {
        self.known.get(name).is_some_and(|known| {
            let config = self.config.load();
            let recognised = config.recognise(name);
            known.provider == Provider::NetnsDir
                && recognised.is_some_and(|recognised| recognised.tenant == known.tenant)
                && NetnsId::of_path(path).is_ok_and(|id| id == known.netns)
        })
    }

    /// What a name stands for now.
    async fn found(
        &mut self,
        name: &str,
        path: &Path,
        foreign: Option<&Foreign>,
    ) -> Option<Declaration> {
        let config = self.config.load_full();
        let recognised = config.recognise(name);
        let may_be_foreign = foreign.is_some_and(|foreign| !foreign.is_empty());
        if recognised.is_none() && !may_be_foreign && !self.known.contains_key(name) {
            return None;
        }
        let namespace = match Netns::open(path) {
            Ok(namespace) => namespace,
            Err(error) => {
                self.note_young(name, path, &error);
                return None;
            }
        };
        self.young.remove(name);
        let declaration = |tenant: Tenant, provider, interfaces| Declaration {
            provider,
            tenant,
            name: name.to_owned(),
            netns: namespace.id(),
            source: Source::Path(path.to_owned()),
            interfaces,
            settings: None,
        };
        if let Some(recognised) = recognised {
            let interfaces = recognised.interfaces.to_vec();
            return Some(declaration(
                recognised.tenant,
                Provider::NetnsDir,
                interfaces,
            ));
        }
        let tenant = if let Some(foreign) = foreign {
            let Some(cookie) = self.cookie(&namespace, path).await else {
                self.was_all_seen = false;
                return None;
            };
            *foreign.get(&cookie)?
        } else {
            let known = self.known.get(name)?;
            let is_same = known.netns == namespace.id() && known.provider == Provider::Map;
            is_same.then_some(known.tenant)?
        };
        let interfaces = config.interfaces.of(tenant.kind).to_vec();
        Some(declaration(tenant, Provider::Map, interfaces))
    }

    /// Plans the next look at a file that is there but is no namespace yet.
    fn note_young(&mut self, name: &str, path: &Path, error: &netns::NetnsError) {
        if !path.exists() {
            self.young.remove(name);
            return;
        }
        let wait = self
            .young
            .get(name)
            .map_or(YOUNG_MIN, |young| young.wait * 2);
        if wait > YOUNG_MAX {
            self.young.remove(name);
            info!(namespace = name, %error, "left out");
            if !matches!(error, netns::NetnsError::NotANamespace { .. }) {
                // Nothing tells when it can be opened.
                self.last_look = None;
            }
            return;
        }
        self.young.insert(
            name.to_owned(),
            Young {
                wait,
                at: Instant::now() + wait,
            },
        );
    }

    async fn cookie(&mut self, namespace: &Netns, path: &Path) -> Option<NetnsCookie> {
        let id = namespace.id();
        if let Some(cookie) = self.cookies.get(&id) {
            return Some(*cookie);
        }
        let inside = Netns::open(path).ok()?;
        let cookie = self
            .netns
            .run(inside, listener::netns_cookie)
            .await
            .ok()?
            .ok()?;
        self.cookies.insert(id, cookie);
        Some(cookie)
    }
}
