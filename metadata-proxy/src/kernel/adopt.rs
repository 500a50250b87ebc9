//! Pinned objects: what an earlier process left is adopted, or removed if it does not fit.

use std::{fs, io, path::Path};

use aya::{maps::MapData, programs::links::FdLink};
use tracing::{debug, info, warn};

use super::{KernelError, NetnsCookie};

const LINK_PREFIX: &str = "steer-";

/// File name of the pinned link of one device.
pub(super) fn link_name(cookie: NetnsCookie, ifindex: u32) -> String {
    format!("{LINK_PREFIX}{cookie}-{ifindex}")
}

fn cookie_of(name: &str) -> Option<NetnsCookie> {
    name.strip_prefix(LINK_PREFIX)?
        .split_once('-')?
        .0
        .parse()
        .ok()
        .map(NetnsCookie)
}

/// Pins a link, in place of one that is there: the new one is in effect before the old one goes.
pub(super) fn pin_link(link: FdLink, path: &Path) -> Result<(), KernelError> {
    unpin(path);
    link.pin(path).map(drop).map_err(|e| KernelError::File {
        what: "cannot pin a link at",
        path: path.to_owned(),
        source: io::Error::other(super::ebpf::chain(&e)),
    })
}

/// Removes a pin, if it is there.
pub(super) fn unpin(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(path = %path.display(), %error, "cannot remove a pin");
    }
}

/// Removes a pinned map whose layout is not ours, so that loading makes a new one.
///
/// # Errors
/// [`KernelError::File`] if it cannot be removed.
pub(super) fn remove_unfit_map(
    path: &Path,
    key_size: usize,
    value_size: usize,
    max_entries: u32,
) -> Result<(), KernelError> {
    let Ok(map) = MapData::from_pin(path) else {
        return Ok(());
    };
    let fits = map.info().is_ok_and(|info| {
        info.key_size() as usize == key_size
            && info.value_size() as usize == value_size
            && info.max_entries() == max_entries
    });
    if fits {
        debug!(path = %path.display(), "took over a pinned map");
        return Ok(());
    }
    info!(path = %path.display(), "replacing a pinned map of another layout or size");
    fs::remove_file(path).map_err(|source| KernelError::File {
        what: "cannot remove the outdated map",
        path: path.to_owned(),
        source,
    })
}

/// Removes every pinned link of one namespace.
pub(super) fn remove_links_of(dir: &Path, cookie: NetnsCookie) {
    remove_links(dir, |of| of == cookie);
}

/// Removes pinned links of namespaces that are no tenants.
pub(super) fn remove_orphan_links(dir: &Path, is_tenant: impl Fn(NetnsCookie) -> bool) {
    remove_links(dir, |of| !is_tenant(of));
}

fn remove_links(dir: &Path, unwanted: impl Fn(NetnsCookie) -> bool) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        if entry
            .file_name()
            .to_str()
            .and_then(cookie_of)
            .is_some_and(&unwanted)
        {
            unpin(&entry.path());
        }
    }
}
