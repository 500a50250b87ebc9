use std::{net::IpAddr, path::Path, time::Duration};

use metadata_proxy_common::TenantKind;
use proptest::prelude::*;
use uuid::{Uuid, uuid};

use super::{ParseError, ProxyConfig, parse};
use crate::{
    identity::Tenant,
    neutron::{AddressFamily, Bind, LogLevel, RateLimit, Timeouts, Window},
};

const ROUTER: Uuid = uuid!("2b661bf4-4e5c-4239-8918-397e260ed85d");
const NETWORK: Uuid = uuid!("626d80b2-c036-4dc4-90df-954fb2591869");

/// The texts that the agents of each release write, as their templates give them.
macro_rules! recorded {
    ($name:literal) => {
        include_str!(concat!("recorded/", $name, ".cfg"))
    };
}

const RECORDED: [(&str, &str); 22] = [
    ("pike-router", recorded!("pike-router")),
    ("pike-network", recorded!("pike-network")),
    ("train-networking-ovn", recorded!("train-networking-ovn")),
    ("ussuri-router", recorded!("ussuri-router")),
    ("ussuri-network", recorded!("ussuri-network")),
    ("ussuri-ovn", recorded!("ussuri-ovn")),
    ("2023.1-router", recorded!("2023.1-router")),
    ("2023.1-network", recorded!("2023.1-network")),
    ("2023.1-ovn", recorded!("2023.1-ovn")),
    ("2024.2-router-limited", recorded!("2024.2-router-limited")),
    (
        "2024.2-network-limited-v6",
        recorded!("2024.2-network-limited-v6"),
    ),
    (
        "2024.2-isolated-router-id",
        recorded!("2024.2-isolated-router-id"),
    ),
    ("2024.2-ovn", recorded!("2024.2-ovn")),
    ("2025.1-router", recorded!("2025.1-router")),
    ("2025.1-network", recorded!("2025.1-network")),
    ("2025.1-ovn-limited", recorded!("2025.1-ovn-limited")),
    ("2025.2-network", recorded!("2025.2-network")),
    ("2026.2-router", recorded!("2026.2-router")),
    ("2026.2-router-limited", recorded!("2026.2-router-limited")),
    ("2026.2-network", recorded!("2026.2-network")),
    (
        "2026.2-network-limited-v6",
        recorded!("2026.2-network-limited-v6"),
    ),
    ("2026.2-ovn", recorded!("2026.2-ovn")),
];

fn recorded(name: &str) -> ProxyConfig {
    let (_, text) = RECORDED
        .into_iter()
        .find(|(recorded, _)| *recorded == name)
        .unwrap();
    parse(text).unwrap()
}

fn bind(address: &str, port: u16, interface: Option<&str>) -> Bind {
    Bind {
        address: address.parse::<IpAddr>().unwrap(),
        port,
        interface: interface.map(str::to_owned),
    }
}

fn tenant(kind: TenantKind, id: Uuid) -> Tenant {
    Tenant { kind, id }
}

#[test]
fn every_recorded_configuration_is_understood() {
    for (name, text) in RECORDED {
        let config = parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(config.daemon, "{name}");
        assert_eq!(
            config.settings.agent_socket,
            Path::new("/var/lib/neutron/metadata_proxy"),
            "{name}"
        );
        assert_eq!(config.user.as_deref(), Some("neutron"), "{name}");
        assert_eq!(config.group.as_deref(), Some("neutron"), "{name}");
        assert_eq!(config.log_address.as_deref(), Some("/dev/log"), "{name}");
        assert_eq!(config.settings.max_connections, Some(1024), "{name}");
        let pidfile = config.pidfile.unwrap();
        assert!(
            pidfile
                .to_str()
                .unwrap()
                .contains(&config.tenant.id.to_string()),
            "{name}"
        );
        for ignored in &config.ignored {
            assert_eq!(ignored.directive, "nbthread    2", "{name}");
        }
    }
}

#[test]
fn the_oldest_router_configuration_gives_every_value() {
    let config = recorded("pike-router");
    assert_eq!(config.tenant, tenant(TenantKind::Router, ROUTER));
    assert_eq!(config.settings.binds, [bind("0.0.0.0", 9697, None)]);
    assert_eq!(config.settings.timeouts, Timeouts::default());
    assert_eq!(config.settings.rate_limit, None);
    assert_eq!(config.settings.log_level, LogLevel::Debug);
    assert_eq!(
        config.pidfile.unwrap(),
        Path::new("/var/lib/neutron/external/pids/2b661bf4-4e5c-4239-8918-397e260ed85d.pid")
    );
    assert_eq!(
        config.log_tag.as_deref(),
        Some("haproxy-metadata-proxy-2b661bf4-4e5c-4239-8918-397e260ed85d")
    );
}

