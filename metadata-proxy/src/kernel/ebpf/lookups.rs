//! The fallback engine: a socket lookup program in each tenant namespace.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::BorrowedFd,
    sync::{Mutex, OnceLock},
};

use aya::{
    EbpfLoader,
    maps::{MapData, SockMap},
    programs::{SkLookup, sk_lookup::SkLookupLink},
};
use metadata_proxy_common::names;
use tracing::warn;

use super::{
    KernelError, KernelOptions, NetnsCookie, OBJECT, chain, loader, lock, program, take_map,
};

/// The lookup programs that are attached.
#[derive(Default)]
pub(super) struct Lookups {
    /// Each namespace's link. It holds what it needs, which is the program's instance and the map with the
    /// listener; it does not hold the namespace.
    links: Mutex<HashMap<NetnsCookie, SkLookupLink>>,
    /// What loads the instances: made once, because that takes most of the time.
    loader: OnceLock<Mutex<EbpfLoader<'static>>>,
}

impl Lookups {
    /// Has connections to the metadata service, in the namespace the calling thread is in, come to this
    /// listener.
    pub(super) fn attach(
        &self,
        options: &KernelOptions,
        cookie: NetnsCookie,
        listener: BorrowedFd<'_>,
    ) -> Result<(), KernelError> {
        let error = |reason: String| KernelError::Attach {
            device: "socket lookup".to_owned(),
            reason,
        };
        let loader = self.loader.get_or_init(|| {
            let mut loader = loader(options);
            loader
                .map_max_entries(names::TENANTS, 1)
                .map_pin_path(names::OUTCOMES, options.bpffs_dir.join(names::OUTCOMES));
            Mutex::new(loader)
        });
        let mut instance = lock(loader)
            .load(OBJECT)
            .map_err(|e| KernelError::Load(chain(&e)))?;
        let mut listeners: SockMap<MapData> = take_map(&mut instance, names::LISTENERS)?;
        let listener = listener
            .try_clone_to_owned()
            .map_err(|e| error(e.to_string()))?;
        listeners
            .set(0, &listener, 0)
            .map_err(|e| error(chain(&e)))?;
        let lookup: &mut SkLookup = program(&mut instance, names::LOOKUP)?;
        lookup.load().map_err(|e| error(chain(&e)))?;
        let netns = File::open("/proc/thread-self/ns/net").map_err(|e| error(e.to_string()))?;
        let link = lookup
            .attach(netns)
            .and_then(|link| lookup.take_link(link))
            .map_err(|e| error(chain(&e)))?;
        lock(&self.links).insert(cookie, link);
        Ok(())
    }

    /// Detaches it.
    pub(super) fn detach(&self, cookie: NetnsCookie) {
        lock(&self.links).remove(&cookie);
    }
}

impl Drop for Lookups {
    fn drop(&mut self) {
        if !lock(&self.links).is_empty() {
            warn!("the fallback engine's lookups end with the process");
        }
    }
}
