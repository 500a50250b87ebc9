//! The maps, and the one way to count.

use aya_ebpf::{
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{HashMap, PerCpuArray, SockMap},
};
use metadata_proxy_common::{Outcome, TenantKey, TenantValue};

/// Which namespace belongs to which tenant.
///
/// key: the namespace's cookie; value: kind and UUID.
/// writer: the agent, or whoever declares tenants by the documented layout.
/// reader: the connect hooks here, and the agent for every accepted connection.
/// when full: the agent's write fails, that tenant is shown as failing; nothing else changes.
/// memory: allocated as entries come (`BPF_F_NO_PREALLOC`), since most nodes have few tenants.
#[map]
pub(crate) static TENANTS: HashMap<TenantKey, TenantValue> =
    HashMap::with_max_entries(16_384, aya_ebpf::bindings::BPF_F_NO_PREALLOC);

/// How packets and connects ended.
///
/// key: an [`Outcome`]; value: how often, per CPU.
/// writer: every program here.
/// reader: the agent, for metrics and `status`.
/// when full: cannot be, its length is the number of outcomes.
/// memory: eight bytes an outcome and CPU.
#[map]
static OUTCOMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Outcome::COUNT, 0);

/// What a rewritten socket had dialled: the metadata address and port.
///
/// key: the socket; value: [`Dialled`].
/// writer: the connect hooks, before they rewrite.
/// reader: the getpeername hooks.
/// when full: the kernel is out of memory; that connect is not rewritten.
/// memory: lives and goes with the socket.
#[btf_map]
pub(crate) static DIALLED: SkStorage<Dialled> = SkStorage::new();

/// The listener of one namespace, for the fallback engine; each namespace has its own instance.
///
/// key: 0; value: the listening socket.
/// writer: the agent.
/// reader: `lookup`.
/// when full: cannot be, it has one place.
/// memory: one pointer.
#[map]
pub(crate) static LISTENERS: SockMap = SockMap::with_max_entries(1, 0);

/// The address a process dialled, as words in network order, as the kernel's context has it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Dialled {
    /// The address; for IPv4 only the first word counts.
    pub(crate) address: [u32; 4],
    /// The port.
    pub(crate) port: u32,
}

/// Counts one outcome on this CPU.
pub(crate) fn count(outcome: Outcome) {
    if let Some(counter) = OUTCOMES.get_ptr_mut(outcome.index()) {
        // SAFETY: the pointer is to this CPU's own slot, and BPF programs of one CPU do not
        // preempt each other on the same slot in a way that matters beyond a lost count.
        unsafe { *counter += 1 };
    }
}
