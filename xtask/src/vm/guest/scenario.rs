//! Which guests are booted together, what each is to be told, and how it proves that it was.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// How a guest reaches its metadata.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// Through its router's namespace.
    Router {
        /// With Neutron's REDIRECT rules, or without, as after `enable_metadata_proxy=False`.
        proxy_enabled: bool,
    },
    /// Through the DHCP namespace of a network without a router.
    Isolated,
    /// Through its router's namespace, on a network without IPv4.
    Ipv6Only,
}

/// A guest and its instance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guest {
    pub(super) name: &'static str,
    pub(super) way: Way,
    pub(super) router: &'static str,
    pub(super) network: &'static str,
    pub(super) instance: &'static str,
    pub(super) mac: &'static str,
    pub(super) ipv4: &'static str,
    pub(super) key: &'static str,
}

/// Guests that run at the same time.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) guests: &'static [Guest],
}

/// All of them. The first has one address twice, in two tenants.
pub(super) const ALL: [Scenario; 3] = [
    Scenario {
        name: "routers",
        guests: &[
            Guest {
                name: "alpha",
                way: Way::Router {
                    proxy_enabled: false,
                },
                router: "a1a1a1a1-0000-4000-8000-000000000001",
                network: "a1a1a1a1-0000-4000-8000-000000000002",
                instance: "a1a1a1a1-0000-4000-8000-000000000003",
                mac: "fa:16:3e:a1:a1:a1",
                ipv4: "10.0.0.5",
                key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGh alpha",
            },
            Guest {
                name: "beta",
                way: Way::Router {
                    proxy_enabled: true,
                },
                router: "b2b2b2b2-0000-4000-8000-000000000001",
                network: "b2b2b2b2-0000-4000-8000-000000000002",
                instance: "b2b2b2b2-0000-4000-8000-000000000003",
                mac: "fa:16:3e:b2:b2:b2",
                ipv4: "10.0.0.5",
                key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILKysrKysrKysrKysrKysrKysrKysrKysrKysrKysrKy beta",
            },
        ],
    },
    Scenario {
        name: "isolated",
        guests: &[Guest {
            name: "gamma",
            way: Way::Isolated,
            router: "",
            network: "c3c3c3c3-0000-4000-8000-000000000002",
            instance: "c3c3c3c3-0000-4000-8000-000000000003",
            mac: "fa:16:3e:c3:c3:c3",
            ipv4: "10.0.0.5",
            key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMPDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PD gamma",
        }],
    },
    Scenario {
        name: "ipv6-only",
        guests: &[Guest {
            name: "delta",
            way: Way::Ipv6Only,
            router: "d4d4d4d4-0000-4000-8000-000000000001",
            network: "d4d4d4d4-0000-4000-8000-000000000002",
            instance: "d4d4d4d4-0000-4000-8000-000000000003",
            mac: "fa:16:3e:d4:d4:d4",
            ipv4: "",
            key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINTU1NTU1NTU1NTU1NTU1NTU1NTU1NTU1NTU1NTU1NTU delta",
        }],
    },
];

impl Guest {
    pub(super) fn host_name(&self) -> String {
        format!("{}-guest", self.name)
    }

    /// Where the guest asks.
    fn url(&self) -> &'static str {
        match self.way {
            Way::Router { .. } | Way::Isolated => "http://169.254.169.254",
            Way::Ipv6Only => "http://[fe80::a9fe:a9fe%25eth0]",
        }
    }

    /// A script that tells over the console what arrived. Long enough, with its comments, to need
    /// many segments on its way.
    pub(super) fn user_data(&self) -> String {
        let mut script = format!(
            "#!/bin/sh\n\
             say() {{ echo \"VMGUEST $*\" > /dev/console; }}\n\
             say instance-id $(cloud-init query instance_id)\n\
             say host-name $(hostname)\n\
             say key $(tail -n 1 /home/debian/.ssh/authorized_keys)\n\
             say user-data $(sha256sum < /var/lib/cloud/instance/user-data.txt | cut -c -64)\n\
             padding=$(head -c 4000 /dev/zero | tr '\\000' x)\n\
             say long-request $(curl -s -g -o /dev/null -w '%{{http_code}}' \
             -H \"X-Padding: $padding\" '{}/openstack/latest/meta_data.json')\n\
             say segmentation $(ethtool -k eth0 | sed -n 's/^tcp-segmentation-offload: //p')\n\
             say gateway $(ip route show default; ip -6 route show default)\n\
             say end\n",
            self.url()
        );
        for line in 0..400 {
            // Writing to a String cannot fail.
            let _ = writeln!(script, "# {} {line:03} {}", self.name, "-".repeat(50));
        }
        script
    }

    /// What it has to say, but for the user data's sum.
    pub(super) fn expected(&self) -> Vec<(&'static str, String)> {
        vec![
            ("instance-id", self.instance.to_owned()),
            ("host-name", self.host_name()),
            ("key", self.key.to_owned()),
            ("long-request", "200".to_owned()),
            ("segmentation", "on".to_owned()),
        ]
    }

    /// The tenant and its instance, as the embedded upstream's file has them.
    pub(super) fn tenant(&self, user_data_file: &str) -> Value {
        let (kind, id) = match self.way {
            Way::Router { .. } | Way::Ipv6Only => ("router", self.router),
            Way::Isolated => ("network", self.network),
        };
        json!({
            kind: id,
            "instances": [{
                "addresses": self.addresses(),
                "name": self.name,
                "hostname": format!("{}.example.org", self.host_name()),
                "uuid": self.instance,
                "public_keys": { self.name: self.key },
                "user_data_file": user_data_file,
            }],
        })
    }

    fn addresses(&self) -> Vec<String> {
        match self.way {
            Way::Router { .. } | Way::Isolated => vec![self.ipv4.to_owned()],
            Way::Ipv6Only => {
                let interface = interface_id(self.mac);
                vec![
                    format!("2001:db8:6::{interface}"),
                    format!("fe80::{interface}"),
                ]
            }
        }
    }
}

/// The last 64 bits of an address that a guest makes of its MAC (RFC 4291, appendix A).
fn interface_id(mac: &str) -> String {
    let bytes: Vec<u8> = mac
        .split(':')
        .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    let Ok([first, mac @ ..]) = <[u8; 6]>::try_from(bytes) else {
        return String::new();
    };
    format!(
        "{:x}{:02x}:{:x}ff:fe{:02x}:{:x}{:02x}",
        first ^ 2,
        mac[0],
        mac[1],
        mac[2],
        mac[3],
        mac[4]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_id_is_made_of_the_mac() {
        assert_eq!(interface_id("fa:16:3e:d4:d4:d4"), "f816:3eff:fed4:d4d4");
    }

    #[test]
    fn guests_of_one_scenario_may_share_an_address_but_nothing_that_tells_them_apart() {
        for scenario in &ALL {
            let mut told: Vec<_> = scenario
                .guests
                .iter()
                .flat_map(|guest| [guest.instance, guest.key])
                .collect();
            told.sort_unstable();
            told.dedup();
            assert_eq!(told.len(), scenario.guests.len() * 2, "{}", scenario.name);
        }
    }
}
