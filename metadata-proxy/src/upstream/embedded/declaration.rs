//! An instance as the file declares it: valid, with every default filled in.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use bytes::Bytes;
use uuid::Uuid;

use super::{
    device::Device,
    document::{Entry, Node, Value},
    fields::{self, Fields, Report},
    json::{self, Members},
    problem::Place,
    tenants::{ReadFile, UUID},
    user_data,
};
use crate::identity::{GuestAddress, Tenant};

/// An instance as declared.
#[derive(Debug)]
pub(super) struct Declaration {
    pub(super) addresses: Vec<GuestAddress>,
    pub(super) uuid: Uuid,
    pub(super) name: String,
    pub(super) hostname: String,
    pub(super) project_id: Option<String>,
    pub(super) availability_zone: String,
    pub(super) launch_index: u32,
    pub(super) public_keys: Vec<(String, String)>,
    pub(super) meta: Vec<(String, String)>,
    pub(super) devices: Vec<Device>,
    pub(super) dedicated_cpus: Vec<u32>,
    pub(super) user_data: Option<Bytes>,
    /// `vendor_data.json`.
    pub(super) vendor_data: String,
    /// `vendor_data2.json`.
    pub(super) vendor_data2: String,
    /// `network_data.json`.
    pub(super) network_data: Option<String>,
    pub(super) flavor: Option<String>,
    pub(super) ec2_id: String,
    pub(super) ami_id: String,
    pub(super) kernel_id: Option<String>,
    pub(super) ramdisk_id: Option<String>,
    pub(super) reservation_id: String,
    pub(super) security_groups: Vec<String>,
    pub(super) block_devices: Vec<(String, String)>,
    pub(super) public_ipv4: Option<Ipv4Addr>,
}

impl Declaration {
    /// Reads an instance; `taken` holds the addresses its tenant has given to others so far.
    pub(super) fn read(
        node: &Node,
        tenant: Option<Tenant>,
        taken: &mut HashMap<GuestAddress, Place>,
        read_file: &mut ReadFile<'_>,
        report: &mut Report,
    ) -> Option<Self> {
        let fields = Fields::of(node, "an instance", report)?;
        Reading {
            place: node.place,
            fields,
        }
        .instance(tenant, taken, read_file, report)
    }

    /// The first IPv4 address, if there is one.
    pub(super) fn local_ipv4(&self) -> Option<Ipv4Addr> {
        self.addresses
            .iter()
            .find_map(|address| match address.ip() {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            })
    }
}

/// One instance while its keys are being taken.
struct Reading<'a> {
    place: Place,
    fields: Fields<'a>,
}

