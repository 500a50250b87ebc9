//! Waiting lines: one per guest, served in turn within a tenant, and the tenants in turn.
//!
//! Whoever has one request waiting is served after at most one of every other tenant, however many
//! those have. Pure structure: no locks, no time, no wakers.

use std::collections::HashMap;

use slab::Slab;

use super::list::{Linked, Links, List};
use crate::identity::{GuestAddress, Tenant};

/// Lines of values that wait.
pub(super) struct Lines<T> {
    /// Tenants with somebody waiting, in the order of their turns.
    turns: List,
    tenants: Slab<TenantLine>,
    guests: Slab<GuestLine>,
    places: Slab<Place<T>>,
    by_tenant: HashMap<Tenant, usize>,
    by_guest: HashMap<(usize, GuestAddress), usize>,
}

struct TenantLine {
    links: Links,
    tenant: Tenant,
    /// Guests with something waiting, in the order of their turns.
    turns: List,
    waiting: usize,
}

struct GuestLine {
    links: Links,
    tenant: usize,
    guest: GuestAddress,
    places: List,
}

struct Place<T> {
    links: Links,
    guest: usize,
    value: T,
}

impl Linked for TenantLine {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl Linked for GuestLine {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl<T> Linked for Place<T> {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl<T> Lines<T> {
    pub(super) fn new() -> Self {
        Self {
            turns: List::new(),
            tenants: Slab::new(),
            guests: Slab::new(),
            places: Slab::new(),
            by_tenant: HashMap::new(),
            by_guest: HashMap::new(),
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many tenants have somebody waiting.
    pub(super) fn tenants(&self) -> usize {
        self.tenants.len()
    }

    /// How many of a tenant's wait.
    pub(super) fn of_tenant(&self, tenant: Tenant) -> usize {
        self.by_tenant
            .get(&tenant)
            .map_or(0, |at| self.tenants[*at].waiting)
    }

    /// Appends to a guest's line; the place stays valid until it is popped or removed.
    pub(super) fn push(&mut self, tenant: Tenant, guest: GuestAddress, value: T) -> usize {
        let tenant_at = *self.by_tenant.entry(tenant).or_insert_with(|| {
            let line = TenantLine {
                links: Links::unlinked(),
                tenant,
                turns: List::new(),
                waiting: 0,
            };
            let at = self.tenants.insert(line);
            self.turns.push_back(&mut self.tenants, at);
            at
        });
        let of_tenant = &mut self.tenants[tenant_at];
        of_tenant.waiting += 1;
        let guest_at = *self.by_guest.entry((tenant_at, guest)).or_insert_with(|| {
            let line = GuestLine {
                links: Links::unlinked(),
                tenant: tenant_at,
                guest,
                places: List::new(),
            };
            let at = self.guests.insert(line);
            of_tenant.turns.push_back(&mut self.guests, at);
            at
        });
        let place = self.places.insert(Place {
            links: Links::unlinked(),
            guest: guest_at,
            value,
        });
        self.guests[guest_at]
            .places
            .push_back(&mut self.places, place);
        place
    }

    /// Takes the one whose turn it is; its tenant and its guest go to the end of their rows.
    pub(super) fn pop(&mut self) -> Option<T> {
        let tenant_at = self.turns.front()?;
        let guest_at = self.tenants[tenant_at].turns.front()?;
        let place = self.guests[guest_at].places.front()?;
        self.tenants[tenant_at]
            .turns
            .move_to_back(&mut self.guests, guest_at);
        self.turns.move_to_back(&mut self.tenants, tenant_at);
        Some(self.remove(place))
    }

    /// Takes one out of the middle of its line.
    pub(super) fn remove(&mut self, place: usize) -> T {
        let guest_at = self.places[place].guest;
        let guest = &mut self.guests[guest_at];
        guest.places.remove(&mut self.places, place);
        let tenant_at = guest.tenant;
        let tenant = &mut self.tenants[tenant_at];
        tenant.waiting -= 1;
        if guest.places.is_empty() {
            tenant.turns.remove(&mut self.guests, guest_at);
            let guest = self.guests.remove(guest_at);
            self.by_guest.remove(&(tenant_at, guest.guest));
        }
        if tenant.waiting == 0 {
            self.turns.remove(&mut self.tenants, tenant_at);
            let tenant = self.tenants.remove(tenant_at);
            self.by_tenant.remove(&tenant.tenant);
        }
        self.places.remove(place).value
    }

    /// Takes the last of the longest line of the tenant with most waiting, if that tenant has more
    /// than `than` waiting.
    pub(super) fn displace(&mut self, than: usize) -> Option<T> {
        let (_, longest) = self
            .tenants
            .iter()
            .max_by_key(|(_, tenant)| tenant.waiting)?;
        if longest.waiting <= than {
            return None;
        }
        let guest_at = longest
            .turns
            .iter(&mut self.guests)
            .collect::<Vec<_>>()
            .into_iter()
            .max_by_key(|at| self.guests[*at].places.len())?;
        let last = self.guests[guest_at].places.back()?;
        Some(self.remove(last))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use metadata_proxy_common::TenantKind;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn tenant(number: u8) -> Tenant {
        Tenant {
            kind: TenantKind::Router,
            id: Uuid::from_u128(number.into()),
        }
    }

    fn guest(number: u8) -> GuestAddress {
        GuestAddress::from(IpAddr::from([10, 0, 0, number]))
    }

    #[test]
    fn tenants_take_turns_whatever_they_have_waiting() {
        let mut lines = Lines::new();
        for _ in 0..1_000 {
            lines.push(tenant(0), guest(1), 0);
        }
        for modest in 1..=10 {
            lines.push(tenant(modest), guest(1), modest);
        }
        let first: Vec<u8> = (0..11).filter_map(|_| lines.pop()).collect();
        assert_eq!(first, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn guests_of_one_tenant_take_turns_too() {
        let mut lines = Lines::new();
        for number in 0..100 {
            lines.push(tenant(0), guest(1), ('a', number));
        }
        lines.push(tenant(0), guest(2), ('b', 0));
        lines.push(tenant(0), guest(2), ('b', 1));
        let first: Vec<_> = (0..4).filter_map(|_| lines.pop()).collect();
        assert_eq!(first, [('a', 0), ('b', 0), ('a', 1), ('b', 1)]);
    }

    #[test]
    fn the_longest_line_of_the_busiest_tenant_gives_way() {
        let mut lines = Lines::new();
        for number in 0..5 {
            lines.push(tenant(0), guest(1), ('a', number));
        }
        lines.push(tenant(0), guest(2), ('b', 0));
        lines.push(tenant(1), guest(1), ('c', 0));
        assert_eq!(lines.displace(6), None);
        assert_eq!(lines.displace(1), Some(('a', 4)));
        assert_eq!(lines.len(), 6);
    }

    proptest! {
        #[test]
        fn nobody_is_lost_or_served_twice_and_nobody_waits_past_a_round(
            steps in proptest::collection::vec((0_u8..3, 0_u8..6, 0_u8..4), 0..300),
        ) {
            let mut lines = Lines::new();
            let mut places: HashMap<u32, (usize, u8)> = HashMap::new();
            let mut last_turn: HashMap<u8, u32> = HashMap::new();
            for (number, (step, who, at)) in steps.into_iter().enumerate() {
                let number = u32::try_from(number).unwrap();
                match step {
                    0 | 1 => {
                        last_turn.entry(who).or_insert(number);
                        if lines.of_tenant(tenant(who)) == 0 {
                            last_turn.insert(who, number);
                        }
                        let place = lines.push(tenant(who), guest(at), number);
                        places.insert(number, (place, who));
                    }
                    _ if at == 0 => {
                        // Somebody hangs up.
                        let Some(&gone) = places.keys().min() else { continue };
                        let (place, _) = places.remove(&gone).unwrap();
                        prop_assert_eq!(lines.remove(place), gone);
                    }
                    _ => {
                        let Some(served) = lines.pop() else {
                            prop_assert!(places.is_empty());
                            continue;
                        };
                        let (_, who) = places.remove(&served).expect("served one that waits");
                        // Of the tenants with somebody waiting, the one served longest ago.
                        let waiting = places.values().map(|(_, who)| *who).chain([who]);
                        let due = waiting.min_by_key(|who| last_turn[who]).unwrap();
                        prop_assert_eq!(last_turn[&who], last_turn[&due]);
                        last_turn.insert(who, number);
                    }
                }
                prop_assert_eq!(lines.len(), places.len());
            }
        }
    }
}
