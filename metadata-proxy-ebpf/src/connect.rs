//! The cgroup hooks: a process of a tenant namespace dials the metadata address.
//!
//! What was dialled is recorded before it is rewritten; what cannot be recorded is not rewritten.
//! The agent's own traffic is exempt by construction: its namespace is never in `TENANTS`.

use aya_ebpf::programs::SockAddrContext;
use metadata_proxy_common::{
    METADATA_PORT, METADATA_V4, METADATA_V6, NEUTRON_MARK, Outcome, TenantKey,
};

use crate::{
    globals,
    maps::{DIALLED, Dialled, TENANTS},
    raw::{self, SockAddr as _},
};

const LOOPBACK_V4: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
const LOOPBACK_V6: [u32; 4] = [0, 0, 0, 1_u32.to_be()];
const METADATA_V4_WORD: u32 = u32::from_ne_bytes(METADATA_V4);
const METADATA_V6_WORDS: [u32; 4] = raw::words(METADATA_V6);
const MAPPED_PREFIX: [u32; 3] = [0, 0, 0xffff_u32.to_be()];

/// Rewrites an IPv4 connect to the metadata address; `None` if it goes elsewhere.
#[inline(always)]
pub(crate) fn try_connect4(ctx: &SockAddrContext) -> Option<Outcome> {
    if ctx.address_v4() != METADATA_V4_WORD || !dials_metadata_port(ctx) {
        return None;
    }
    if let Err(outcome) = prepare(ctx, [METADATA_V4_WORD, 0, 0, 0]) {
        return Some(outcome);
    }
    ctx.set_address_v4(LOOPBACK_V4);
    ctx.set_port(globals::listener_port());
    Some(Outcome::ConnectRewritten)
}

/// Rewrites an IPv6 connect to the metadata address, native or IPv4-mapped.
#[inline(always)]
pub(crate) fn try_connect6(ctx: &SockAddrContext) -> Option<Outcome> {
    let address = ctx.address_v6();
    let loopback = if address == METADATA_V6_WORDS {
        LOOPBACK_V6
    } else if address[..3] == MAPPED_PREFIX && address[3] == METADATA_V4_WORD {
        [0, 0, MAPPED_PREFIX[2], LOOPBACK_V4]
    } else {
        return None;
    };
    if !dials_metadata_port(ctx) || (globals::listener_v4_only() && loopback == LOOPBACK_V6) {
        return None;
    }
    if let Err(outcome) = prepare(ctx, address) {
        return Some(outcome);
    }
    ctx.set_address_v6(loopback);
    ctx.set_port(globals::listener_port());
    Some(Outcome::ConnectRewritten)
}

/// Answers `getpeername` with the IPv4 address the process dialled.
#[inline(always)]
pub(crate) fn try_getpeername4(ctx: &SockAddrContext) -> Option<Outcome> {
    let dialled = dialled(ctx)?;
    ctx.set_address_v4(dialled.address[0]);
    ctx.set_port(METADATA_PORT);
    Some(Outcome::PeerNameRestored)
}

/// Answers `getpeername` with the IPv6 address the process dialled.
#[inline(always)]
pub(crate) fn try_getpeername6(ctx: &SockAddrContext) -> Option<Outcome> {
    let dialled = dialled(ctx)?;
    ctx.set_address_v6(dialled.address);
    ctx.set_port(METADATA_PORT);
    Some(Outcome::PeerNameRestored)
}

#[inline(always)]
fn dials_metadata_port(ctx: &SockAddrContext) -> bool {
    ctx.port() == METADATA_PORT && ctx.is_tcp()
}

/// Everything that must hold before an address may be rewritten.
#[inline(always)]
fn prepare(ctx: &SockAddrContext, address: [u32; 4]) -> Result<(), Outcome> {
    let key = TenantKey {
        netns_cookie: ctx.netns_cookie(),
    };
    if TENANTS.get_ptr(key).is_none() {
        return Err(Outcome::ConnectNoTenant);
    }
    let mut record = Dialled {
        address,
        port: u32::from(METADATA_PORT),
    };
    // SAFETY: the context's socket is the one being connected, alive for the whole call.
    if unsafe { DIALLED.get_or_insert_ptr_mut(ctx, Some(&mut record)) }.is_null() {
        return Err(Outcome::ConnectUnrecorded);
    }
    // Where Neutron's INPUT rules are, they drop what reaches the listener port without this mark.
    // Should the kernel refuse it, the connect still works everywhere else.
    let _ = ctx.set_mark(NEUTRON_MARK);
    Ok(())
}

#[inline(always)]
fn dialled(ctx: &SockAddrContext) -> Option<Dialled> {
    // SAFETY: the context's socket is the one being asked about, alive for the whole call.
    let record = unsafe { DIALLED.get_ptr_mut(ctx) };
    // SAFETY: the kernel returns null or a pointer to this socket's record.
    unsafe { record.as_ref() }.copied()
}