impl Reading<'_> {
    fn instance(
        mut self,
        tenant: Option<Tenant>,
        taken: &mut HashMap<GuestAddress, Place>,
        read_file: &mut ReadFile<'_>,
        report: &mut Report,
    ) -> Option<Declaration> {
        let addresses = self.addresses(taken, report);
        let uuid = self
            .fields
            .parsed("uuid", UUID, report, |text| Uuid::try_parse(text).ok());
        let name = self.fields.line("name", report);
        let name = self.fields.require("name", name, report);
        let uuid = uuid.unwrap_or_else(|| derived_uuid(tenant, &addresses));
        let (high, low) = (uuid.as_u128() >> 96, uuid.as_u128() >> 64 & 0xffff_ffff);
        let hostname = self.hostname(name.unwrap_or_default(), uuid, report);
        let (vendor_data, vendor_data2) = self.vendor_data(report);
        let declared = Declaration {
            uuid,
            name: name.unwrap_or_default().to_owned(),
            hostname,
            project_id: self.owned_line("project_id", report),
            availability_zone: self
                .owned_line("availability_zone", report)
                .unwrap_or_else(|| "nova".to_owned()),
            launch_index: self
                .fields
                .number("launch_index", 0..=u32::MAX, report)
                .unwrap_or(0),
            public_keys: self.public_keys(report),
            meta: owned(self.fields.texts("meta", report).unwrap_or_default()),
            devices: self.devices(report),
            dedicated_cpus: self.dedicated_cpus(report),
            user_data: user_data::take(&mut self.fields, self.place, read_file, report),
            vendor_data,
            vendor_data2,
            network_data: self.network_data(report),
            flavor: self.owned_line("flavor", report),
            ec2_id: self
                .ec2_id("ec2_id", "i-", report)
                .unwrap_or_else(|| format!("i-{high:08x}")),
            ami_id: self
                .ec2_id("ami_id", "ami-", report)
                .unwrap_or_else(|| "ami-00000000".to_owned()),
            kernel_id: self.ec2_id("kernel_id", "aki-", report),
            ramdisk_id: self.ec2_id("ramdisk_id", "ari-", report),
            reservation_id: self
                .owned_line("reservation_id", report)
                .unwrap_or_else(|| format!("r-{low:08x}")),
            security_groups: self
                .fields
                .lines("security_groups", report)
                .map_or_else(|| vec!["default".to_owned()], owned_lines),
            block_devices: self.block_devices(report),
            public_ipv4: self
                .fields
                .parsed("public_ipv4", "an IPv4 address", report, |text| {
                    text.parse().ok()
                }),
            addresses,
        };
        self.fields.finish(report);
        name.map(|_| declared)
    }

    fn owned_line(&mut self, key: &'static str, report: &mut Report) -> Option<String> {
        self.fields.line(key, report).map(str::to_owned)
    }

    fn addresses(
        &mut self,
        taken: &mut HashMap<GuestAddress, Place>,
        report: &mut Report,
    ) -> Vec<GuestAddress> {
        let nodes = self.fields.list("addresses", report);
        let Some(nodes) = self.fields.require("addresses", nodes, report) else {
            return Vec::new();
        };
        if nodes.is_empty() {
            report.add(self.place, "an instance needs at least one of `addresses`");
        }
        let mut addresses = Vec::with_capacity(nodes.len());
        for node in nodes {
            let Some(text) = fields::line(node, "an address", report) else {
                continue;
            };
            let Ok(address) = text.parse::<IpAddr>().map(GuestAddress::from) else {
                report.add(
                    node.place,
                    format!(
                        "an address must be IPv4 or IPv6, without prefix length or zone, \
                         not `{text}`"
                    ),
                );
                continue;
            };
            if let Some(place) = taken.insert(address, node.place) {
                report.add(
                    node.place,
                    format!("{address} is declared twice in one tenant, first at {place}"),
                );
            }
            addresses.push(address);
        }
        addresses
    }

    fn hostname(&mut self, name: &str, uuid: Uuid, report: &mut Report) -> String {
        let expected = "a name of letters, digits, `-`, `_` and `.`, at most 255 of them";
        let given = self.fields.parsed("hostname", expected, report, |text| {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            (text.len() <= 255 && text.chars().all(is_allowed)).then(|| text.to_owned())
        });
        given.unwrap_or_else(|| {
            let label = host_label(name);
            if label.is_empty() {
                format!("server-{uuid}.novalocal")
            } else {
                label + ".novalocal"
            }
        })
    }

    fn public_keys(&mut self, report: &mut Report) -> Vec<(String, String)> {
        let Some(keys) = self.fields.table("public_keys", report) else {
            return Vec::new();
        };
        let mut read = Vec::with_capacity(keys.len());
        for Entry {
            key: name,
            place,
            value,
        } in keys
        {
            if name.is_empty() || name.chars().any(char::is_control) {
                report.add(
                    *place,
                    "the name of a key must be one line that is not empty",
                );
            }
            if let Some(data) = fields::text(value, &format!("key `{name}`"), report) {
                read.push((name.clone(), data.trim_end().to_owned()));
            }
        }
        read
    }

    fn devices(&mut self, report: &mut Report) -> Vec<Device> {
        let nodes = self.fields.list("devices", report).unwrap_or_default();
        nodes
            .iter()
            .filter_map(|node| Device::read(node, report))
            .collect()
    }

    fn dedicated_cpus(&mut self, report: &mut Report) -> Vec<u32> {
        let nodes = self
            .fields
            .list("dedicated_cpus", report)
            .unwrap_or_default();
        let mut cpus: Vec<_> = nodes
            .iter()
            .filter_map(|node| fields::number(node, "a CPU", 0..=65535, report))
            .collect();
        cpus.sort_unstable();
        cpus
    }

    /// The bodies of `vendor_data.json` and `vendor_data2.json`; the first one is repeated in the
    /// second, as nova does.
    fn vendor_data(&mut self, report: &mut Report) -> (String, String) {
        let of_static = self.fields.node("vendor_data", report);
        let of_static = of_static.and_then(|node| object(node, "vendor_data", report));
        let of_static = of_static.unwrap_or_else(|| "{}".to_owned());
        let mut all = Members::default();
        all.add_written("static", &of_static);
        if let Some(node) = self.fields.node("vendor_data2", report) {
            fields::twice_below(node, report);
            if let Value::Table(entries) = &node.value {
                for Entry { key, place, value } in entries {
                    if key == "static" {
                        report.add(*place, "`static` is the place of what `vendor_data` gives");
                    }
                    all.add(key, value);
                }
            } else {
                let kind = node.kind();
                report.add(
                    node.place,
                    format!("`vendor_data2` must be a table, not {kind}"),
                );
            }
        }
        (of_static, all.into_object())
    }

    fn network_data(&mut self, report: &mut Report) -> Option<String> {
        let node = self.fields.node("network_data", report)?;
        let mut lists = Fields::of(node, "network data", report)?;
        for key in ["links", "networks", "services"] {
            lists.list(key, report);
        }
        lists.finish(report);
        object(node, "network_data", report)
    }

    /// An identifier of the EC2 kind: a prefix and eight or more hexadecimal digits.
    fn ec2_id(&mut self, key: &'static str, prefix: &str, report: &mut Report) -> Option<String> {
        let expected = format!("`{prefix}` and 8 to 17 hexadecimal digits");
        self.fields.parsed(key, &expected, report, |text| {
            let digits = text.strip_prefix(prefix)?;
            let is_id = (8..=17).contains(&digits.len())
                && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            is_id.then(|| text.to_owned())
        })
    }

    fn block_devices(&mut self, report: &mut Report) -> Vec<(String, String)> {
        self.fields
            .texts("block_device_mapping", report)
            .map_or_else(
                || {
                    [("ami", "vda"), ("root", "/dev/vda")]
                        .map(|(name, device)| (name.to_owned(), device.to_owned()))
                        .to_vec()
                },
                owned,
            )
    }
}

