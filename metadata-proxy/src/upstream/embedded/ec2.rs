//! The tree of the older, EC2-like interface, in all its versions.
//!
//! A version is its date, and the first one is `1.0`; they compare as text.

use std::borrow::Cow;

use bytes::Bytes;

use super::{declaration::Declaration, page::Page};
use crate::identity::GuestAddress;

const VERSIONS: [&str; 9] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    LATEST,
];
const LATEST: &str = "2009-04-04";

/// What `/` lists: [`VERSIONS`] and `latest`.
pub(super) const VERSION_LIST: &str = "1.0\n2007-01-19\n2007-03-01\n2007-08-29\n2007-10-10\n\
     2007-12-15\n2008-02-01\n2008-09-01\n2009-04-04\nlatest";

/// One instance's tree, below the version.
#[derive(Debug)]
pub(super) struct Tree(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    name: Cow<'static, str>,
    /// How the directory's listing writes it.
    listed: Cow<'static, str>,
    /// The version that first has it.
    since: &'static str,
    item: Item,
}

#[derive(Debug)]
enum Item {
    Directory(Vec<Entry>),
    Leaf(Bytes),
    /// The address the guest asked from.
    AskedFrom,
}

impl Tree {
    pub(super) fn of(declared: &Declaration) -> Self {
        let mut top = vec![directory("meta-data/", "1.0", meta_data(declared))];
        if let Some(user_data) = &declared.user_data {
            top.push(Entry {
                name: "user-data".into(),
                listed: "user-data".into(),
                since: "1.0",
                item: Item::Leaf(user_data.clone()),
            });
        }
        Self(top)
    }

    /// The page at `path`, whose first segment is the version.
    pub(super) fn page(&self, path: &[&str], guest: GuestAddress) -> Page<'_> {
        let [version, path @ ..] = path else {
            return Page::Text(Bytes::from_static(VERSION_LIST.as_bytes()));
        };
        let version = if *version == "latest" {
            LATEST
        } else {
            version
        };
        if !VERSIONS.contains(&version) {
            return Page::Missing;
        }
        let mut entries = &self.0;
        for (at, name) in path.iter().enumerate() {
            let found = entries
                .iter()
                .find(|entry| entry.name == *name && version >= entry.since);
            let item = found.map(|entry| &entry.item);
            match item {
                Some(Item::Directory(below)) => entries = below,
                Some(Item::Leaf(text)) if at + 1 == path.len() => return Page::Text(text.clone()),
                Some(Item::AskedFrom) if at + 1 == path.len() => {
                    return Page::Text(guest.to_string().into());
                }
                _ => return Page::Missing,
            }
        }
        let listed = entries.iter().filter(|entry| version >= entry.since);
        let listed: Vec<_> = listed.map(|entry| entry.listed.as_ref()).collect();
        Page::Text(listed.join("\n").into())
    }
}

fn meta_data(declared: &Declaration) -> Vec<Entry> {
    let local_ipv4 = match declared.local_ipv4() {
        Some(address) => Item::Leaf(address.to_string().into()),
        None => Item::AskedFrom,
    };
    let public_ipv4 = declared
        .public_ipv4
        .map(|address| address.to_string())
        .unwrap_or_default();
    let devices = declared.block_devices.iter();
    let devices = devices
        .map(|(name, device)| named(name, "1.0", device))
        .collect();
    let zone = vec![leaf(
        "availability-zone",
        "1.0",
        &declared.availability_zone,
    )];

    let mut entries = vec![
        leaf("ami-id", "1.0", &declared.ami_id),
        leaf(
            "ami-launch-index",
            "1.0",
            &declared.launch_index.to_string(),
        ),
        // Nova's own word for it (`nova/api/metadata/base.py`); what guests see is to be the same.
        leaf("ami-manifest-path", "1.0", "FIXME"),
        directory("block-device-mapping/", "2007-12-15", devices),
        leaf("hostname", "1.0", &declared.hostname),
        leaf("instance-action", "2008-09-01", "none"),
        leaf("instance-id", "1.0", &declared.ec2_id),
        leaf("local-hostname", "2007-01-19", &declared.hostname),
        Entry {
            name: "local-ipv4".into(),
            listed: "local-ipv4".into(),
            since: "1.0",
            item: local_ipv4,
        },
        directory("placement/", "2008-02-01", zone),
        leaf("public-hostname", "2007-01-19", &declared.hostname),
        leaf("public-ipv4", "2007-01-19", &public_ipv4),
        leaf("reservation-id", "1.0", &declared.reservation_id),
        leaf(
            "security-groups",
            "1.0",
            &declared.security_groups.join("\n"),
        ),
    ];
    let optional = [
        ("instance-type", "2007-08-29", &declared.flavor),
        ("kernel-id", "2007-12-15", &declared.kernel_id),
        ("ramdisk-id", "2007-12-15", &declared.ramdisk_id),
    ];
    entries.extend(
        optional
            .into_iter()
            .filter_map(|(name, since, value)| Some(leaf(name, since, value.as_ref()?))),
    );
    if !declared.public_keys.is_empty() {
        entries.push(directory(
            "public-keys/",
            "1.0",
            public_keys(&declared.public_keys),
        ));
    }
    sort(&mut entries);
    entries
}

/// The keys by number; the listing adds the name, and no slash although each is a directory.
fn public_keys(keys: &[(String, String)]) -> Vec<Entry> {
    let mut entries: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(number, (name, data))| Entry {
            name: number.to_string().into(),
            listed: format!("{number}={name}").into(),
            since: "1.0",
            item: Item::Directory(vec![leaf("openssh-key", "1.0", data)]),
        })
        .collect();
    sort(&mut entries);
    entries
}

/// Listings are in the order of the names' bytes.
fn sort(entries: &mut [Entry]) {
    entries.sort_by(|one, other| one.name.cmp(&other.name));
}

fn leaf(name: &'static str, since: &'static str, text: &str) -> Entry {
    Entry {
        name: name.into(),
        listed: name.into(),
        since,
        item: Item::Leaf(text.to_owned().into()),
    }
}

fn named(name: &str, since: &'static str, text: &str) -> Entry {
    Entry {
        name: name.to_owned().into(),
        listed: name.to_owned().into(),
        since,
        item: Item::Leaf(text.to_owned().into()),
    }
}

/// A directory; `listed` ends with its slash.
fn directory(listed: &'static str, since: &'static str, mut entries: Vec<Entry>) -> Entry {
    sort(&mut entries);
    Entry {
        name: listed.trim_end_matches('/').into(),
        listed: listed.into(),
        since,
        item: Item::Directory(entries),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_versions_lists_every_version() {
        let listed: Vec<_> = VERSION_LIST.lines().collect();
        assert_eq!(listed, [&VERSIONS[..], &["latest"]].concat());
    }
}
