use metadata_proxy_common::TenantKind;
use uuid::Uuid;

use super::*;

/// What haproxy 2.6.12 answered, recorded with Neutron's rate limiting configuration, windows of
/// 3 s (limit 8) and 1 s (limit 4): milliseconds since the first request, status.
#[rustfmt::skip]
const HAPROXY: [(u64, u16); 240] = [
    (0, 200), (21, 200), (302, 200), (322, 200), (633, 429), (984, 429), (1295, 429), (1645, 200),
    (1756, 429), (1777, 429), (2128, 429), (2439, 429), (2670, 429), (2901, 429), (3372, 429),
    (3603, 429), (3914, 429), (4195, 429), (4215, 429), (4566, 429), (4917, 429), (5268, 429),
    (5618, 429), (5929, 429), (6240, 429), (6711, 429), (6762, 429), (7234, 429), (7344, 429),
    (7695, 429), (7746, 429), (8097, 429), (8207, 429), (8258, 429), (8309, 429), (8659, 429),
    (8770, 429), (9121, 429), (9232, 429), (9708, 429), (10058, 429), (10412, 429), (10463, 429),
    (14564, 200), (14675, 200), (14986, 200), (15216, 200), (15568, 200), (15919, 200),
    (16270, 200), (16741, 200), (17092, 429), (17563, 429), (17613, 429), (17964, 429),
    (18195, 429), (18426, 429), (18736, 429), (25237, 200), (25710, 200), (29810, 200),
    (29861, 200), (30142, 200), (30163, 200), (30443, 429), (30794, 429), (31145, 200),
    (31166, 429), (31476, 429), (31587, 429), (31608, 429), (31839, 429), (31889, 429),
    (32000, 429), (32350, 429), (32821, 429), (32872, 429), (32982, 429), (33333, 429),
    (33804, 429), (33914, 429), (34385, 429), (34616, 429), (34927, 429), (35208, 429),
    (35490, 429), (35770, 429), (35881, 429), (36352, 429), (36583, 429), (36895, 429),
    (37176, 429), (37487, 429), (37798, 429), (38148, 429), (38459, 429), (38809, 429),
    (38830, 429), (39304, 429), (39621, 429), (39674, 429), (39726, 429), (39777, 429),
    (39892, 429), (40202, 429), (40553, 429), (40574, 429), (40626, 429), (40740, 429),
    (40850, 429), (41161, 429), (41392, 429), (41442, 429), (41793, 429), (41904, 429),
    (42134, 429), (42156, 429), (42506, 429), (42737, 429), (43088, 429), (43138, 429),
    (43419, 429), (43439, 429), (43550, 429), (43780, 429), (44091, 429), (44402, 429),
    (46602, 200), (46914, 200), (46966, 200), (47317, 200), (47340, 429), (47390, 429),
    (47671, 429), (47951, 429), (48182, 429), (48204, 429), (48435, 429), (48665, 429),
    (49019, 429), (49130, 429), (49180, 429), (49460, 429), (49571, 429), (49592, 429),
    (50062, 429), (50173, 429), (50454, 429), (51755, 429), (52036, 429), (52347, 429),
    (52698, 429), (53053, 200), (53369, 200), (53840, 200), (54150, 200), (54384, 200),
    (54734, 200), (54845, 200), (55195, 429), (55666, 429), (55896, 429), (55950, 429),
    (56181, 429), (56491, 429), (56602, 429), (56952, 429), (57263, 429), (57613, 429),
    (57964, 429), (58274, 429), (58385, 429), (58405, 429), (58756, 429), (58776, 429),
    (59057, 429), (59337, 429), (59448, 429), (59758, 429), (59869, 429), (60339, 429),
    (60570, 429), (60801, 429), (61271, 429), (61552, 429), (61902, 429), (62013, 429),
    (62243, 429), (62354, 429), (62374, 429), (62845, 429), (63155, 429), (63266, 429),
    (63317, 429), (63667, 429), (64138, 429), (64158, 429), (64469, 429), (64699, 429),
    (64930, 429), (65400, 429), (65684, 429), (66155, 429), (66385, 429), (66406, 429),
    (66426, 429), (69327, 200), (69637, 200), (69948, 200), (70058, 200), (70409, 200),
    (70690, 200), (71040, 200), (71511, 200), (71822, 200), (72052, 429), (72103, 429),
    (72334, 429), (75235, 200), (75707, 200), (75732, 200), (76085, 200), (76556, 200),
    (77027, 200), (77258, 200), (77609, 200), (81212, 200), (81493, 200), (81514, 200),
    (81985, 200), (82215, 200), (86316, 200), (86786, 200), (87097, 200), (87119, 200),
    (87230, 429), (87254, 429), (87724, 200), (88035, 200), (88315, 429),
];

fn tenant(number: u128) -> Tenant {
    Tenant {
        kind: TenantKind::Router,
        id: Uuid::from_u128(number),
    }
}

fn guest(text: &str) -> GuestAddress {
    GuestAddress::from(text.parse::<IpAddr>().unwrap())
}

fn limits(base: (u64, u32), burst: (u64, u32)) -> RateLimits {
    let window = |(ms, requests)| WindowLimit {
        period: Duration::from_millis(ms),
        requests,
    };
    RateLimits {
        base: window(base),
        burst: window(burst),
        families: Families { v4: true, v6: true },
    }
}

