use std::net::IpAddr;

use metadata_proxy_common::TenantKind;
use uuid::Uuid;

use super::*;

const CAPS: Caps = Caps {
    connections: 6,
    connections_per_tenant: 4,
    connections_per_guest: 2,
    requests_per_guest: 1,
};

fn tenant(number: u128) -> Tenant {
    Tenant {
        kind: TenantKind::Network,
        id: Uuid::from_u128(number),
    }
}

fn guest(number: u8) -> GuestAddress {
    GuestAddress::from(IpAddr::from([10, 0, 0, number]))
}

#[test]
fn each_cap_refuses_and_says_which_it_was() {
    let limits = Limits::new(CAPS);
    let mut open = Vec::new();
    let mut connect = |tenant_number, guest_number| {
        limits
            .connect(tenant(tenant_number), guest(guest_number), None)
            .map(|token| open.push(token))
    };
    assert_eq!(connect(1, 1), Ok(()));
    assert_eq!(connect(1, 1), Ok(()));
    assert_eq!(connect(1, 1), Err(Refusal::GuestConnections));
    assert_eq!(connect(1, 2), Ok(()));
    assert_eq!(connect(1, 3), Ok(()));
    assert_eq!(connect(1, 4), Err(Refusal::TenantConnections));
    assert_eq!(
        connect(2, 1),
        Ok(()),
        "another tenant's guest of the same address"
    );
    assert_eq!(connect(2, 2), Ok(()));
    assert_eq!(connect(3, 1), Err(Refusal::Connections));
    let snapshot = limits.snapshot();
    assert_eq!(snapshot.connections, 6);
    assert_eq!(snapshot.tenants, 2);
    assert_eq!(snapshot.refused, [1, 1, 1, 0]);
    open.clear();
    assert_eq!(
        limits.snapshot(),
        LimitsSnapshot {
            refused: [1, 1, 1, 0],
            ..LimitsSnapshot::default()
        }
    );
}

#[test]
fn a_tenant_s_own_cap_lowers_the_common_one_and_never_raises_it() {
    let limits = Limits::new(CAPS);
    let connect = |of, last, most| limits.connect(tenant(of), guest(last), Some(most));
    let first = connect(1, 1, 1).unwrap();
    assert_eq!(connect(1, 2, 1).err(), Some(Refusal::TenantConnections));
    let other = limits.connect(tenant(2), guest(1), None).unwrap();
    drop(first);
    let again = connect(1, 2, 1).unwrap();
    let many: Vec<_> = (1..=3)
        .map(|last| connect(1, last + 2, 1000).unwrap())
        .collect();
    assert_eq!(connect(1, 9, 1000).err(), Some(Refusal::TenantConnections));
    drop((other, again, many));
    assert_eq!(limits.snapshot().connections, 0);
}

#[test]
fn requests_are_counted_over_all_connections_of_a_guest() {
    let limits = Limits::new(CAPS);
    let first = limits.connect(tenant(1), guest(1), None).unwrap();
    let second = limits.connect(tenant(1), guest(1), None).unwrap();
    let request = first.request().unwrap();
    assert_eq!(second.request().err(), Some(Refusal::GuestRequests));
    drop(request);
    assert!(second.request().is_ok());
}

#[test]
fn a_request_may_outlive_its_connection() {
    let limits = Limits::new(CAPS);
    let connection = limits.connect(tenant(1), guest(1), None).unwrap();
    let request = connection.request().unwrap();
    drop(connection);
    assert_eq!(limits.snapshot().requests, 1);
    let again = limits.connect(tenant(1), guest(1), None).unwrap();
    assert_eq!(again.request().err(), Some(Refusal::GuestRequests));
    drop((request, again));
    assert_eq!(
        limits.snapshot(),
        LimitsSnapshot {
            refused: [0, 0, 0, 1],
            ..Default::default()
        }
    );
}
