//! Whoever changes a layout or a meaning of the contract raises its version.
//!
//! `abi.lock` holds the contract as text. Where this test finds another, run it with
//! `UPDATE_ABI_LOCK=1`: it writes the file anew, but only under another version.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::{env, fs, mem::offset_of, path::Path};

use metadata_proxy_common::{
    ABI_VERSION, DEFAULT_LISTENER_PORT, METADATA_PORT, METADATA_V4, METADATA_V6, NEUTRON_MARK,
    Outcome, TenantKey, TenantKind, TenantValue, names,
    tenant::{WRITER_AGENT, WRITER_OTHER},
};

/// Renders a struct; one whose fields are not all named here does not compile.
macro_rules! layout {
    ($name:ident { $($field:ident),+ }) => {{
        let _: fn($name) = |$name { $($field: _),+ }| ();
        let mut text = format!(
            "struct {} size {} align {}\n",
            stringify!($name),
            size_of::<$name>(),
            align_of::<$name>(),
        );
        $(text += &format!("  {} at {}\n", stringify!($field), offset_of!($name, $field));)+
        text
    }};
}

fn contract() -> String {
    let kinds = [
        TenantKind::Router,
        TenantKind::Network,
        TenantKind::OvnNetwork,
    ];
    let kinds: String = kinds
        .iter()
        .map(|kind| format!("kind {kind:?} {}\n", *kind as u8))
        .collect();
    let outcomes: String = Outcome::ALL
        .iter()
        .map(|outcome| format!("outcome {} {}\n", outcome.index(), outcome.label()))
        .collect();
    let names = [
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
    ];
    let names: String = names.iter().map(|name| format!("name {name}\n")).collect();
    [
        format!("version {ABI_VERSION}\n"),
        layout!(TenantKey { netns_cookie }),
        layout!(TenantValue {
            uuid,
            kind,
            writer,
            padding
        }),
        kinds,
        outcomes,
        names,
        format!("metadata-v4 {METADATA_V4:?}\nmetadata-v6 {METADATA_V6:x?}\n"),
        format!("metadata-port {METADATA_PORT}\nlistener-port {DEFAULT_LISTENER_PORT}\n"),
        format!("writer agent {WRITER_AGENT} other {WRITER_OTHER}\n"),
        format!("neutron-mark {NEUTRON_MARK:#x}\n"),
    ]
    .concat()
}

#[test]
fn the_contract_is_the_one_its_version_stands_for() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("abi.lock");
    let locked = fs::read_to_string(&path).unwrap_or_default();
    let now = contract();
    if locked == now {
        return;
    }
    let same_version = locked.lines().next() == now.lines().next();
    assert!(
        !same_version,
        "the contract has changed, so raise ABI_VERSION:\n{now}"
    );
    assert!(
        env::var_os("UPDATE_ABI_LOCK").is_some(),
        "write down the new contract: UPDATE_ABI_LOCK=1 cargo test -p metadata-proxy-common"
    );
    fs::write(path, now).unwrap();
}
