//! The tree below `/openstack`, in all its versions.
//!
//! A version is its date; dates compare as text.

use bytes::Bytes;

use super::{
    declaration::Declaration,
    device,
    json::{self, Members},
    page::{MetaData, Page},
};

pub(super) const FOLSOM: &str = "2012-08-10";
pub(super) const GRIZZLY: &str = "2013-04-04";
pub(super) const HAVANA: &str = "2013-10-17";
pub(super) const LIBERTY: &str = "2015-10-15";
pub(super) const NEWTON_ONE: &str = "2016-06-30";
pub(super) const NEWTON_TWO: &str = "2016-10-06";
pub(super) const OCATA: &str = "2017-02-22";
pub(super) const ROCKY: &str = "2018-08-27";
pub(super) const VICTORIA: &str = "2020-10-14";
pub(super) const EPOXY: &str = "2025-04-04";

const VERSIONS: [&str; 10] = [
    FOLSOM, GRIZZLY, HAVANA, LIBERTY, NEWTON_ONE, NEWTON_TWO, OCATA, ROCKY, VICTORIA, EPOXY,
];

/// What `/openstack` lists: [`VERSIONS`] and `latest`.
pub(super) const VERSION_LIST: &str = "2012-08-10\n2013-04-04\n2013-10-17\n2015-10-15\n\
     2016-06-30\n2016-10-06\n2017-02-22\n2018-08-27\n2020-10-14\n2025-04-04\nlatest";

/// One instance's files.
#[derive(Debug)]
pub(super) struct Tree {
    user_data: Option<Bytes>,
    vendor_data: Bytes,
    vendor_data2: Bytes,
    network_data: Option<Bytes>,
    /// `meta_data.json` up to the random seed; the same in all versions.
    before_seed: Bytes,
    /// The rest of it, each with the version that first has it so; never empty.
    after_seed: Vec<(&'static str, Bytes)>,
}

impl Tree {
    pub(super) fn of(declared: &Declaration) -> Self {
        let mut after_seed: Vec<(&'static str, Bytes)> = Vec::new();
        for version in VERSIONS {
            let rest = after_seed_in(version, declared);
            if after_seed
                .last()
                .is_none_or(|(_, last)| last != rest.as_bytes())
            {
                after_seed.push((version, rest.into()));
            }
        }
        Self {
            user_data: declared.user_data.clone(),
            vendor_data: declared.vendor_data.clone().into(),
            vendor_data2: declared.vendor_data2.clone().into(),
            network_data: declared.network_data.clone().map(Bytes::from),
            before_seed: before_seed(declared).into(),
            after_seed,
        }
    }

    /// The page at `path` below `/openstack/<version>`.
    pub(super) fn page(&self, version: &str, path: &[&str]) -> Page<'_> {
        let version = if version == "latest" { EPOXY } else { version };
        if !VERSIONS.contains(&version) {
            return Page::Missing;
        }
        // The versions are those of nova's handlers, which are not quite those of its listing:
        // network_data.json is there in all versions.
        let json_since = |since: &str, body: &Bytes| {
            if version >= since {
                Page::Json(body.clone())
            } else {
                Page::Missing
            }
        };
        match path {
            [] | ["version"] => Page::Text(self.listing(version).into()),
            ["meta_data.json"] => self.meta_data(version),
            ["user_data"] => self.user_data.clone().map_or(Page::Missing, Page::Text),
            ["password"] if version >= GRIZZLY => Page::Password,
            ["vendor_data.json"] => json_since(HAVANA, &self.vendor_data),
            ["vendor_data2.json"] => json_since(NEWTON_TWO, &self.vendor_data2),
            // As nova does: JSON that says it is text.
            ["network_data.json"] => self.network_data.clone().map_or(Page::Missing, Page::Text),
            _ => Page::Missing,
        }
    }

    fn listing(&self, version: &str) -> String {
        let files = [
            ("meta_data.json", FOLSOM, true),
            ("user_data", FOLSOM, self.user_data.is_some()),
            ("password", GRIZZLY, true),
            ("vendor_data.json", HAVANA, true),
            ("network_data.json", LIBERTY, self.network_data.is_some()),
            ("vendor_data2.json", NEWTON_TWO, true),
        ];
        let names = files
            .iter()
            .filter(|(_, since, there)| *there && version >= *since);
        names.map(|(name, ..)| *name).collect::<Vec<_>>().join("\n")
    }

    fn meta_data(&self, version: &str) -> Page<'_> {
        let at = self
            .after_seed
            .partition_point(|(since, _)| *since <= version);
        Page::MetaData(MetaData {
            before_seed: &self.before_seed,
            seeded: version >= GRIZZLY,
            after_seed: &self.after_seed[at.saturating_sub(1)].1,
        })
    }
}

fn before_seed(declared: &Declaration) -> String {
    let mut members = Members::default();
    members.add("uuid", &declared.uuid);
    if !declared.meta.is_empty() {
        members.add_written("meta", &object(&declared.meta));
    }
    if !declared.public_keys.is_empty() {
        members.add_written("public_keys", &object(&declared.public_keys));
        let keys: Vec<_> = declared.public_keys.iter().map(key).collect();
        members.add_written("keys", &json::list(&keys));
    }
    members.add("hostname", &declared.hostname);
    members.add("name", &declared.name);
    members.add("launch_index", &declared.launch_index);
    members.add("availability_zone", &declared.availability_zone);
    format!("{{{}", members.into_text())
}

fn after_seed_in(version: &str, declared: &Declaration) -> String {
    let mut members = Members::default();
    if version >= LIBERTY {
        members.add("project_id", &declared.project_id);
    }
    if version >= NEWTON_ONE {
        members.add_written("devices", &device::list(&declared.devices, version));
    }
    if version >= VICTORIA {
        members.add("dedicated_cpus", &declared.dedicated_cpus);
    }
    let members = members.into_text();
    if members.is_empty() {
        "}".to_owned()
    } else {
        format!(", {members}}}")
    }
}

fn object(pairs: &[(String, String)]) -> String {
    let mut members = Members::default();
    for (name, value) in pairs {
        members.add(name, value);
    }
    members.into_object()
}

fn key((name, data): &(String, String)) -> String {
    let kind = if data.starts_with("-----BEGIN CERTIFICATE") {
        "x509"
    } else {
        "ssh"
    };
    let mut members = Members::default();
    members.add("name", name);
    members.add("type", kind);
    members.add("data", data);
    members.into_object()
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
