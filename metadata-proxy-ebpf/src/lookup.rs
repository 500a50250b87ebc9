//! The fallback engine: a socket lookup for the metadata address is answered with the listener.

use aya_ebpf::{EbpfContext as _, programs::SkLookupContext};
use metadata_proxy_common::{METADATA_PORT, METADATA_V4, METADATA_V6, Outcome};

use crate::{
    maps::LISTENERS,
    raw::{self, LookupContext as _},
};

/// Assigns the namespace's listener; `None` if the lookup is for something else.
#[inline(always)]
pub(crate) fn try_lookup(ctx: &SkLookupContext) -> Option<Outcome> {
    if !ctx.is_tcp() || ctx.local_port() != METADATA_PORT {
        return None;
    }
    let is_metadata = if ctx.is_v4() {
        ctx.local_v4() == u32::from_ne_bytes(METADATA_V4)
    } else {
        ctx.local_v6() == raw::words(METADATA_V6)
    };
    if !is_metadata {
        return None;
    }
    let assigned = LISTENERS.redirect_sk_lookup(ctx, 0, 0).is_ok() && !ctx.as_ptr().is_null();
    Some(if assigned { Outcome::LookupAssigned } else { Outcome::LookupUnassigned })
}
