//! The fallback engine: a socket lookup for the metadata address is answered with the listener.

use aya_ebpf::programs::SkLookupContext;
use metadata_proxy_common::Outcome;

use crate::{maps::LISTENERS, raw::LookupContext as _};

/// Assigns the namespace's listener; `None` if the lookup is for something else.
#[inline(always)]
pub(crate) fn try_lookup(ctx: &SkLookupContext) -> Option<Outcome> {
    if !ctx.is_tcp() || !ctx.is_for_metadata() {
        return None;
    }
    match LISTENERS.redirect_sk_lookup(ctx, 0, 0) {
        Ok(()) => Some(Outcome::LookupAssigned),
        Err(_) => Some(Outcome::LookupUnassigned),
    }
}
