//! Whose turn it is to be audited: found without a look at those whose turn it is not.

use std::{collections::VecDeque, time::Instant};

use crate::netns::NetnsId;

/// Tenants in the order in which they were last seen to.
#[derive(Default)]
pub(super) struct Turns(VecDeque<(Instant, NetnsId)>);

impl Turns {
    /// Puts a tenant last. `seen_to` is no earlier than that of those before it.
    pub(super) fn queue(&mut self, seen_to: Instant, netns: NetnsId) {
        self.0.push_back((seen_to, netns));
    }

    /// Takes those out that were last seen to by `until`, the earliest first, and no more than so
    /// many. `is_current` says whether that still is when a tenant was last seen to: one that was
    /// seen to before its turn stands here twice, and one that is gone still does.
    pub(super) fn take(
        &mut self,
        most: usize,
        until: Instant,
        is_current: impl Fn(NetnsId, Instant) -> bool,
    ) -> Vec<NetnsId> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some((seen_to, netns)) = self.0.pop_front_if(|(seen_to, _)| *seen_to <= until)
        {
            if is_current(netns, seen_to) {
                taken.push(netns);
            }
        }
        taken
    }
}
