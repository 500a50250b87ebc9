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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn netns(inode: u64) -> NetnsId {
        NetnsId::from_parts(4, inode)
    }

    #[test]
    fn the_earliest_come_first_and_no_more_than_asked_for() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut turns = Turns::default();
        for number in 0..5 {
            turns.queue(after(number), netns(number));
        }
        let all = |_, _| true;
        assert_eq!(turns.take(2, after(3), all), [netns(0), netns(1)]);
        assert_eq!(turns.take(9, after(3), all), [netns(2), netns(3)]);
        assert_eq!(turns.take(9, after(3), all), []);
        assert_eq!(turns.take(9, after(4), all), [netns(4)]);
    }

    #[test]
    fn who_was_seen_to_meanwhile_or_is_gone_does_not_come_and_takes_no_place() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut turns = Turns::default();
        turns.queue(start, netns(1));
        turns.queue(start, netns(2));
        turns.queue(start, netns(3));
        turns.queue(later, netns(1));
        let is_current = |of: NetnsId, at| match of.parts().1 {
            1 => at == later,
            2 => false,
            _ => true,
        };
        assert_eq!(turns.take(1, start, is_current), [netns(3)]);
        assert_eq!(turns.take(9, later, is_current), [netns(1)]);
    }
}
