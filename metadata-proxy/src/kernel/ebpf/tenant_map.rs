//! The `TENANTS` map, typed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::{
    Pod,
    maps::{HashMap, MapData, MapError},
};
use metadata_proxy_common::{TenantKey, TenantKind, TenantValue};

use super::chain;
use crate::{
    identity::Tenant,
    kernel::{KernelError, NetnsCookie},
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

    /// Cookies of the entries that the agent wrote.
    pub(super) fn of_agent(&self) -> Vec<NetnsCookie> {
        self.entries(TenantValue::is_of_agent)
            .map(|(cookie, _)| cookie)
            .collect()
    }

    /// Entries that others wrote.
    pub(super) fn foreign(&self) -> Vec<(NetnsCookie, Tenant)> {
        self.entries(|value| !value.is_of_agent())
            .filter_map(|(cookie, value)| Some((cookie, tenant_of(value)?)))
            .collect()
    }

    /// Whether others wrote anything, right or wrong.
    pub(super) fn has_foreign(&self) -> bool {
        self.entries(|value| !value.is_of_agent()).next().is_some()
    }

    fn entries(
        &self,
        wanted: impl Fn(&TenantValue) -> bool,
    ) -> impl Iterator<Item = (NetnsCookie, TenantValue)> {
        let entries: Vec<_> = self
            .lock()
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, value)| wanted(&value.0))
            .map(|(key, value)| (NetnsCookie(key.0.netns_cookie), value.0))
            .collect();
        entries.into_iter()
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
