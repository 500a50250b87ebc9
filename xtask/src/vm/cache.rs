//! The folder of downloads and of whatever a run writes; git ignores it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::workspace;

/// The folder, ours until this is dropped: two runs at once would fetch the same things twice, and
/// gain nothing on few cores.
pub(super) struct Cache {
    root: PathBuf,
    _lock: File,
}

impl Cache {
    /// Waits until no other run has it.
    pub(super) fn claim() -> Result<Self> {
        let root = workspace::root().join(".cache/vm");
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        let path = root.join("lock");
        let lock = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("waiting for another run to end: it has {}", path.display());
                lock.lock().context("waiting for the lock")?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
        let cache = Self { root, _lock: lock };
        cache.remove_scratch()?;
        Ok(cache)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where consoles are kept.
    pub(super) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// A folder for what no later run needs.
    pub(super) fn scratch(&self) -> Result<PathBuf> {
        let scratch = self.root.join("scratch");
        fs::create_dir_all(&scratch).with_context(|| format!("creating {}", scratch.display()))?;
        Ok(scratch)
    }

    fn remove_scratch(&self) -> Result<()> {
        let scratch = self.root.join("scratch");
        if scratch.exists() {
            fs::remove_dir_all(&scratch)
                .with_context(|| format!("removing {}", scratch.display()))?;
        }
        Ok(())
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        if let Err(error) = self.remove_scratch() {
            eprintln!("{error:#}");
        }
    }
}