#[test]
fn it_decides_as_haproxy_did() {
    let limiter = RateLimiter::new(100, 100);
    let start = Instant::now();
    let limits = limits((3_000, 8), (1_000, 4));
    let wrong: Vec<_> = HAPROXY
        .iter()
        .filter(|(ms, status)| {
            let now = start + Duration::from_millis(*ms);
            let verdict = limiter.check(tenant(1), guest("10.0.0.5"), &limits, now);
            (verdict == Verdict::Admitted) != (*status == 200)
        })
        .collect();
    assert!(wrong.is_empty(), "decided otherwise: {wrong:?}");
}

#[test]
fn a_guest_that_waits_as_told_is_served() {
    let limiter = RateLimiter::new(100, 100);
    let limits = limits((10_000, 10), (10_000, 10));
    let mut now = Instant::now();
    for _ in 0..10 {
        assert_eq!(
            limiter.check(tenant(1), guest("10.0.0.5"), &limits, now),
            Verdict::Admitted
        );
    }
    let Verdict::Denied { retry_after } = limiter.check(tenant(1), guest("10.0.0.5"), &limits, now)
    else {
        panic!("the eleventh request of ten was admitted");
    };
    assert!((1..=10).contains(&retry_after), "{retry_after}");
    now += Duration::from_secs(retry_after);
    assert_eq!(
        limiter.check(tenant(1), guest("10.0.0.5"), &limits, now),
        Verdict::Admitted
    );
}

#[test]
fn refused_requests_count() {
    let limiter = RateLimiter::new(100, 100);
    let limits = limits((1_000, 2), (1_000, 2));
    let start = Instant::now();
    let admitted = (0..100)
        .filter(|step| {
            let now = start + Duration::from_millis(step * 100);
            limiter.check(tenant(1), guest("10.0.0.5"), &limits, now) == Verdict::Admitted
        })
        .count();
    assert_eq!(admitted, 2, "a guest that never pauses stays refused");
    assert_eq!(limiter.snapshot().denied, 98);
}

#[test]
fn windows_outlive_a_change_of_the_limits() {
    let limiter = RateLimiter::new(100, 100);
    let now = Instant::now();
    for _ in 0..5 {
        limiter.check(
            tenant(1),
            guest("10.0.0.5"),
            &limits((10_000, 10), (10_000, 10)),
            now,
        );
    }
    let stricter = limits((20_000, 4), (20_000, 4));
    let verdict = limiter.check(tenant(1), guest("10.0.0.5"), &stricter, now);
    assert!(matches!(verdict, Verdict::Denied { .. }));
}

#[test]
fn tenants_and_guests_are_counted_apart() {
    let limiter = RateLimiter::new(100, 100);
    let limits = limits((10_000, 1), (10_000, 1));
    let now = Instant::now();
    for (tenant_number, address) in [(1, "10.0.0.5"), (2, "10.0.0.5"), (1, "10.0.0.6")] {
        let verdict = limiter.check(tenant(tenant_number), guest(address), &limits, now);
        assert_eq!(verdict, Verdict::Admitted);
    }
}

#[test]
fn only_the_chosen_families_are_limited() {
    let limiter = RateLimiter::new(100, 100);
    let mut limits = limits((10_000, 0), (10_000, 0));
    let now = Instant::now();
    let mut denied = |families| {
        limits.families = families;
        ["10.0.0.5", "fe80::1"].map(|address| {
            limiter.check(tenant(1), guest(address), &limits, now) != Verdict::Admitted
        })
    };
    assert_eq!(
        denied(Families {
            v4: true,
            v6: false
        }),
        [true, false]
    );
    assert_eq!(
        denied(Families {
            v4: false,
            v6: true
        }),
        [false, true]
    );
    assert_eq!(denied(Families { v4: true, v6: true }), [true, true]);
}

#[test]
fn a_flood_of_addresses_costs_only_its_own_tenant() {
    let limiter = RateLimiter::new(64, 1_000);
    let limits = limits((10_000, 1), (10_000, 1));
    let now = Instant::now();
    limiter.check(tenant(1), guest("10.0.0.5"), &limits, now);
    for number in 0..1_000_u32 {
        limiter.check(
            tenant(2),
            GuestAddress::from(IpAddr::from(number.to_be_bytes())),
            &limits,
            now,
        );
    }
    assert_eq!(limiter.snapshot().tracked, 64);
    assert!(limiter.snapshot().evicted > 900);
    let verdict = limiter.check(tenant(1), guest("10.0.0.5"), &limits, now);
    assert!(
        matches!(verdict, Verdict::Denied { .. }),
        "the other tenant's window is still there"
    );
}

#[test]
fn idle_addresses_are_forgotten() {
    let limiter = RateLimiter::new(10_000, 10_000);
    let limits = limits((1_000, 1), (1_000, 1));
    let mut now = Instant::now();
    for number in 0..1_000_u32 {
        limiter.check(
            tenant(1),
            GuestAddress::from(IpAddr::from(number.to_be_bytes())),
            &limits,
            now,
        );
    }
    assert_eq!(limiter.snapshot().tracked, 1_000);
    now += Duration::from_secs(2);
    for _ in 0..1_000 {
        limiter.check(tenant(2), guest("10.0.0.5"), &limits, now);
    }
    assert_eq!(limiter.snapshot().tracked, 1);
}
