//! Passwords that guests post, encrypted for whoever holds the instance's key.
//!
//! They live in this process's memory only: a restart forgets them, a reload of the file does not.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use uuid::Uuid;

use crate::identity::Tenant;

/// What nova stores at most: four chunks of 255 bytes.
const MAX_BYTES: usize = 4 * 255;

/// Whose password: an instance counts once for each tenant it is declared in, so that no tenant
/// can ever read what came through another.
pub(super) type Owner = (Tenant, Uuid);

/// The passwords posted so far.
#[derive(Default)]
pub(super) struct Passwords {
    posted: Mutex<HashMap<Owner, Bytes>>,
}

/// Why a password was not stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// There is one already.
    Posted,
    /// Longer than nova stores.
    TooLong,
    /// Not UTF-8.
    NotText,
}

impl Passwords {
    /// The password of `owner`; empty before one was posted.
    pub(super) fn read(&self, owner: &Owner) -> Bytes {
        self.lock().get(owner).cloned().unwrap_or_default()
    }

    /// Stores the password of `owner`, once. An empty one leaves things as they are.
    pub(super) fn post(&self, owner: Owner, password: &Bytes) -> Result<(), Refused> {
        let mut posted = self.lock();
        if posted.contains_key(&owner) {
            return Err(Refused::Posted);
        }
        if password.len() > MAX_BYTES {
            return Err(Refused::TooLong);
        }
        if std::str::from_utf8(password).is_err() {
            return Err(Refused::NotText);
        }
        if !password.is_empty() {
            // A copy: the bytes may be a slice of a much larger request buffer.
            posted.insert(owner, Bytes::copy_from_slice(password));
        }
        Ok(())
    }

    /// Forgets the passwords of all owners but those `keep` holds of.
    pub(super) fn retain(&self, keep: impl Fn(&Owner) -> bool) {
        self.lock().retain(|owner, _| keep(owner));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Owner, Bytes>> {
        // A map of whole values is sound whatever a panicking holder was doing.
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
