//! The firewall rules that Neutron's L3 agent leaves in a router namespace (source: its
//! `router_info.py` and `metadata/driver.py`).

use std::fmt::Write as _;

use anyhow::Result;

use crate::netns::Netns;

/// The port that Neutron's `REDIRECT` leads to, its option `metadata_port`.
pub const METADATA_PORT: u16 = 9697;

/// What follows `qg-` in the name of the device that leads out of the cloud.
const GATEWAY_DEVICE: &str = "0a1b2c3d-4e";

/// Whether the agent's own proxy is switched on, its option `enable_metadata_proxy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeutronProxy {
    /// Requests are redirected to [`METADATA_PORT`], which nobody else reaches.
    Enabled,
    /// Requests are marked, and dropped rather than forwarded; nothing else.
    Disabled,
}

/// Installs the rules for IPv4 and IPv6 in a router namespace.
///
/// They go with the namespace.
///
/// # Errors
/// iptables refused.
pub fn install_rules(netns: &Netns, proxy: NeutronProxy) -> Result<()> {
    let (v4, v6) = ("169.254.169.254/32", "fe80::a9fe:a9fe/128");
    netns.feed("iptables-restore", &[], &rules(v4, "203.0.113.7", proxy))?;
    netns.feed("ip6tables-restore", &[], &rules(v6, "2001:db8::7", proxy))
}

/// The rules of one IP version, in the chains of Neutron's iptables manager. Those for the gateway's
/// address are in every router that has one.
fn rules(address: &str, gateway: &str, proxy: NeutronProxy) -> String {
    let enabled = proxy == NeutronProxy::Enabled;
    let matched = format!("-d {address} -i qr-+ -p tcp -m tcp --dport 80");
    let mut text = String::new();
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = text.write_fmt(arguments);
        text.push('\n');
    };
    line(format_args!("*mangle"));
    line(format_args!(":neutron-l3-agent-PREROUTING - [0:0]"));
    line(format_args!("-A PREROUTING -j neutron-l3-agent-PREROUTING"));
    line(format_args!(
        "-A neutron-l3-agent-PREROUTING {matched} -j MARK --set-xmark 0x1/0xffff"
    ));
    line(format_args!("COMMIT"));
    line(format_args!("*nat"));
    for chain in ["PREROUTING", "OUTPUT", "POSTROUTING"] {
        line(format_args!(":neutron-l3-agent-{chain} - [0:0]"));
        line(format_args!("-A {chain} -j neutron-l3-agent-{chain}"));
    }
    line(format_args!(":neutron-l3-agent-snat - [0:0]"));
    line(format_args!(":neutron-postrouting-bottom - [0:0]"));
    line(format_args!("-A POSTROUTING -j neutron-postrouting-bottom"));
    line(format_args!(
        "-A neutron-postrouting-bottom -j neutron-l3-agent-snat"
    ));
    line(format_args!(
        "-A neutron-l3-agent-snat -o qg-{GATEWAY_DEVICE} -j SNAT --to-source {gateway}"
    ));
    if enabled {
        line(format_args!(
            "-A neutron-l3-agent-PREROUTING {matched} -j REDIRECT --to-ports {METADATA_PORT}"
        ));
    }
    line(format_args!("COMMIT"));
    line(format_args!("*filter"));
    for chain in ["INPUT", "FORWARD", "scope"] {
        line(format_args!(":neutron-l3-agent-{chain} - [0:0]"));
    }
    line(format_args!("-A INPUT -j neutron-l3-agent-INPUT"));
    line(format_args!("-A FORWARD -j neutron-l3-agent-FORWARD"));
    line(format_args!(
        "-A neutron-l3-agent-FORWARD -j neutron-l3-agent-scope"
    ));
    if enabled {
        line(format_args!(
            "-A neutron-l3-agent-INPUT -m mark --mark 0x1/0xffff -j ACCEPT"
        ));
        line(format_args!(
            "-A neutron-l3-agent-INPUT -p tcp -m tcp --dport {METADATA_PORT} -j DROP"
        ));
    }
    line(format_args!(
        "-A neutron-l3-agent-scope -m mark --mark 0x1/0xffff -j DROP"
    ));
    line(format_args!("COMMIT"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_proxy_the_mark_and_the_drop_stay() {
        let text = rules("169.254.169.254/32", "203.0.113.7", NeutronProxy::Disabled);
        assert!(
            !text.contains("REDIRECT") && !text.contains("9697"),
            "{text}"
        );
        assert!(text.contains("--set-xmark 0x1/0xffff"), "{text}");
        assert!(
            text.contains("scope -m mark --mark 0x1/0xffff -j DROP"),
            "{text}"
        );
    }
}
