//! The `TENANTS` map, typed.

use std::{
    os::fd::AsFd as _,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Pod,
    maps::{HashMap, IterableMap as _, MapData, MapError},
};
use metadata_proxy_common::{TenantKey, TenantKind, TenantValue};

use super::chain;
use crate::{
    identity::Tenant,
    kernel::{KernelError, NetnsCookie, commands},
};

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Key(TenantKey);
// SAFETY: an integer; every bit pattern is a value, and there is no padding.
unsafe impl Pod for Key {}

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Value(TenantValue);
// SAFETY: bytes only; every bit pattern is a value, and padding is a named field.
unsafe impl Pod for Value {}

const NO_KEY: Key = Key(TenantKey { netns_cookie: 0 });
const NO_VALUE: Value = Value(TenantValue {
    uuid: [0; 16],
    kind: 0,
    writer: 0,
    padding: [0; 6],
});

/// One entry of the map.
pub(super) struct Entry {
    pub(super) cookie: NetnsCookie,
    /// `None` where somebody wrote a kind that there is not.
    pub(super) tenant: Option<Tenant>,
    pub(super) is_of_agent: bool,
}

/// Which namespace belongs to which tenant, in the kernel.
pub(super) struct TenantMap {
    map: Mutex<HashMap<MapData, Key, Value>>,
    max: u32,
}

impl TenantMap {
    pub(super) const fn new(map: HashMap<MapData, Key, Value>, max: u32) -> Self {
        Self {
            map: Mutex::new(map),
            max,
        }
    }

    pub(super) fn declare(&self, cookie: NetnsCookie, tenant: Tenant) -> Result<(), KernelError> {
        let mut map = self.lock();
        // What others wrote is theirs: the same serves as well, another is not for us to overrule.
        if let Some(theirs) = foreign_entry(&map, cookie) {
            return match tenant_of(theirs) {
                Some(found) if found == tenant => Ok(()),
                found => Err(KernelError::TenantsTaken {
                    wanted: tenant,
                    found: found.map_or_else(|| "nothing known".to_owned(), |it| it.to_string()),
                }),
            };
        }
        let value = Value(TenantValue::by_agent(tenant.kind, tenant.id.into_bytes()));
        map.insert(key(cookie), value, 0).map_err(|e| {
            if errno_of(&e) == Some(libc::E2BIG) {
                KernelError::TenantsFull { max: self.max }
            } else {
                KernelError::Tenants {
                    what: "a declaration",
                    reason: chain(&e),
                }
            }
        })
    }

    pub(super) fn withdraw(&self, cookie: NetnsCookie) -> Result<(), KernelError> {
        let mut map = self.lock();
        if foreign_entry(&map, cookie).is_some() {
            return Ok(());
        }
        match map.remove(&key(cookie)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(e) if errno_of(&e) == Some(libc::ENOENT) => Ok(()),
            Err(e) => Err(KernelError::Tenants {
                what: "a withdrawal",
                reason: chain(&e),
            }),
        }
    }

    pub(super) fn tenant(&self, cookie: NetnsCookie) -> Result<Option<Tenant>, KernelError> {
        match self.lock().get(&key(cookie), 0) {
            Ok(Value(value)) => Ok(tenant_of(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(KernelError::Tenants {
                what: "a look-up",
                reason: chain(&e),
            }),
        }
    }

    /// Every entry.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, KernelError> {
        let mut entries = Vec::new();
        self.for_each(|entry| entries.push(entry))?;
        Ok(entries)
    }

    /// Tells every entry.
    pub(super) fn for_each(&self, mut tell: impl FnMut(Entry)) -> Result<(), KernelError> {
        /// Entries read at once: many times what one bucket has, which the kernel reads as a whole.
        const BATCH: usize = 256;
        let map = self.lock();
        let (mut keys, mut values) = ([NO_KEY; BATCH], [NO_VALUE; BATCH]);
        let mut position = None;
        loop {
            let (count, is_all) = commands::lookup_batch(
                map.map().fd().as_fd(),
                &mut position,
                &mut keys,
                &mut values,
            )
            .map_err(|error| KernelError::Tenants {
                what: "a reading of all",
                reason: error.to_string(),
            })?;
            for (key, value) in keys.iter().zip(&values).take(count) {
                tell(Entry {
                    cookie: NetnsCookie(key.0.netns_cookie),
                    tenant: tenant_of(value.0),
                    is_of_agent: value.0.is_of_agent(),
                });
            }
            if is_all {
                return Ok(());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MapData, Key, Value>> {
        // Nothing panics while it holds this; if it did, the map would still be whole.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The entry of a namespace, if somebody else wrote it.
fn foreign_entry(map: &HashMap<MapData, Key, Value>, cookie: NetnsCookie) -> Option<TenantValue> {
    let Value(value) = map.get(&key(cookie), 0).ok()?;
    (!value.is_of_agent()).then_some(value)
}

const fn key(cookie: NetnsCookie) -> Key {
    Key(TenantKey {
        netns_cookie: cookie.0,
    })
}

/// Decodes an entry; `None` if its kind is none, as in an entry that somebody wrote wrongly.
fn tenant_of(value: TenantValue) -> Option<Tenant> {
    let kind = TenantKind::from_byte(value.kind)?;
    Some(Tenant {
        kind,
        id: uuid::Uuid::from_bytes(value.uuid),
    })
}

fn errno_of(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}