/// A table of any contents, as JSON.
fn object(node: &Node, key: &str, report: &mut Report) -> Option<String> {
    if !matches!(node.value, Value::Table(_)) {
        report.add(
            node.place,
            format!("`{key}` must be a table, not {}", node.kind()),
        );
        return None;
    }
    fields::twice_below(node, report);
    Some(json::text(node))
}

/// The UUID of an instance that is given none: always the same for the same first address in the
/// same tenant, because guests take a new UUID for a new machine and set themselves up again.
fn derived_uuid(tenant: Option<Tenant>, addresses: &[GuestAddress]) -> Uuid {
    let (Some(tenant), Some(address)) = (tenant, addresses.first()) else {
        return Uuid::nil();
    };
    Uuid::new_v5(
        &tenant.id,
        format!("{}/{address}", tenant.kind_name()).as_bytes(),
    )
}

/// A name as one label of a host name, as nova makes it.
fn host_label(name: &str) -> String {
    let label: String = name
        .chars()
        .take(63)
        .filter_map(|c| match c {
            ' ' | '_' | '.' => Some('-'),
            '-' => Some(c),
            _ => c.is_ascii_alphanumeric().then(|| c.to_ascii_lowercase()),
        })
        .collect();
    label.trim_matches('-').to_owned()
}

fn owned(pairs: Vec<(&str, &str)>) -> Vec<(String, String)> {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn owned_lines(lines: Vec<&str>) -> Vec<String> {
    lines.into_iter().map(str::to_owned).collect()
}
