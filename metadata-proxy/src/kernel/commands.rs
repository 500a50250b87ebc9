//! Commands of `bpf(2)` that aya does not wrap.

use std::{
    ffi::{CString, c_long},
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::Pod;

// enum `bpf_cmd` (`linux/bpf.h`).
const OBJ_PIN: c_long = 6;
const OBJ_GET: c_long = 7;
const OBJ_GET_INFO_BY_FD: c_long = 15;
const MAP_LOOKUP_BATCH: c_long = 24;
const LINK_GET_FD_BY_ID: c_long = 30;
const LINK_DETACH: c_long = 34;

/// The beginning of `struct bpf_link_info`; the kernel fills no more than it is given.
#[derive(Default)]
#[repr(C)]
pub(super) struct LinkInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) program: u32,
    padding: u32,
    /// What it is attached to, by kind.
    pub(super) target: u64,
}

/// What the commands for pins want of `union bpf_attr`.
#[repr(C)]
struct PinAttributes {
    pathname: u64,
    fd: RawFd,
    file_flags: u32,
}

/// Pins something where nothing is yet.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PinAttributes {
        pathname: name.as_ptr() as u64,
        fd: object.as_raw_fd(),
        file_flags: 0,
    };
    // SAFETY: the pointer leads to a string that outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attributes) }.map(drop)
}

/// Opens what is pinned, whatever it is.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PinAttributes {
        pathname: name.as_ptr() as u64,
        fd: 0,
        file_flags: 0,
    };
    // SAFETY: the pointer leads to a string that outlives the call, and a descriptor that comes of it
    // is ours.
    unsafe { opened(OBJ_GET, &mut attributes) }
}

/// Opens the link of that number.
pub(super) fn open_link(id: u32) -> io::Result<OwnedFd> {
    /// What the command wants of `union bpf_attr`, here and below.
    #[repr(C)]
    struct Attributes {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let mut attributes = Attributes {
        id,
        next_id: 0,
        open_flags: 0,
    };
    // SAFETY: there are no pointers, and a descriptor that comes of it is ours.
    unsafe { opened(LINK_GET_FD_BY_ID, &mut attributes) }
}

/// Detaches a link from whatever it is attached to.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut fd = link.as_raw_fd();
    // SAFETY: there are no pointers.
    unsafe { bpf(LINK_DETACH, &mut fd) }.map(drop)
}

/// What the kernel says of a link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    #[repr(C)]
    struct Attributes {
        fd: RawFd,
        info_len: u32,
        info: u64,
    }
    let mut info = LinkInfo::default();
    let mut attributes = Attributes {
        fd: link.as_raw_fd(),
        info_len: length(size_of_val(&info))?,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the pointer leads to `info`, which is as long as said and outlives the call.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attributes)? };
    Ok(info)
}

/// Entries of a hash map, as many as fit into `keys` and `values`, from where the last call for it
/// left `position`, which is `None` at first. Says how many there were, and whether that was all.
pub(super) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    position: &mut Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, bool)> {
    #[repr(C)]
    struct Attributes {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: RawFd,
        elem_flags: u64,
        flags: u64,
    }
    let from = *position;
    let mut to = 0_u32;
    let mut attributes = Attributes {
        in_batch: from
            .as_ref()
            .map_or(0, |from| std::ptr::from_ref(from) as u64),
        out_batch: (&raw mut to) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: length(keys.len().min(values.len()))?,
        map_fd: map.as_raw_fd(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the pointers lead to what outlives the call: a hash map's position is four bytes, and
    // there is room for `count` keys and values, any bytes of which are some.
    let done = unsafe { bpf(MAP_LOOKUP_BATCH, &mut attributes) };
    let is_all = match done {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    *position = Some(to);
    Ok((attributes.count as usize, is_all))
}

fn length(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(io::Error::other)
}

/// # Safety
/// As [`bpf`]; and what the command returns is a new descriptor.
unsafe fn opened<T>(command: c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's.
    unsafe { bpf(command, attributes).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// # Safety
/// `attributes` is what the command wants of `union bpf_attr`, and its pointers lead where it may.
unsafe fn bpf<T>(command: c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: the attributes are as long as said; the rest is the caller's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    match RawFd::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
