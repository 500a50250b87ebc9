//! The kernel/user contract has a version, and this enforces it: whatever changes a layout, a number
//! or a name must raise `ABI_VERSION`, and with it the committed description.

#![expect(clippy::unwrap_used, reason = "what fails in a test is to panic there")]

use std::{fmt::Write as _, mem::offset_of};

use metadata_proxy_common::{
    ABI_VERSION, DEFAULT_LISTENER_PORT, METADATA_PORT, METADATA_V4, METADATA_V6, NEUTRON_MARK,
    Outcome, TenantKey, TenantKind, TenantValue, names,
    tenant::{WRITER_AGENT, WRITER_OTHER},
};

const COMMITTED: &str = include_str!("../abi.lock");

fn describe() -> String {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").unwrap();
    line(format!("abi {ABI_VERSION}"));
    line(format!(
        "metadata {METADATA_V4:?} {METADATA_V6:?} port {METADATA_PORT}"
    ));
    line(format!(
        "listener port {DEFAULT_LISTENER_PORT} mark {NEUTRON_MARK}"
    ));
    line(format!("TenantKey size {}", size_of::<TenantKey>()));
    line(format!(
        "  netns_cookie at {}",
        offset_of!(TenantKey, netns_cookie)
    ));
    line(format!("TenantValue size {}", size_of::<TenantValue>()));
    line(format!("  uuid at {}", offset_of!(TenantValue, uuid)));
    line(format!("  kind at {}", offset_of!(TenantValue, kind)));
    line(format!("  writer at {}", offset_of!(TenantValue, writer)));
    line(format!("  padding at {}", offset_of!(TenantValue, padding)));
    for kind in [
        TenantKind::Router,
        TenantKind::Network,
        TenantKind::OvnNetwork,
    ] {
        line(format!("kind {} {kind:?}", kind as u8));
    }
    line(format!("writer {WRITER_OTHER} other, {WRITER_AGENT} agent"));
    for outcome in Outcome::ALL {
        line(format!("outcome {} {}", outcome.index(), outcome.label()));
    }
    for name in [
        names::TENANTS,
        names::OUTCOMES,
        names::DIALLED,
        names::LISTENERS,
        names::STEER,
        names::LOOKUP,
        names::CONNECT4,
        names::CONNECT6,
        names::GETPEERNAME4,
        names::GETPEERNAME6,
        names::ABI,
        names::LISTENER_PORT,
        names::LISTENER_V4_ONLY,
        names::DEBUG_LOG,
    ] {
        line(format!("name {name}"));
    }
    text
}

#[test]
fn the_contract_is_the_committed_one() {
    let described = describe();
    if described == COMMITTED {
        return;
    }
    let version = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    assert_ne!(
        version(&described),
        version(COMMITTED),
        "the contract changed and ABI_VERSION did not: raise it, then put this into abi.lock:\n\
         {described}"
    );
    panic!("ABI_VERSION was raised: put this into abi.lock:\n{described}");
}

#[test]
fn every_kind_survives_its_byte() {
    for kind in [
        TenantKind::Router,
        TenantKind::Network,
        TenantKind::OvnNetwork,
    ] {
        assert_eq!(TenantKind::from_byte(kind as u8), Some(kind));
        assert_eq!(TenantValue::by_agent(kind, [7; 16]).kind, kind as u8);
    }
    assert_eq!(TenantKind::from_byte(0), None);
    assert_eq!(TenantKind::from_byte(4), None);
}
