//! Which namespaces would be served, by their names.

use std::{fs, io};

use metadata_proxy_common::TenantKind;
use serde::Serialize;
use uuid::Uuid;

use super::Item;
use crate::{
    admin::api::kind_word,
    cli::exit::Exit,
    config::{Config, InterfaceGlob},
    identity::kind_name,
};

/// A namespace that would be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// What its tenant is to Neutron.
    #[serde(with = "kind_word")]
    pub kind: TenantKind,
    /// UUID of its tenant.
    pub id: Uuid,
    /// Its name.
    pub namespace: String,
    /// Name of the pattern that recognises it.
    pub pattern: String,
    /// Which interfaces guests would be behind.
    pub interfaces: Vec<InterfaceGlob>,
}

impl Candidate {
    pub(super) fn row(&self) -> [String; 5] {
        let interfaces: Vec<_> = self.interfaces.iter().map(InterfaceGlob::as_str).collect();
        [
            kind_name(self.kind).to_owned(),
            self.id.to_string(),
            self.namespace.clone(),
            self.pattern.clone(),
            interfaces.join(", "),
        ]
    }
}

/// Looks at the names in the directory of namespaces.
pub(super) fn look(config: &Config) -> (Item, Vec<Candidate>) {
    const CHECK: &str = "namespaces";
    let directory = &config.discovery.netns_dir;
    let names = match names(config) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let item = Item::warning(
                CHECK,
                format!("{} is not there", directory.display()),
                "there are no tenants until it is",
                "nothing, if namespaces come later: it is waited for",
            );
            return (item, Vec::new());
        }
        Err(error) => {
            let exit = match error.kind() {
                io::ErrorKind::PermissionDenied => Exit::Privilege,
                _ => Exit::Node,
            };
            let item = Item::failure(
                CHECK,
                format!("{} cannot be read: {error}", directory.display()),
                "no tenant would be found",
                "set discovery.netns_dir to the directory of namespaces",
            )
            .exits(exit);
            return (item, Vec::new());
        }
    };
    let tenants: Vec<_> = names
        .iter()
        .filter_map(|name| {
            let recognised = config.recognise(name)?;
            Some(Candidate {
                kind: recognised.tenant.kind,
                id: recognised.tenant.id,
                namespace: name.clone(),
                pattern: recognised.pattern.to_owned(),
                interfaces: recognised.interfaces.to_vec(),
            })
        })
        .collect();
    let found = format!(
        "{} of {} in {} would be served",
        tenants.len(),
        names.len(),
        directory.display()
    );
    let room = config.steering.max_tenants as usize;
    if tenants.len() > room {
        let item = Item::warning(
            CHECK,
            found,
            format!("steering.max_tenants leaves room for {room}"),
            "raise steering.max_tenants",
        );
        return (item, tenants);
    }
    (Item::ok(CHECK, found), tenants)
}

/// Names that are no UTF-8 cannot be a tenant's.
fn names(config: &Config) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(&config.discovery.netns_dir)?;
    let mut names = entries
        .filter_map(|entry| {
            entry
                .map(|entry| entry.file_name().into_string().ok())
                .transpose()
        })
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Verdict;

    const ID: &str = "a2e4cf6e-3a1c-4f2b-9d7e-0c8b5a697f10";

    #[test]
    fn tenants_are_found_by_name() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["other", &format!("qrouter-{ID}"), &format!("ovnmeta-{ID}")] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let mut config = Config::default();
        config.discovery.netns_dir = directory.path().to_owned();
        let (item, tenants) = look(&config);
        assert_eq!(item.verdict, Verdict::Ok);
        assert!(item.found.starts_with("2 of 3 in "), "{}", item.found);
        let kinds: Vec<_> = tenants.iter().map(|tenant| tenant.kind).collect();
        assert_eq!(kinds, [TenantKind::OvnNetwork, TenantKind::Router]);

        config.steering.max_tenants = 1;
        assert_eq!(look(&config).0.verdict, Verdict::Warning);
    }

    #[test]
    fn a_directory_that_comes_later_is_no_failure() {
        let mut config = Config::default();
        config.discovery.netns_dir = "/nonexistent/netns".into();
        assert_eq!(look(&config).0.verdict, Verdict::Warning);
        config.discovery.netns_dir = "/proc/self/status".into();
        assert_eq!(look(&config).0.verdict, Verdict::Failure);
    }
}