#[test]
fn a_header_says_what_kind_of_tenant_it_is() {
    let router = tenant(TenantKind::Router, ROUTER);
    let network = tenant(TenantKind::Network, NETWORK);
    let ovn = tenant(TenantKind::OvnNetwork, NETWORK);
    for (name, text) in RECORDED {
        let expected = if name.contains("ovn") {
            ovn
        } else if name.contains("router") {
            router
        } else {
            network
        };
        assert_eq!(parse(text).unwrap().tenant, expected, "{name}");
    }
}

#[test]
fn addresses_of_both_families_are_read_with_and_without_brackets() {
    let router = [bind("::", 9697, None)];
    assert_eq!(recorded("2023.1-router").settings.binds, router);
    assert_eq!(recorded("2026.2-router").settings.binds, router);
    let network = [
        bind("169.254.169.254", 80, None),
        bind("fe80::a9fe:a9fe", 80, Some("tap626d80b2-c1")),
    ];
    assert_eq!(recorded("2025.1-network").settings.binds, network);
    assert_eq!(recorded("2026.2-network").settings.binds, network);
    for (text, expected) in [
        ("*:80", bind("0.0.0.0", 80, None)),
        (":80", bind("0.0.0.0", 80, None)),
        ("[::]:9697", bind("::", 9697, None)),
    ] {
        let config = parse(&with_line("bind", &format!("bind {text}"))).unwrap();
        assert_eq!(config.settings.binds, [expected], "{text}");
    }
}

#[test]
fn rate_limits_are_read_for_either_family() {
    let limit = recorded("2024.2-router-limited").settings.rate_limit;
    assert_eq!(
        limit,
        Some(RateLimit {
            family: AddressFamily::Ipv4,
            base: Window {
                duration: Duration::from_mins(1),
                requests: 30
            },
            burst: Window {
                duration: Duration::from_secs(10),
                requests: 5
            },
        })
    );
    let limit = recorded("2026.2-network-limited-v6").settings.rate_limit;
    assert_eq!(
        limit,
        Some(RateLimit {
            family: AddressFamily::Ipv6,
            base: Window {
                duration: Duration::from_secs(10),
                requests: 10
            },
            burst: Window {
                duration: Duration::from_secs(20),
                requests: 15
            },
        })
    );
}

#[test]
fn timeouts_are_read_where_a_release_lets_them_be_set() {
    let timeouts = recorded("2026.2-ovn").settings.timeouts;
    assert_eq!(timeouts.server, Duration::from_secs(40));
    assert_eq!(timeouts.client, Duration::from_secs(32));
    for (written, expected) in [
        ("1500", Duration::from_millis(1500)),
        ("2m", Duration::from_mins(2)),
        ("70ms", Duration::from_millis(70)),
        ("5000us", Duration::from_millis(5)),
    ] {
        let line = format!("timeout connect {written}");
        let config = parse(&with_line("timeout connect", &line)).unwrap();
        assert_eq!(config.settings.timeouts.connect, expected, "{written}");
    }
}

#[test]
fn harmless_directives_are_listed_with_their_lines() {
    let config = parse(recorded!("2026.2-router")).unwrap();
    assert_eq!(config.ignored.len(), 1);
    assert_eq!(config.ignored[0].line, 8);
    let config = parse(&with_line(
        "daemon",
        "daemon\nstats socket /run/x mode 777 level admin # a fork's own",
    ))
    .unwrap();
    assert_eq!(
        config.ignored[1].directive,
        "stats socket /run/x mode 777 level admin"
    );
}

#[test]
fn a_configuration_over_two_files_is_read_as_one() {
    let text = recorded!("2026.2-router");
    let (global, rest) = text.split_at(text.find("defaults").unwrap());
    let mut parser = super::Parser::default();
    parser.read(global).unwrap();
    parser.read(rest).unwrap();
    assert_eq!(parser.finish(), Ok(recorded("2026.2-router")));
}

/// The newest network configuration, its one line that begins with `prefix` replaced.
fn with_line(prefix: &str, replacement: &str) -> String {
    let mut replaced = 0;
    let text = recorded!("2026.2-network")
        .lines()
        .map(|line| {
            if !line.trim_start().starts_with(prefix) {
                return format!("{line}\n");
            }
            replaced += 1;
            match replaced {
                1 => format!("{replacement}\n"),
                _ => "\n".to_owned(),
            }
        })
        .collect();
    assert!(replaced > 0, "no line begins with {prefix}");
    text
}

fn refusal(text: &str) -> ParseError {
    parse(text).expect_err(text)
}

