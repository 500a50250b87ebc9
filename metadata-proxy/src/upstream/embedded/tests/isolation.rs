//! No guest ever sees anything of another.

use std::fmt::Write as _;

use http::{Method, StatusCode};
use metadata_proxy_common::TenantKind;
use proptest::prelude::*;

use super::{ROUTER, TestFile, request, seen};
use crate::{identity::Tenant, upstream::embedded::Embedded};

const KINDS: [TenantKind; 3] = [
    TenantKind::Router,
    TenantKind::Network,
    TenantKind::OvnNetwork,
];
const ADDRESSES: [&str; 3] = ["10.0.0.5", "10.0.0.6", "fe80::5"];

/// Three tenants of different kinds with the same UUID, each with an instance at each address;
/// every value of an instance that a guest can see holds the instance's own mark.
fn marked() -> (TestFile, Embedded) {
    let mut text = String::from("tenants:\n");
    for (kind, word) in ["router", "network", "ovn-network"].iter().enumerate() {
        writeln!(text, "  - {word}: {}\n    instances:", ROUTER.id).unwrap();
        for (at, address) in ADDRESSES.iter().enumerate() {
            let mark = mark(kind, at);
            writeln!(
                text,
                "      - addresses: [\"{address}\"]
        name: {mark}
        hostname: {mark}.example
        project_id: {mark}
        availability_zone: {mark}
        flavor: {mark}
        reservation_id: {mark}
        security_groups: [{mark}]
        public_keys: {{{mark}: {mark}}}
        meta: {{{mark}: {mark}}}
        user_data: {mark}
        vendor_data: {{{mark}: {mark}}}
        vendor_data2: {{{mark}: {mark}}}
        network_data: {{links: [{mark}], networks: [], services: []}}
        block_device_mapping: {{{mark}: {mark}}}"
            )
            .unwrap();
        }
    }
    let file = TestFile::yaml(&text);
    let embedded = file.open();
    (file, embedded)
}

fn mark(kind: usize, at: usize) -> String {
    format!("mark-{kind}-{at}")
}

fn tenant(kind: usize) -> Tenant {
    Tenant {
        kind: KINDS[kind],
        ..ROUTER
    }
}

#[test]
fn the_same_address_in_different_tenants_is_different_instances() {
    let (_file, embedded) = marked();
    assert_eq!(embedded.instances(), 9);
    for kind in 0..3 {
        for (at, address) in ADDRESSES.iter().enumerate() {
            let ask = request(tenant(kind), address, Method::GET, "/latest/user-data");
            assert_eq!(seen(embedded.answer(&ask)).body, mark(kind, at));
        }
    }
}

#[test]
fn an_unknown_tenant_or_address_gets_404_whatever_it_asks() {
    let (_file, embedded) = marked();
    let stranger = Tenant {
        id: uuid::Uuid::from_u128(1),
        ..ROUTER
    };
    for (tenant, address) in [(stranger, "10.0.0.5"), (ROUTER, "10.0.0.7")] {
        for target in [
            "/",
            "/openstack",
            "/latest/meta-data/",
            "/openstack/latest/password",
        ] {
            for method in [Method::GET, Method::HEAD, Method::POST] {
                let answer = seen(embedded.answer(&request(tenant, address, method, target)));
                assert_eq!(answer.status, StatusCode::NOT_FOUND);
            }
        }
    }
}

/// Anything at all, and often something near what is served.
fn any_target() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        prop::sample::select(vec![
            "openstack",
            "latest",
            "2018-08-27",
            "1.0",
            "ec2",
            "meta-data",
            "meta_data.json",
            "user_data",
            "user-data",
            "network_data.json",
            "vendor_data.json",
            "vendor_data2.json",
            "public-keys",
            "0",
            "openssh-key",
            "hostname",
            "security-groups",
            "placement",
            "availability-zone",
            "block-device-mapping",
            "password",
            "..",
            ".",
            "",
            "%2e%2e",
            "%2f",
            "%00",
            "%",
            "%ff",
            "%c3%a9",
        ])
        .prop_map(str::to_owned),
        (0_usize..3, 0_usize..3).prop_map(|(kind, at)| mark(kind, at)),
        ".{0,8}",
    ];
    let page = prop::sample::select(vec![
        "/openstack/latest/meta_data.json",
        "/openstack/2012-08-10/meta_data.json",
        "/openstack/latest/user_data",
        "/openstack/latest/vendor_data.json",
        "/openstack/latest/vendor_data2.json",
        "/openstack/latest/network_data.json",
        "/latest/meta-data/hostname",
        "/latest/meta-data/public-keys/0/openssh-key",
        "/latest/meta-data/block-device-mapping",
        "/1.0/user-data",
    ]);
    prop_oneof![
        4 => prop::collection::vec(segment.clone(), 0..8)
            .prop_map(|parts| format!("/{}", parts.join("/"))),
        2 => (page, segment).prop_map(|(page, other)| format!("/{other}/..{page}?{other}")),
        1 => any::<String>(),
    ]
}

proptest! {
    #[test]
    fn no_target_shows_another_instances_data(
        target in any_target(),
        kind in 0_usize..3,
        at in 0_usize..3,
        method in prop::sample::select(vec![Method::GET, Method::HEAD, Method::PUT]),
    ) {
        thread_local! {
            static MARKED: (TestFile, Embedded) = marked();
        }
        let body = MARKED.with(|(_, embedded)| {
            seen(embedded.answer(&request(tenant(kind), ADDRESSES[at], method, &target))).body
        });
        let own = mark(kind, at);
        prop_assert!(!body.replace(&own, "").contains("mark-"), "{}: {}", target, body);
    }
}
