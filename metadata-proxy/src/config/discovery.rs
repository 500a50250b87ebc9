//! Which namespaces are tenants: patterns over their names.

use metadata_proxy_common::TenantKind;
use regex::Regex;
use serde::{Serialize, Serializer, ser::SerializeStruct as _};
use uuid::Uuid;

use super::{Config, InterfaceGlob};
use crate::identity::{Tenant, kind_name};

/// A pattern that recognises tenant namespaces by name.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// What people call it.
    pub name: String,
    /// What the tenants are to Neutron.
    pub kind: TenantKind,
    /// Which interfaces guests are behind; `None` for those of the kind.
    pub interfaces: Option<Vec<InterfaceGlob>>,
    text: String,
    regex: Regex,
}

/// Why something is no [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a regular expression.
    #[error("not a regular expression: {0}")]
    Syntax(String),
    /// Nothing says which part of the name is the tenant's UUID.
    #[error("no group is named `id`, so nothing says which tenant a namespace belongs to")]
    NoId,
}

impl Pattern {
    /// Makes a pattern from a regular expression over the whole name of a namespace, whose group
    /// `id` captures the tenant's UUID.
    ///
    /// # Errors
    /// [`PatternError`] if it is none, or has no such group.
    pub fn new(
        name: impl Into<String>,
        regex: &str,
        kind: TenantKind,
        interfaces: Option<Vec<InterfaceGlob>>,
    ) -> Result<Self, PatternError> {
        // Compiled alone first, so that the expression cannot close the group around it.
        Regex::new(regex).map_err(|error| PatternError::Syntax(last_line(&error)))?;
        let whole = Regex::new(&format!(r"\A(?:{regex})\z"))
            .map_err(|error| PatternError::Syntax(last_line(&error)))?;
        if !whole.capture_names().flatten().any(|group| group == "id") {
            return Err(PatternError::NoId);
        }
        Ok(Self {
            name: name.into(),
            kind,
            interfaces,
            text: regex.to_owned(),
            regex: whole,
        })
    }

    /// The expression as it was written.
    #[must_use]
    pub fn regex(&self) -> &str {
        &self.text
    }

    /// The tenant that a namespace of this name belongs to, if the pattern recognises it.
    #[must_use]
    pub fn recognise(&self, namespace: &str) -> Option<Tenant> {
        let id = self.regex.captures(namespace)?.name("id")?;
        let id = Uuid::try_parse(id.as_str()).ok()?;
        Some(Tenant {
            kind: self.kind,
            id,
        })
    }

    /// The names Neutron gives its namespaces.
    pub(super) fn neutron() -> Vec<Self> {
        const ID: &str = "(?<id>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})";
        [
            (
                "neutron-router",
                format!("qrouter-{ID}"),
                TenantKind::Router,
            ),
            // A segment's name may follow.
            (
                "neutron-dhcp",
                format!("qdhcp-{ID}(?:-.+)?"),
                TenantKind::Network,
            ),
            (
                "neutron-ovn",
                format!("ovnmeta-{ID}"),
                TenantKind::OvnNetwork,
            ),
        ]
        .into_iter()
        .map(|(name, regex, kind)| {
            Self::new(name, &regex, kind, None).expect("the built-in patterns are valid")
        })
        .collect()
    }
}

/// The part of a regex error that says what is wrong; what comes before draws it over many lines.
fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let line = text.lines().last().unwrap_or_default().trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.kind, &self.interfaces, &self.text)
            == (&other.name, other.kind, &other.interfaces, &other.text)
    }
}

impl Eq for Pattern {}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut pattern = serializer.serialize_struct("Pattern", 4)?;
        pattern.serialize_field("name", &self.name)?;
        pattern.serialize_field("regex", &self.text)?;
        pattern.serialize_field("kind", kind_name(self.kind))?;
        match &self.interfaces {
            Some(interfaces) => pattern.serialize_field("interfaces", interfaces)?,
            None => pattern.skip_field("interfaces")?,
        }
        pattern.end()
    }
}

