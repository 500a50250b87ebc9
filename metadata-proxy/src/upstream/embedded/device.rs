//! The `devices` of an instance: what a guest is told of the tags of its hardware.

use super::{
    document::Node,
    fields::{Fields, Report},
    json::{self, Members},
    openstack,
};

/// Buses that nova names.
const BUSES: [&str; 6] = ["pci", "usb", "scsi", "ide", "xen", "none"];

/// A device.
#[derive(Debug)]
pub(super) struct Device {
    kind: Kind,
    bus: String,
    address: String,
    tags: Option<Vec<String>>,
}

#[derive(Debug)]
enum Kind {
    Nic {
        mac: String,
        vlan: Option<u32>,
        vf_trusted: bool,
    },
    Disk {
        serial: Option<String>,
        path: Option<String>,
    },
    Share {
        id: String,
        tag: String,
    },
}

impl Device {
    pub(super) fn read(node: &Node, report: &mut Report) -> Option<Self> {
        let mut fields = Fields::of(node, "a device", report)?;
        let kind = fields.line("type", report);
        let kind = match fields.require("type", kind, report) {
            Some("nic") => read_nic(&mut fields, report),
            Some("disk") => Some(Kind::Disk {
                serial: fields.line("serial", report).map(str::to_owned),
                path: fields.line("path", report).map(str::to_owned),
            }),
            Some("share") => read_share(&mut fields, report),
            Some(other) => {
                let place = node.place;
                report.add(
                    place,
                    format!("`{other}` is no type; a device is nic, disk or share"),
                );
                return None;
            }
            None => return None,
        };
        let bus = fields.parsed(
            "bus",
            "one of pci, usb, scsi, ide, xen, none",
            report,
            |bus| BUSES.contains(&bus).then_some(bus),
        );
        let address = fields.line("address", report);
        let tags = fields.lines("tags", report);
        fields.finish(report);
        Some(Self {
            kind: kind?,
            bus: bus.unwrap_or("none").to_owned(),
            address: address.unwrap_or("none").to_owned(),
            tags: tags.map(|tags| tags.into_iter().map(str::to_owned).collect()),
        })
    }

    /// The device as JSON, as it was told in `version`; none if that version does not tell of it.
    fn json(&self, version: &str) -> Option<String> {
        let mut members = Members::default();
        match &self.kind {
            Kind::Nic {
                mac,
                vlan,
                vf_trusted,
            } => {
                let vlan = vlan.filter(|_| version >= openstack::OCATA);
                let vf_trusted = (version >= openstack::ROCKY).then_some(*vf_trusted);
                if self.tags.is_none() && vlan.is_none() && vf_trusted.is_none() {
                    return None;
                }
                members.add_some("vlan", vlan.as_ref());
                members.add_some("vf_trusted", vf_trusted.as_ref());
                members.add("type", "nic");
                members.add("mac", mac);
            }
            Kind::Disk { serial, path } => {
                members.add("type", "disk");
                members.add_some("serial", serial.as_ref());
                members.add_some("path", path.as_ref());
            }
            Kind::Share { id, tag } => {
                if version < openstack::EPOXY {
                    return None;
                }
                members.add("type", "share");
                members.add("share_id", id);
                members.add("tag", tag);
            }
        }
        members.add("bus", &self.bus);
        members.add("address", &self.address);
        members.add_some("tags", self.tags.as_ref());
        Some(members.into_object())
    }
}

fn read_nic(fields: &mut Fields<'_>, report: &mut Report) -> Option<Kind> {
    let mac = fields.parsed(
        "mac",
        "a MAC address like fa:16:3e:00:00:01",
        report,
        |mac| {
            let is_octet = |part: &str| part.len() == 2 && u8::from_str_radix(part, 16).is_ok();
            (mac.split(':').count() == 6 && mac.split(':').all(is_octet)).then_some(mac)
        },
    );
    let mac = fields.require("mac", mac, report);
    let vlan = fields.number("vlan", 0..=4095, report);
    let vf_trusted = fields.boolean("vf_trusted", report).unwrap_or_default();
    Some(Kind::Nic {
        mac: mac?.to_owned(),
        vlan,
        vf_trusted,
    })
}

fn read_share(fields: &mut Fields<'_>, report: &mut Report) -> Option<Kind> {
    let id = fields.line("share_id", report);
    let id = fields.require("share_id", id, report);
    let tag = fields.line("tag", report);
    let tag = fields.require("tag", tag, report);
    Some(Kind::Share {
        id: id?.to_owned(),
        tag: tag?.to_owned(),
    })
}

/// The list of devices as JSON, as it was told in `version`.
pub(super) fn list(devices: &[Device], version: &str) -> String {
    let told: Vec<_> = devices
        .iter()
        .filter_map(|device| device.json(version))
        .collect();
    json::list(&told)
}
