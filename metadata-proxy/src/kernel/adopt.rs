//! Pinned objects: what an earlier process left is adopted, or removed if it does not fit.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::Path,
};

use aya::{maps::MapData, programs::links::FdLink};
use metadata_proxy_common::ABI_VERSION;
use tracing::{debug, info, warn};

use super::{KernelError, NetnsCookie, commands};

/// What a directory is called that says which layout the maps beside it have.
const LAYOUT_PREFIX: &str = "layout-";

const LINK_PREFIX: &str = "steer-";

/// File name of the pinned link of one device.
pub(super) fn link_name(cookie: NetnsCookie, ifindex: u32) -> String {
    format!("{LINK_PREFIX}{cookie}-{ifindex}")
}

/// Of which namespace and device a pinned link is; `None` if the name is none of [`link_name`].
fn link_of(name: &str) -> Option<(NetnsCookie, u32)> {
    let (cookie, index) = name.strip_prefix(LINK_PREFIX)?.split_once('-')?;
    Some((NetnsCookie(cookie.parse().ok()?), index.parse().ok()?))
}

/// The links that are pinned in a directory.
pub(super) fn pinned_links(dir: &Path) -> io::Result<Vec<(NetnsCookie, u32)>> {
    let names = fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| link_of(&name)).collect())
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

/// Detaches a link, and removes its pin, if it is there. When this returns, no frame meets its
/// program any more: closing and unpinning alone take effect some time later, by the kernel's
/// deferred work.
pub(super) fn detach(link: Option<OwnedFd>, path: &Path) {
    let link = link.map_or_else(|| commands::open_pinned(path), Ok);
    let detached = link.and_then(|link| commands::detach_link(link.as_fd()));
    if let Err(error) = detached
        && error.kind() != io::ErrorKind::NotFound
    {
        // Gone with its device, as a rule.
        debug!(path = %path.display(), %error, "cannot detach a link; its pin is removed");
    }
    unpin(path);
}

/// A link, as the kernel has it.
pub(super) struct LinkState {
    /// The program's number.
    pub(super) program: u32,
    /// Whether it is still attached to something.
    pub(super) is_attached: bool,
}

/// Looks at a pinned link, from any namespace; `None` if there is none.
pub(super) fn link_at(path: &Path) -> Option<LinkState> {
    state_of(&commands::open_pinned(path).ok()?)
}

/// Looks at a link, from any namespace; `None` if the kernel does not say.
pub(super) fn state_of(link: &OwnedFd) -> Option<LinkState> {
    /// `BPF_LINK_TYPE_TCX` (enum `bpf_link_type`).
    const TCX: u32 = 11;
    let info = commands::link_info(link.as_fd()).ok()?;
    // Index of the device, or id of the cgroup: zero once the link is detached. An index is four
    // bytes, in the machine's order; what follows it is the attach type.
    let target = if info.kind == TCX {
        let [a, b, c, d, ..] = info.target.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d]).into()
    } else {
        info.target
    };
    Some(LinkState {
        program: info.program,
        is_attached: target != 0,
    })
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

/// Removes pinned maps of another version of the contract, though they may be as large as ours.
///
/// # Errors
/// [`KernelError::File`] if one cannot be removed.
pub(super) fn remove_other_layouts(dir: &Path, maps: &[&Path]) -> Result<(), KernelError> {
    if dir.join(layout_name()).is_dir() {
        return Ok(());
    }
    for path in maps {
        match fs::remove_file(path) {
            Ok(()) => {
                info!(path = %path.display(), "replacing a pinned map of another version");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(KernelError::File {
                    what: "cannot remove the outdated map",
                    path: path.to_path_buf(),
                    source,
                });
            }
        }
    }
    Ok(())
}

/// Says which version of the contract the pinned maps are of. A directory, since a bpffs takes no
/// files.
///
/// # Errors
/// [`KernelError::File`].
pub(super) fn mark_layout(dir: &Path) -> Result<(), KernelError> {
    let path = dir.join(layout_name());
    if path.is_dir() {
        return Ok(());
    }
    remove_layout_marks(dir);
    let made = fs::DirBuilder::new().mode(0o700).create(&path);
    made.map_err(|source| KernelError::File {
        what: "cannot make the directory",
        path,
        source,
    })
}

/// Removes what [`mark_layout`] made, of any version.
pub(super) fn remove_layout_marks(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten();
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        if name
            .to_str()
            .is_some_and(|name| name.starts_with(LAYOUT_PREFIX))
        {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn layout_name() -> String {
    format!("{LAYOUT_PREFIX}{ABI_VERSION}")
}

/// Removes pinned links of namespaces that are no tenants.
pub(super) fn remove_orphan_links(dir: &Path, is_tenant: impl Fn(NetnsCookie) -> bool) {
    for (cookie, index) in pinned_links(dir).unwrap_or_default() {
        if !is_tenant(cookie) {
            unpin(&dir.join(link_name(cookie, index)));
        }
    }
}
