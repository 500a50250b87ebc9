//! Pinned objects: what an earlier process left is adopted, or removed if it does not fit.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
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

/// `BPF_LINK_DETACH` (enum `bpf_cmd`), which aya does not wrap.
fn detach(path: &Path) -> io::Result<()> {
    const LINK_DETACH: libc::c_long = 34;
    let link = object_at(path)?;
    let mut fd = link.as_raw_fd();
    // SAFETY: the attribute is one descriptor, and as long as said.
    let done = unsafe { libc::syscall(libc::SYS_bpf, LINK_DETACH, &raw mut fd, size_of_val(&fd)) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A pinned link.
pub(super) struct PinnedLinkState {
    /// The program's number.
    pub(super) program: u32,
    /// Whether it is still attached to something.
    pub(super) is_attached: bool,
}

/// Looks at a pinned link, from any namespace; `None` if there is none.
pub(super) fn link_at(path: &Path) -> Option<PinnedLinkState> {
    const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    /// The beginning of `struct bpf_link_info`; the kernel fills no more than it is given.
    #[derive(Default)]
    #[repr(C)]
    struct LinkInfo {
        kind: u32,
        id: u32,
        program: u32,
        padding: u32,
        /// Index of the device, or id of the cgroup: zero once the link is detached.
        target: u64,
    }
    #[derive(Default)]
    #[repr(C)]
    struct Query {
        fd: u32,
        info_len: u32,
        info: u64,
    }
    /// `BPF_LINK_TYPE_TCX` (enum `bpf_link_type`).
    const TCX: u32 = 11;
    let link = object_at(path).ok()?;
    let mut info = LinkInfo::default();
    let mut query = Query {
        fd: link.as_raw_fd().cast_unsigned(),
        info_len: u32::try_from(size_of_val(&info)).ok()?,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the attribute is as long as said, and its pointer leads to `info`, which is as long
    // as said and outlives the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            OBJ_GET_INFO_BY_FD,
            &raw mut query,
            size_of_val(&query),
        )
    };
    // A device's index is four bytes, in the machine's order; what follows is the attach type.
    let target = if info.kind == TCX {
        let [a, b, c, d, ..] = info.target.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d]).into()
    } else {
        info.target
    };
    (done == 0).then_some(PinnedLinkState {
        program: info.program,
        is_attached: target != 0,
    })
}

/// `BPF_OBJ_GET` (enum `bpf_cmd`): opens what is pinned, whatever it is.
fn object_at(path: &Path) -> io::Result<OwnedFd> {
    const OBJ_GET: libc::c_long = 7;
    /// What the command wants of `union bpf_attr`.
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
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