#[test]
fn what_neutron_does_not_write_is_refused_with_its_line() {
    for (prefix, replacement, expected) in [
        (
            "server",
            "server metadata /a\nserver other /b",
            "line 30: a second server line",
        ),
        (
            "server",
            "server metadata 192.0.2.1:80",
            "line 29: agent socket «192.0.2.1:80»: not an absolute path",
        ),
        (
            "server",
            "server metadata /a check",
            "line 29: does not understand «server metadata /a check» in section listen",
        ),
        (
            "bind",
            "bind 169.254.169.254",
            "line 27: bind address «169.254.169.254»: no port",
        ),
        (
            "bind",
            "bind 169.254.169.254:70000",
            "line 27: bind address «169.254.169.254:70000»: not a port from 1 to 65535",
        ),
        (
            "bind",
            "bind metadata:80",
            "line 27: bind address «metadata:80»: not an IP address",
        ),
        (
            "bind",
            "bind 169.254.169.254:80 ssl",
            "line 27: does not understand «bind 169.254.169.254:80 ssl» in section listen",
        ),
        (
            "http-request set-header",
            "http-request set-header X-Neutron-Network-ID 626d80b2",
            "line 32: network id «626d80b2»: not a UUID",
        ),
        (
            "http-request set-header",
            "http-request set-header X-Other x",
            "line 32: does not understand «http-request set-header X-Other x» in section listen",
        ),
        (
            "mode",
            "mode tcp",
            "line 14: does not understand «mode tcp» in section defaults",
        ),
        (
            "timeout client",
            "timeout client soon",
            "line 22: timeout «soon»: not a duration",
        ),
        (
            "log ",
            "log /dev/log local0 loud",
            "line 3: log level «loud»: not a syslog level, such as info or debug",
        ),
        (
            "listen",
            "frontend public",
            "line 26: section «frontend» is not one of global, defaults, backend, listen",
        ),
        (
            "listen",
            "backend web",
            "line 26: backend «web»: not one of Neutron's two rate-limit tables",
        ),
        (
            "listen",
            "listen a\nlisten b",
            "line 27: a second listen section",
        ),
        (
            "user",
            "user \"neutron\"",
            "line 5: a quotation mark or backslash",
        ),
        (
            "global",
            "daemon",
            "line 2: a directive stands before the first section",
        ),
    ] {
        let error = refusal(&with_line(prefix, replacement));
        assert_eq!(
            error.to_string(),
            format!("not a configuration Neutron writes: {expected}"),
            "{replacement}"
        );
    }
}

#[test]
fn what_is_missing_is_named() {
    for (prefix, expected) in [
        ("bind", "there is no bind line"),
        ("server", "there is no server line with the agent's socket"),
        (
            "http-request set-header",
            "there is no http-request line that sets the header of a router or a network",
        ),
    ] {
        let error = refusal(&with_line(prefix, ""));
        assert_eq!(
            error.to_string(),
            format!("not a configuration Neutron writes: {expected}")
        );
    }
    assert!(parse("").is_err());
}

#[test]
fn a_rate_limit_in_pieces_is_refused() {
    let whole = recorded!("2024.2-router-limited");
    for piece in [
        "    stick-table type ip size 10k expire 60s store http_req_rate(10s)",
        "    http-request track-sc1 src table burst_rate_limiter",
        "    http-request deny deny_status 429 if { src_http_req_rate(base_rate_limiter) gt 30 }",
    ] {
        assert!(whole.contains(piece), "{piece}");
        let error = refusal(&whole.replace(piece, ""));
        assert!(error.to_string().contains("rate limit"), "{error}");
    }
    let mixed = whole.replacen("type ip ", "type ipv6 ", 1);
    assert!(refusal(&mixed).to_string().contains("different families"));
}

#[test]
fn foreign_text_in_a_message_is_cut() {
    let error = refusal(&with_line("daemon", &"é".repeat(10_000)));
    assert!(error.to_string().len() < 400, "{error}");
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn a_damaged_configuration_is_read_without_a_panic(
        recorded in 0..RECORDED.len(),
        at in any::<prop::sample::Index>(),
        cut in 0_usize..40,
        inserted in "[ -~\\n\\t é]{0,20}",
    ) {
        let text: Vec<char> = RECORDED[recorded].1.chars().collect();
        let start = at.index(text.len());
        let end = (start + cut).min(text.len());
        let damaged: String = text[..start]
            .iter()
            .copied()
            .chain(inserted.chars())
            .chain(text[end..].iter().copied())
            .collect();
        if let Ok(config) = parse(&damaged) {
            prop_assert!(!config.settings.binds.is_empty());
            prop_assert!(config.settings.binds.iter().all(|bind| bind.port != 0));
            prop_assert!(config.settings.agent_socket.is_absolute());
        }
    }
}