/// A namespace whose name says that it is a tenant's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recognised<'a> {
    /// The tenant.
    pub tenant: Tenant,
    /// Name of the pattern that recognised it.
    pub pattern: &'a str,
    /// Which interfaces its guests are behind.
    pub interfaces: &'a [InterfaceGlob],
}

impl Config {
    /// The tenant that a namespace of this name belongs to. Configured patterns come first, in
    /// their order, then Neutron's names unless they are switched off.
    #[must_use]
    pub fn recognise(&self, namespace: &str) -> Option<Recognised<'_>> {
        let neutron: &[Pattern] = if self.discovery.neutron {
            neutron_patterns()
        } else {
            &[]
        };
        self.discovery
            .patterns
            .iter()
            .chain(neutron)
            .find_map(|pattern| {
                let tenant = pattern.recognise(namespace)?;
                let interfaces = match &pattern.interfaces {
                    Some(interfaces) => interfaces,
                    None => self.interfaces.of(tenant.kind),
                };
                Some(Recognised {
                    tenant,
                    pattern: &pattern.name,
                    interfaces,
                })
            })
    }
}

fn neutron_patterns() -> &'static [Pattern] {
    static PATTERNS: std::sync::LazyLock<Vec<Pattern>> = std::sync::LazyLock::new(Pattern::neutron);
    &PATTERNS
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "a2e4cf6e-3a1c-4f2b-9d7e-0c8b5a697f10";

    fn recognised(config: &Config, namespace: &str) -> Option<String> {
        config
            .recognise(namespace)
            .map(|r| format!("{} {}", r.pattern, r.tenant))
    }

    #[test]
    fn neutrons_namespaces_are_recognised_by_name() {
        let config = Config::default();
        for (name, expected) in [
            (
                format!("qrouter-{ID}"),
                format!("neutron-router router/{ID}"),
            ),
            (format!("qdhcp-{ID}"), format!("neutron-dhcp network/{ID}")),
            (
                format!("qdhcp-{ID}-segment"),
                format!("neutron-dhcp network/{ID}"),
            ),
            (
                format!("ovnmeta-{ID}"),
                format!("neutron-ovn ovn-network/{ID}"),
            ),
        ] {
            assert_eq!(recognised(&config, &name), Some(expected));
        }
    }

    #[test]
    fn other_namespaces_are_not() {
        let config = Config::default();
        for name in [
            format!("snat-{ID}"),
            format!("xqrouter-{ID}"),
            format!("qrouter-{ID}x"),
            format!("qrouter-{ID}\n"),
            format!("qrouter-{}", &ID[1..]),
            String::from("qrouter-"),
        ] {
            assert_eq!(recognised(&config, &name), None, "{name:?}");
        }
    }

    #[test]
    fn configured_patterns_come_first_and_bring_their_interfaces() {
        let mut config = Config::default();
        let glob: InterfaceGlob = "eth*".parse().unwrap();
        config.discovery.patterns = vec![
            Pattern::new(
                "lab",
                "qrouter-(?<id>.+)",
                TenantKind::Network,
                Some(vec![glob.clone()]),
            )
            .unwrap(),
        ];
        let name = format!("qrouter-{ID}");
        assert_eq!(
            recognised(&config, &name),
            Some(format!("lab network/{ID}"))
        );
        assert_eq!(config.recognise(&name).unwrap().interfaces, [glob]);
        // Captures something else than a UUID: left to the patterns that follow.
        assert_eq!(recognised(&config, "qrouter-blue"), None);
    }

    #[test]
    fn neutrons_names_can_be_switched_off() {
        let mut config = Config::default();
        config.discovery.neutron = false;
        assert_eq!(recognised(&config, &format!("qrouter-{ID}")), None);
    }

    #[test]
    fn a_pattern_must_name_the_id_and_be_closed() {
        let new = |regex| Pattern::new("p", regex, TenantKind::Router, None);
        assert_eq!(new("ns-(.+)"), Err(PatternError::NoId));
        assert!(matches!(new("ns-(?<id>.+"), Err(PatternError::Syntax(_))));
        assert!(matches!(
            new("(?<id>.+))|(.*"),
            Err(PatternError::Syntax(_))
        ));
    }
}
