//! Pinned objects: what an earlier process left is adopted, or removed if it does not fit.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::{maps::MapData, programs::links::FdLink};
use metadata_proxy_common::ABI_VERSION;
use tracing::{debug, info, warn};

use super::{KernelError, NetnsCookie};

/// What a directory is called that says which layout the maps beside it have.
const LAYOUT_PREFIX: &str = "layout-";

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

/// Detaches a pinned link and removes its pin, if it is there. When this returns, no frame meets its
/// program any more: the removal of a pin alone takes effect some time later, by the kernel's
/// deferred work.
pub(super) fn detach_pinned(path: &Path) {
    if let Err(error) = detach(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        // Gone with its device, as a rule.
        debug!(path = %path.display(), %error, "cannot detach a link; its pin is removed");
    }
    unpin(path);
}

/// `BPF_OBJ_GET` and `BPF_LINK_DETACH` (enum `bpf_cmd`), which aya does not wrap.
fn detach(path: &Path) -> io::Result<()> {
    const OBJ_GET: libc::c_long = 7;
    const LINK_DETACH: libc::c_long = 34;
    /// What the two commands want of `union bpf_attr`.
    #[derive(Default)]
    #[repr(C)]
    struct ObjGet {
        pathname: u64,
        fd: u32,
        file_flags: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut get = ObjGet {
        pathname: name.as_ptr() as u64,
        ..ObjGet::default()
    };
    // SAFETY: the attribute is as long as said, and its pointer leads to a string that outlives the
    // call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, &raw mut get, size_of_val(&get)) };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it to us.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut fd = link.as_raw_fd();
    // SAFETY: the attribute is one descriptor, and as long as said.
    let done = unsafe { libc::syscall(libc::SYS_bpf, LINK_DETACH, &raw mut fd, size_of_val(&fd)) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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

/// Pins a map again if another one, or none, is pinned at its path.
///
/// # Errors
/// [`KernelError::File`].
pub(super) fn repin(map: &MapData, path: &Path) -> Result<(), KernelError> {
    let id_of = |map: &MapData| map.info().map(|info| info.id()).ok();
    let there = MapData::from_pin(path).ok().and_then(|map| id_of(&map));
    if there.is_some() && there == id_of(map) {
        return Ok(());
    }
    unpin(path);
    map.pin(path).map_err(|e| KernelError::File {
        what: "cannot pin a map at",
        path: path.to_owned(),
        source: io::Error::other(super::ebpf::chain(&e)),
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
    fs::create_dir(&path).map_err(|source| KernelError::File {
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
