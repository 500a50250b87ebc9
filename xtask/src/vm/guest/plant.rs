//! A network as Neutron builds it on a node for one guest: a bridge with the guest's tap, the
//! router's and the DHCP server's namespaces plugged into it, dnsmasq, and radvd for IPv6.
//!
//! Names, addresses, rules and options are those of Neutron's L3 and DHCP agents. Everything is in
//! namespaces of its own, and gone when the plant is dropped.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::background::Background;
use super::namespace::Namespace;
use super::scenario::{Guest, Way};
use super::tools::Tools;

/// What remains for a guest under VXLAN.
const MTU: u32 = 1450;
/// The tap that QEMU opens.
pub(super) const TAP: &str = "tap0";
/// The DHCP agent's port: the same in each network, since no network sees another.
const DHCP_DEVICE: &str = "tapd0d0d0d0-d0";
const ROUTER_DEVICE: &str = "qr-e0e0e0e0-e0";
const READY: Duration = Duration::from_secs(10);

/// Dropped in this order: who uses the namespaces first.
pub(super) struct Plant {
    _servers: Vec<Background>,
    _router: Option<Namespace>,
    _dhcp: Namespace,
    segment: Namespace,
}

impl Plant {
    /// Builds the network of `guest`. Its tenant namespaces go into `namespaces`, where the agent
    /// looks; the bridge, which is nobody's tenant, and files go into `scratch`.
    pub(super) fn build(
        guest: &Guest,
        namespaces: &Path,
        scratch: &Path,
        tools: &Tools,
    ) -> anyhow::Result<Self> {
        let scratch = scratch.join(guest.name);
        fs::create_dir_all(&scratch).context("creating a folder for a guest's network")?;
        let segment = Namespace::create(&scratch, "segment")?;
        segment.ip("link add br0 type bridge mcast_snooping 0")?;
        segment.ip(&format!("link set br0 mtu {MTU} up"))?;
        segment.ip(&format!("tuntap add mode tap name {TAP} vnet_hdr"))?;
        segment.ip(&format!("link set {TAP} mtu {MTU} master br0 up"))?;

        let dhcp = Namespace::create(namespaces, &format!("qdhcp-{}", guest.network))?;
        plug(&segment, "dhcp", &dhcp, DHCP_DEVICE)?;
        let mut servers = Vec::new();
        let mut router = None;
        match guest.way {
            Way::Router { proxy_enabled } => {
                dhcp.ip(&format!("addr add 10.0.0.2/24 dev {DHCP_DEVICE}"))?;
                let namespace = qrouter(guest, namespaces, &segment)?;
                namespace.ip(&format!("addr add 10.0.0.1/24 dev {ROUTER_DEVICE}"))?;
                rules(&namespace, proxy_enabled)?;
                router = Some(namespace);
            }
            Way::Isolated => {
                for address in [
                    "10.0.0.2/24",
                    "169.254.169.254/32",
                    "fe80::a9fe:a9fe/64 nodad",
                ] {
                    dhcp.ip(&format!("addr add {address} dev {DHCP_DEVICE}"))?;
                }
            }
            Way::Ipv6Only => {
                dhcp.ip(&format!(
                    "addr add 2001:db8:6::2/64 dev {DHCP_DEVICE} nodad"
                ))?;
                let namespace = qrouter(guest, namespaces, &segment)?;
                namespace.ip(&format!(
                    "addr add 2001:db8:6::1/64 dev {ROUTER_DEVICE} nodad"
                ))?;
                rules(&namespace, false)?;
                servers.push(radvd(&namespace, &scratch, tools)?);
                router = Some(namespace);
            }
        }
        if !matches!(guest.way, Way::Ipv6Only) {
            servers.push(dnsmasq(guest, &dhcp, &scratch, tools)?);
        }
        Ok(Self {
            _servers: servers,
            _router: router,
            _dhcp: dhcp,
            segment,
        })
    }

    /// The namespace in which QEMU finds the guest's tap, and nothing else.
    pub(super) fn segment(&self) -> &Path {
        self.segment.path()
    }
}

/// Connects a tenant namespace with the bridge, as a port of Open vSwitch would.
fn plug(segment: &Namespace, port: &str, tenant: &Namespace, device: &str) -> anyhow::Result<()> {
    segment.ip(&format!(
        "link add {port} type veth peer name {device} netns {}",
        tenant.path().display()
    ))?;
    segment.ip(&format!("link set {port} mtu {MTU} master br0 up"))?;
    tenant.ip(&format!("link set {device} mtu {MTU} up"))
}

fn qrouter(guest: &Guest, namespaces: &Path, segment: &Namespace) -> anyhow::Result<Namespace> {
    let namespace = Namespace::create(namespaces, &format!("qrouter-{}", guest.router))?;
    namespace.sysctl("ipv4/ip_forward", "1")?;
    namespace.sysctl("ipv6/conf/all/forwarding", "1")?;
    plug(segment, "router", &namespace, ROUTER_DEVICE)?;
    Ok(namespace)
}

