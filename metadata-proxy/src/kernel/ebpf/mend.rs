//! Puts back what all tenants share: the bpffs, the pins of the maps, the hooks on the cgroup; and the
//! pins of links. Finds links that are attached no more.

use std::{
    collections::HashSet,
    fs, io,
    ops::Bound,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use aya::{maps::MapData, programs::CgroupSockAddr};

use super::{CGROUP_HOOKS, EbpfKernel, chain, lock, program};
use crate::kernel::{KernelError, NetnsCookie, Repair, adopt, commands, mounts};

/// Opens the maps that were just pinned, so that they can be pinned again.
pub(super) fn pinned(paths: [PathBuf; 2]) -> Result<[(PathBuf, MapData); 2], KernelError> {
    let open = |path: &PathBuf| MapData::from_pin(path).map_err(|e| KernelError::Load(chain(&e)));
    let [first, second] = paths;
    let maps = (open(&first)?, open(&second)?);
    Ok([(first, maps.0), (second, maps.1)])
}

/// How long ago a directory's last change must be before it is relied upon that another one would
/// bear another time: far longer than a tick of the kernel's clock.
const TICKS: Duration = Duration::from_secs(1);

/// How many connect hooks are looked at in turn, where nothing says that one is off.
const HOOKS_AT_ONCE: usize = 2;

/// Which directory it is and when it was last changed: names came to it, went, or were replaced. As
/// long as it is the same, what was found there is there still.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// That of a directory that has not been changed just now.
    fn of(dir: &Path) -> io::Result<Option<Self>> {
        let metadata = fs::metadata(dir)?;
        let has_settled = SystemTime::now()
            .duration_since(metadata.modified()?)
            .is_ok_and(|since| since >= TICKS);
        Ok(has_settled.then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        }))
    }
}

impl EbpfKernel {
    pub(super) fn mend_shared(&self) -> Result<Vec<Repair>, KernelError> {
        let pins = self.mend_maps()?;
        let hooks = match pins {
            // Then none has lost its pin, and one that was detached may wait for its turn.
            None => {
                let turn = self.hook_turn.fetch_add(1, Ordering::Relaxed);
                let mut turns = CGROUP_HOOKS.chunks(HOOKS_AT_ONCE);
                let turn = turn % turns.len();
                turns.nth(turn).unwrap_or_default()
            }
            Some(_) => &CGROUP_HOOKS[..],
        };
        let mut repairs = pins.unwrap_or_default();
        if self.are_hooks_off(hooks)? {
            let cgroup = lock(&self.cgroup).clone();
            if let Some(cgroup) = cgroup {
                self.attach_cgroup_hooks(&cgroup)?;
                repairs.push(Repair::Hook);
            }
        }
        Ok(repairs)
    }

    /// Puts back the bpffs and the pins of the maps; `None` if their directory is as it was.
    fn mend_maps(&self) -> Result<Option<Vec<Repair>>, KernelError> {
        let dir = &self.options.bpffs_dir;
        let stamp = Stamp::of(dir).ok().flatten();
        let mut whole = lock(&self.maps_whole);
        if stamp.is_some() && *whole == stamp {
            return Ok(None);
        }
        let mut repairs = Vec::new();
        if !dir.is_dir() || mounts::is_off_bpffs(dir) {
            mounts::ensure_bpffs(dir)?;
            repairs.push(Repair::Bpffs);
        }
        for (path, map) in &self.pins {
            let id = |map: &MapData| map.info().map(|info| info.id()).ok();
            let is_there = MapData::from_pin(path).is_ok_and(|there| id(&there) == id(map));
            if !is_there {
                adopt::unpin(path);
                map.pin(path).map_err(|e| KernelError::Load(chain(&e)))?;
                repairs.push(Repair::Map);
            }
        }
        // What was put back has changed the directory.
        *whole = stamp.filter(|_| repairs.is_empty());
        Ok(Some(repairs))
    }

    pub(super) fn find_lost_links(&self, shares: usize) -> Vec<NetnsCookie> {
        let links = lock(&self.links);
        let mut seen = lock(&self.seen);
        let following = links.range((Bound::Excluded(*seen), Bound::Unbounded));
        let turns = following
            .chain(links.iter())
            .take(links.len().div_ceil(shares));
        let mut lost = Vec::new();
        for (of, link) in turns {
            *seen = *of;
            let is_there = adopt::state_of(link)
                .is_some_and(|link| link.is_attached && link.program == self.steer_id);
            if !is_there {
                lost.push(of.0);
            }
        }
        lost
    }

    pub(super) fn mend_link_pins(&self) -> Result<usize, KernelError> {
        let dir = &self.options.bpffs_dir;
        let stamp = Stamp::of(dir).ok().flatten();
        let mut whole = lock(&self.links_whole);
        if stamp.is_some() && *whole == stamp {
            return Ok(0);
        }
        // One that is gone is put back by the other repair.
        let pinned = adopt::pinned_links(dir).unwrap_or_default();
        let links = lock(&self.links);
        for (cookie, index) in &pinned {
            let mut of_cookie = links.range((*cookie, 0)..=(*cookie, u32::MAX));
            // Those of namespaces that are no tenants are looked after when that is known.
            if !links.contains_key(&(*cookie, *index)) && of_cookie.next().is_some() {
                adopt::unpin(&self.link_pin(*cookie, *index));
            }
        }
        let pinned: HashSet<_> = pinned.into_iter().collect();
        let mut mended = 0;
        for ((cookie, index), link) in links.iter().filter(|(of, _)| !pinned.contains(of)) {
            let path = self.link_pin(*cookie, *index);
            commands::pin(link.as_fd(), &path).map_err(|source| KernelError::File {
                what: "cannot pin a link at",
                path,
                source,
            })?;
            mended += 1;
        }
        // What was pinned or taken away has changed the directory.
        *whole = stamp;
        Ok(mended)
    }

    /// Whether one of these hooks is attached no more. Then all are attached anew: an address is only
    /// rewritten while it can be restored.
    fn are_hooks_off(&self, hooks: &[&str]) -> Result<bool, KernelError> {
        if lock(&self.cgroup).is_none() {
            return Ok(false);
        }
        let mut programs = lock(&self.programs);
        for name in hooks {
            let hook: &mut CgroupSockAddr = program(&mut programs, name)?;
            let ours = hook.info().map(|info| info.id()).ok();
            let is_on = adopt::link_at(&self.cgroup_pin(name))
                .is_some_and(|link| link.is_attached && Some(link.program) == ours);
            if !is_on {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
