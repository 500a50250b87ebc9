//! What is behind a tenant's device: guests, and a switch where there are several.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Result, bail};

use crate::{
    curl::Reply,
    netns::Netns,
    node::Node,
    process::Running,
    tenant::{Kind, TenantFixture},
    wait::wait_for,
};

/// Name of a guest's device.
pub const GUEST_DEVICE: &str = "eth0";

/// The metadata address for IPv6.
pub const METADATA_V6_ADDRESS: &str = "fe80::a9fe:a9fe";

/// How long the kernel may take to tell a device that its other end is there.
const CARRIER_WITHIN: Duration = Duration::from_secs(10);

/// A subnet of a tenant: the tenant's device, and guests that reach it.
#[derive(Debug)]
pub struct Subnet {
    /// Name of the device in the tenant namespace.
    pub device: String,
    /// That device's own address of its link.
    pub link_local: Ipv6Addr,
    /// The guests.
    pub guests: Vec<Guest>,
    /// The switch between them, where there is more than one guest.
    _switch: Option<Netns>,
}

impl Subnet {
    pub(crate) fn plug(node: &Node, tenant: &TenantFixture, index: u8, guests: u8) -> Result<Self> {
        let id = tenant.id.simple().to_string();
        // Device names hold 15 bytes; the real ones too are cut from UUIDs.
        let device = match tenant.kind {
            Kind::Router => format!("qr-{}-{index:02x}", &id[..8]),
            Kind::Network => format!("tap{}-{index:02x}", &id[..8]),
            Kind::OvnNetwork => format!("tap{}{}", &id[..10], u16::from(index) + 1),
        };
        let addresses = Addresses {
            kind: tenant.kind,
            index,
        };
        let namespaces = (1..=guests)
            .map(|guest| {
                Netns::hidden(
                    node,
                    &format!("guest-{}-{index}-{guest}", tenant.netns.name()),
                )
            })
            .collect::<Result<Vec<_>>>()?;
        let switch = match &*namespaces {
            [] => bail!("a subnet without a guest has nothing behind its device"),
            [only] => {
                let (mine, its) = (addresses.port_mac(), addresses.guest_mac(1));
                veth(
                    &tenant.netns,
                    &device,
                    &mine,
                    only.path(),
                    GUEST_DEVICE,
                    &its,
                )?;
                None
            }
            several => {
                let switch =
                    Netns::hidden(node, &format!("switch-{}-{index}", tenant.netns.name()))?;
                switch_between(&switch, tenant, &device, several, &addresses)?;
                Some(switch)
            }
        };
        tenant.netns.ip_batch(&addresses.of_port(&device, guests))?;
        let guests = (1..=guests)
            .zip(namespaces)
            .map(|(number, netns)| {
                netns.ip_batch(&addresses.of_guest(number))?;
                let (v4, link_local) = (addresses.guest_v4(number), addresses.guest_v6(number));
                Ok(Guest {
                    netns,
                    v4,
                    link_local,
                    node: node.clone(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        wait_for_carrier(&tenant.netns, &device)?;
        for guest in &guests {
            wait_for_carrier(&guest.netns, GUEST_DEVICE)?;
        }
        Ok(Self {
            device,
            link_local: link_local(index, addresses.port()),
            guests,
            _switch: switch,
        })
    }
}

/// Whoever stands for a virtual machine: a namespace of its own with one device.
#[derive(Debug)]
pub struct Guest {
    /// Its namespace.
    pub netns: Netns,
    /// Its fixed IPv4 address.
    pub v4: Ipv4Addr,
    /// Its link-local IPv6 address.
    pub link_local: Ipv6Addr,
    node: Node,
}

impl Guest {
    /// The metadata service as guests know it, over IPv6.
    #[must_use]
    pub fn metadata_v6(&self) -> String {
        format!("http://[{METADATA_V6_ADDRESS}%25{GUEST_DEVICE}]")
    }

    /// Asks with curl.
    ///
    /// # Errors
    /// curl cannot be run.
    pub fn curl(&self, url: &str, arguments: &[&str]) -> Result<Reply> {
        // From inside, as `Netns::ip`.
        self.netns
            .run(|| crate::curl::curl(&mut Command::new("curl"), url, arguments))
    }

    /// Starts a program in the background, its output in the node's directory.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, program: &str, arguments: &[&str]) -> Result<Running> {
        let log = self
            .node
            .directory()
            .join(format!("{}-{program}.log", self.netns.name()));
        Running::start(program, self.netns.command(program)?.args(arguments), &log)
    }
}

/// The addresses of one subnet.
struct Addresses {
    kind: Kind,
    index: u8,
}

impl Addresses {
    /// Last byte of the port's address: a router is the gateway, a DHCP or metadata port is not.
    const fn port(&self) -> u8 {
        match self.kind {
            Kind::Router => 1,
            Kind::Network | Kind::OvnNetwork => 2,
        }
    }

    fn guest_v4(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.index, 4 + number)
    }

    fn guest_v6(&self, number: u8) -> Ipv6Addr {
        link_local(self.index, 4 + number)
    }

    fn port_mac(&self) -> String {
        mac(self.index, self.port())
    }

    fn guest_mac(&self, number: u8) -> String {
        mac(self.index, 4 + number)
    }

    /// Commands that give the tenant's device its addresses, and make its guests known to it.
    fn of_port(&self, device: &str, guests: u8) -> String {
        let Self { index, .. } = self;
        let port = self.port();
        let own = link_local(*index, port);
        let metadata = if self.kind == Kind::Router {
            String::new()
        } else {
            format!(
                "addr add 169.254.169.254/32 dev {device}\n\
                 addr add {METADATA_V6_ADDRESS}/128 dev {device} nodad\n"
            )
        };
        let known: String = (1..=guests)
            .map(|number| {
                let (v4, mac) = (self.guest_v4(number), self.guest_mac(number));
                format!("neigh replace {v4} lladdr {mac} dev {device} nud permanent\n")
            })
            .collect();
        format!(
            "link set {device} addrgenmode none\n\
             addr add 10.0.{index}.{port}/24 dev {device}\n\
             addr add {own}/64 dev {device} nodad\n\
             {metadata}link set {device} up\n{known}"
        )
    }

    /// Commands that give a guest its addresses and routes: the default route and, by DHCP option
    /// 121 where its network is isolated, the one to the metadata address. A router announces the
    /// route for IPv6 (radvd); elsewhere the address is on the link.
    fn of_guest(&self, number: u8) -> String {
        let Self { index, .. } = self;
        let port = self.port();
        let (v4, v6) = (self.guest_v4(number), self.guest_v6(number));
        let router = link_local(*index, port);
        let ways = match self.kind {
            Kind::Router => format!(
                "route add default via 10.0.{index}.{port}\n\
                 route add {METADATA_V6_ADDRESS}/128 via {router} dev {GUEST_DEVICE}\n"
            ),
            Kind::Network | Kind::OvnNetwork => {
                format!("route add 169.254.169.254/32 via 10.0.{index}.{port}\n")
            }
        };
        // Nobody has to be asked who has the port's address: the kernel's table of neighbours is one
        // for all namespaces, and too small for those of a crowd.
        let known = format!(
            "neigh replace 10.0.{index}.{port} lladdr {} dev {GUEST_DEVICE} nud permanent\n",
            self.port_mac()
        );
        format!(
            "link set {GUEST_DEVICE} addrgenmode none\n\
             addr add {v4}/24 dev {GUEST_DEVICE}\n\
             addr add {v6}/64 dev {GUEST_DEVICE} nodad\n\
             link set {GUEST_DEVICE} up\n\
             {ways}{known}"
        )
    }
}

fn mac(index: u8, last: u8) -> String {
    format!("fa:16:3e:00:{index:02x}:{last:02x}")
}

/// The link-local address made from [`mac`] by EUI-64.
fn link_local(index: u8, last: u8) -> Ipv6Addr {
    let tail = u16::from(index) << 8 | u16::from(last);
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0xf816, 0x3eff, 0xfe00, tail)
}

fn veth(
    netns: &Netns,
    device: &str,
    mac: &str,
    peer_netns: &Path,
    peer: &str,
    peer_mac: &str,
) -> Result<()> {
    netns.ip_batch(&format!(
        "link add {device} address {mac} type veth \
         peer name {peer} address {peer_mac} netns {}\n",
        peer_netns.display()
    ))
}

/// Joins the tenant's device and all guests by a bridge in a namespace of its own.
fn switch_between(
    switch: &Netns,
    tenant: &TenantFixture,
    device: &str,
    guests: &[Netns],
    addresses: &Addresses,
) -> Result<()> {
    switch.ip_batch("link add br0 type bridge\nlink set br0 up\n")?;
    // The switch's own ends take no part in addressing; their MACs only must differ.
    let uplink = mac(0xff, 0);
    veth(
        switch,
        "p0",
        &uplink,
        tenant.netns.path(),
        device,
        &addresses.port_mac(),
    )?;
    let mut ports = vec!["p0".to_owned()];
    for (number, guest) in (1..).zip(guests) {
        let (port, own) = (format!("p{number}"), mac(0xff, number));
        veth(
            switch,
            &port,
            &own,
            guest.path(),
            GUEST_DEVICE,
            &addresses.guest_mac(number),
        )?;
        ports.push(port);
    }
    let up = ports
        .iter()
        .map(|port| format!("link set {port} master br0 up\n"));
    switch.ip_batch(&up.collect::<String>())
}

/// Waits until a device can send: before, the kernel drops what it is given and marks its routes.
fn wait_for_carrier(netns: &Netns, device: &str) -> Result<()> {
    let what = format!("carrier on {device} in {}", netns.name());
    wait_for(&what, CARRIER_WITHIN, || {
        // Asking for this one device makes the kernel (6.7 and later) look now; a dump would show
        // what it saw up to a second ago.
        let link = netns.ip(&format!("link show dev {device}"))?;
        Ok((link.contains("LOWER_UP") && !link.contains("NO-CARRIER")).then_some(()))
    })
}
