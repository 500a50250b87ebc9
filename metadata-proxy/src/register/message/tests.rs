use std::{path::PathBuf, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::neutron::{AddressFamily as Family, Bind, LogLevel, RateLimit, Timeouts, Window};

/// A request as a stand-in sends it.
pub(in crate::register) fn request() -> Request {
    Request {
        tenant: Tenant {
            kind: TenantKind::Router,
            id: Uuid::from_u128(7),
        },
        settings: TenantSettings {
            binds: vec![Bind {
                address: "0.0.0.0".parse().unwrap(),
                port: 9697,
                interface: None,
            }],
            agent_socket: PathBuf::from("/var/lib/neutron/metadata_proxy"),
            timeouts: Timeouts::default(),
            rate_limit: None,
            log_level: LogLevel::Info,
            max_connections: Some(1024),
        },
        client: Client {
            pid: 4,
            version: "1".to_owned(),
        },
    }
}

#[test]
fn a_long_reason_is_cut_to_fit_a_reply() {
    for unit in ["é", "\"", "\\", "\u{1}", "\n"] {
        let reason = unit.repeat(100_000);
        let encoded = Reply::Failed { reason }.encode();
        assert!(encoded.len() < 3 * 1024, "{unit:?}");
        let Ok(Reply::Failed { reason }) = Reply::decode(&encoded) else {
            panic!("not failed");
        };
        assert!(!reason.contains(char::is_control));
    }
}

fn settings() -> impl Strategy<Value = TenantSettings> {
    let duration = || (1..=u64::from(u32::MAX)).prop_map(Duration::from_millis);
    let window = move || {
        (duration(), any::<u32>()).prop_map(|(duration, requests)| Window { duration, requests })
    };
    let bind = (
        any::<std::net::IpAddr>(),
        1..=u16::MAX,
        prop::option::of("[a-z0-9.-]{1,15}"),
    )
        .prop_map(|(address, port, interface)| Bind {
            address,
            port,
            interface,
        });
    let family = prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)];
    let limit = (family, window(), window()).prop_map(|(family, base, burst)| RateLimit {
        family,
        base,
        burst,
    });
    (
        prop::collection::vec(bind, 1..=16),
        "/[ -~]{0,100}",
        [duration(), duration(), duration(), duration(), duration()],
        prop::option::of(limit),
        prop::option::of(1..u32::MAX),
    )
        .prop_map(
            |(binds, path, [request_head, connect, client, server, keep_alive], limit, most)| {
                TenantSettings {
                    binds,
                    agent_socket: PathBuf::from(path),
                    timeouts: Timeouts {
                        request_head,
                        connect,
                        client,
                        server,
                        keep_alive,
                    },
                    rate_limit: limit,
                    log_level: LogLevel::Debug,
                    max_connections: most,
                }
            },
        )
}

proptest! {
    #[test]
    fn a_request_is_read_as_it_was_written(settings in settings(), id in any::<u128>()) {
        let mut request = request();
        request.settings = settings;
        request.tenant.id = Uuid::from_u128(id);
        let encoded = request.encode();
        prop_assert!(encoded.len() < MESSAGE_LIMIT);
        prop_assert_eq!(Request::decode(&encoded).unwrap(), request);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in any::<Vec<u8>>()) {
        prop_assert!(Request::decode(&bytes).is_err());
        prop_assert!(Reply::decode(&bytes).is_err());
    }

    #[test]
    fn a_damaged_request_is_read_without_a_panic(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut encoded = request().encode();
        let at = at.index(encoded.len());
        encoded[at] = byte;
        let _ = Request::decode(&encoded);
    }
}

#[test]
fn a_message_has_the_documented_form() {
    assert_eq!(
        String::from_utf8(request().encode()).unwrap(),
        r#"{"protocol":1,"tenant":{"kind":"router","id":"00000000-0000-0000-0000-000000000007"},"settings":{"binds":[{"address":"0.0.0.0","port":9697}],"agent_socket":"/var/lib/neutron/metadata_proxy","timeouts":{"request_head_ms":30000,"connect_ms":30000,"client_ms":32000,"server_ms":32000,"keep_alive_ms":30000},"rate_limit":null,"log_level":"info","max_connections":1024},"client":{"pid":4,"version":"1"}}"#
    );
    assert_eq!(
        Reply::Serving.encode(),
        br#"{"protocol":1,"state":"serving"}"#
    );
}
