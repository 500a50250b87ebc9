//! Tenants with the same addresses never meet.

use metadata_proxy_tests::{Connection, Guest, Kind, connection};

use metadata_proxy_tests::stage::{Stage, told};

/// The port that guests of different tenants connect from at once.
const SOURCE_PORT: u16 = 40_000;

#[test]
fn the_same_five_tuple_in_two_tenants_leads_to_each_its_own() {
    type Way = fn(&Guest) -> std::net::SocketAddr;
    let stage = Stage::new();
    let tenants = [Kind::Router, Kind::Router, Kind::Network, Kind::OvnNetwork]
        .map(|kind| stage.tenant(kind));
    let ways: [Way; 2] = [
        |_| connection::METADATA_V4_SOCKET.into(),
        |guest| connection::metadata_v6(&guest.netns).unwrap(),
    ];
    for way in ways {
        let mut open: Vec<_> = tenants
            .iter()
            .map(|tenant| {
                let guest = tenant.guest();
                Connection::open_from(&guest.netns, SOURCE_PORT, way(guest)).unwrap()
            })
            .collect();
        let locals: Vec<_> = open
            .iter()
            .map(|connection| {
                let local = connection.local().unwrap();
                (local.ip(), local.port())
            })
            .collect();
        assert!(locals.iter().all(|local| *local == locals[0]), "{locals:?}");
        // All are open at once, and take turns.
        for _ in 0..3 {
            for (tenant, connection) in tenants.iter().zip(&mut open) {
                let reply = connection.get("/").unwrap();
                assert_eq!(reply.text(), told(tenant, locals[0].0), "{reply:?}");
            }
        }
    }
}
