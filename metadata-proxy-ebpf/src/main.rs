//! The kernel programs of metadata-proxy: entry points only.
//!
//! Each entry point is one expression; the module it calls reads as guards followed by one act, and
//! says how it ended as an [`Outcome`](metadata_proxy_common::Outcome). Raw context access and raw
//! helpers live in `raw`. No program here reads HTTP, keeps state about tenants, or drops a packet.
#![no_std]
#![no_main]

mod connect;
mod globals;
mod lookup;
mod maps;
mod raw;
mod segment;
mod steer;
mod verdict;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier, sk_lookup},
    programs::{SkLookupContext, SockAddrContext, TcContext},
};

/// TC ingress of a tenant's device: brings metadata connections to the listener.
#[classifier]
pub fn steer(ctx: TcContext) -> i32 {
    verdict::classify(steer::try_steer(&ctx))
}

/// Fallback engine: chooses the listener when the kernel looks a metadata socket up.
#[sk_lookup]
pub fn lookup(ctx: SkLookupContext) -> u32 {
    verdict::look_up(lookup::try_lookup(&ctx))
}

/// A process of a tenant namespace dials an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    verdict::connect(connect::try_connect4(&ctx))
}

/// A process of a tenant namespace dials an IPv6 address.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    verdict::connect(connect::try_connect6(&ctx))
}

/// A process asks whom its IPv4 socket is connected to.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    verdict::connect(connect::try_getpeername4(&ctx))
}

/// A process asks whom its IPv6 socket is connected to.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    verdict::connect(connect::try_getpeername6(&ctx))
}

/// Unreachable: nothing here panics, and the verifier would refuse a program that could loop.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence the kernel checks before it lets a program use GPL-only helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