/// The L3 agent's rules about metadata, with `enable_metadata_proxy` on or off.
fn rules(router: &Namespace, proxy_enabled: bool) -> anyhow::Result<()> {
    for (iptables, address) in [
        ("iptables", "169.254.169.254/32"),
        ("ip6tables", "fe80::a9fe:a9fe/128"),
    ] {
        let matched = format!("PREROUTING -d {address} -i qr-+ -p tcp -m tcp --dport 80");
        let mut rules = vec![
            format!("-t mangle -A {matched} -j MARK --set-xmark 0x1/0xffff"),
            "-A FORWARD -m mark --mark 0x1/0xffff -j DROP".to_owned(),
        ];
        if proxy_enabled {
            rules.extend([
                format!("-t nat -A {matched} -j REDIRECT --to-ports 9697"),
                "-A INPUT -m mark --mark 0x1/0xffff -j ACCEPT".to_owned(),
                "-A INPUT -p tcp -m tcp --dport 9697 -j DROP".to_owned(),
            ]);
        }
        for rule in rules {
            router.run(&format!("{iptables} -w {rule}"))?;
        }
    }
    Ok(())
}

/// As the DHCP agent runs it, in the foreground.
fn dnsmasq(
    guest: &Guest,
    dhcp: &Namespace,
    scratch: &Path,
    tools: &Tools,
) -> anyhow::Result<Background> {
    let file = |name: &str| scratch.join(name).display().to_string();
    let host = guest.ipv4.replace('.', "-");
    fs::write(
        file("host"),
        format!("{},host-{host}.openstacklocal,{}\n", guest.mac, guest.ipv4),
    )
    .context("writing dnsmasq's hosts")?;
    // An isolated network has no gateway, and its metadata is behind the DHCP port.
    let options: &[&str] = if guest.way == Way::Isolated {
        &[
            "option:dns-server,10.0.0.2",
            "option:classless-static-route,169.254.169.254/32,10.0.0.2",
            "249,169.254.169.254/32,10.0.0.2",
            "option:router",
        ]
    } else {
        &["option:dns-server,10.0.0.2", "option:router,10.0.0.1"]
    };
    let options: Vec<_> = options
        .iter()
        .map(|option| format!("tag:subnet-0,{option}\n"))
        .collect();
    fs::write(file("opts"), options.concat()).context("writing dnsmasq's options")?;

    let mut command = dhcp.command(tools.program("dnsmasq"));
    command
        .args([
            "--keep-in-foreground",
            "--no-hosts",
            "--no-resolv",
            "--conf-file=/dev/null",
        ])
        .args([
            "--user=root",
            "--local-service",
            "--bind-dynamic",
            "--domain=openstacklocal",
        ])
        .arg(format!("--interface={DHCP_DEVICE}"))
        .arg(format!("--pid-file={}", file("dnsmasq.pid")))
        .arg(format!("--dhcp-hostsfile={}", file("host")))
        .arg(format!("--dhcp-optsfile={}", file("opts")))
        .arg(format!("--dhcp-leasefile={}", file("leases")))
        .arg("--dhcp-range=set:subnet-0,10.0.0.0,static,255.255.255.0,86400s")
        .arg(format!("--dhcp-option-force=option:mtu,{MTU}"))
        .arg("--dhcp-lease-max=256")
        .arg("--log-facility=-");
    tools.equip(&mut command);
    let pid_file = scratch.join("dnsmasq.pid");
    let mut server = Background::start("dnsmasq", &mut command, &scratch.join("dnsmasq.log"))?;
    server.wait_until("serving", READY, || pid_file.exists())?;
    Ok(server)
}

/// As the L3 agent runs it for a subnet with SLAAC, only faster.
fn radvd(router: &Namespace, scratch: &Path, tools: &Tools) -> anyhow::Result<Background> {
    let path = |name: &str| scratch.join(name);
    let config = format!(
        "interface {ROUTER_DEVICE} {{ AdvSendAdvert on; MinRtrAdvInterval 3; \
         MaxRtrAdvInterval 10; AdvLinkMTU {MTU}; \
         prefix 2001:db8:6::/64 {{ AdvOnLink on; AdvAutonomous on; }}; }};\n"
    );
    fs::write(path("radvd.conf"), config).context("writing radvd's configuration")?;
    let mut command = router.command(tools.program("radvd"));
    command
        .args(["--nodaemon", "--logmethod", "stderr"])
        .arg("--config")
        .arg(path("radvd.conf"))
        .arg("--pidfile")
        .arg(path("radvd.pid"));
    tools.equip(&mut command);
    let pid_file = path("radvd.pid");
    let mut server = Background::start("radvd", &mut command, &path("radvd.log"))?;
    server.wait_until("serving", READY, || pid_file.exists())?;
    Ok(server)
}
