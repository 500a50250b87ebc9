//! What is said over the admin socket, version `v1`: JSON made of these types.
//!
//! A later version may add fields; clients must not mind unknown ones. Requests are strict.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use metadata_proxy_common::TenantKind;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The version in the paths: `/v1/status`.
pub const VERSION: &str = "v1";

/// The agent as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Version of the agent.
    pub version: String,
    /// Version of the kernel/user contract it was built with.
    pub abi_version: u32,
    /// Its process.
    pub pid: u32,
    /// Time since it started.
    pub uptime_seconds: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// How connections are steered.
    pub engine: EngineStatus,
    /// Who answers.
    pub upstream: UpstreamStatus,
    /// Requests on their way to the upstream.
    pub queue: QueueStatus,
    /// How many tenants are in which state.
    pub tenants: TenantCounts,
    /// Connections of guests.
    pub connections: Counts,
    /// Requests of guests.
    pub requests: Counts,
    /// How packets and connects ended in the kernel, by label.
    pub outcomes: BTreeMap<String, u64>,
    /// How the audit of the tenants is doing.
    #[serde(default)]
    pub audit: AuditStatus,
    /// What an operator should look at.
    pub warnings: Vec<String>,
}

/// How the audit of the tenants is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// Time within which every tenant is looked at.
    pub interval_seconds: u64,
    /// Time within which every tenant's service is proved by a connection.
    pub connect_interval_seconds: u64,
    /// Tenants whose service was proved within twice that time.
    pub proved: u64,
    /// Tenants with something wrong.
    pub faulty: u64,
    /// What was put back since the start, by label.
    pub repairs: BTreeMap<String, u64>,
}

/// How connections are steered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineStatus {
    /// `tc`, `sk-lookup` or `bind`.
    pub name: String,
    /// Why this one.
    pub reason: String,
    /// How the TC program is attached: `tcx` or `clsact`; none for other engines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach: Option<String>,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// `agent`, `http` or `embedded`.
    pub kind: String,
    /// Where: a path or an address.
    pub place: String,
    /// The last thing that went wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// What.
    pub message: String,
    /// When, seconds since 1970.
    pub at_unix: u64,
}

/// Requests on their way to the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Given to the upstream, not answered yet.
    pub in_flight: u64,
    /// How many may be given to it at once, now.
    pub bound: u64,
    /// Waiting for their turn.
    pub waiting: u64,
}

/// How many tenants are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantCounts {
    /// Served.
    pub serving: u64,
    /// Found, not served yet.
    pub pending: u64,
    /// Could not be served, and are tried again.
    pub failing: u64,
    /// Going away.
    pub leaving: u64,
}

impl TenantCounts {
    /// Counts one more tenant in a state.
    pub const fn add(&mut self, state: TenantState) {
        match state {
            TenantState::Serving => self.serving += 1,
            TenantState::Pending => self.pending += 1,
            TenantState::Failing => self.failing += 1,
            TenantState::Leaving => self.leaving += 1,
        }
    }

    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.serving + self.pending + self.failing + self.leaving
    }
}

/// How many there are, and how many there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Now.
    pub open: u64,
    /// Since the start.
    pub total: u64,
}

/// Where a tenant stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TenantState {
    /// Its guests are served.
    Serving,
    /// It was found and is not served yet.
    Pending,
    /// It could not be served, and is tried again.
    Failing,
    /// It is going away.
    Leaving,
}

impl TenantState {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Pending => "pending",
            Self::Failing => "failing",
            Self::Leaving => "leaving",
        }
    }
}

impl fmt::Display for TenantState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// One tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantStatus {
    /// What it is to Neutron.
    #[serde(with = "kind_word")]
    pub kind: TenantKind,
    /// Its UUID.
    pub id: Uuid,
    /// Name or path of its namespace, or the pid it was given by.
    pub namespace: String,
    /// Inode of the namespace; 0 while it could not be opened.
    pub netns_inode: u64,
    /// The kernel's cookie of the namespace; 0 while it could not be asked.
    pub netns_cookie: u64,
    /// Who said that it is a tenant: `netns-dir`, `admin`, `register`.
    pub provider: String,
    /// Where it stands.
    pub state: TenantState,
    /// Why it is failing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is wrong with its service, although it is up: what the last audit found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// When its service was last proved by a connection from inside its namespace, seconds since
    /// 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proved_unix: Option<u64>,
    /// How often it was tried in this state.
    pub attempts: u64,
    /// Since when it is in this state, seconds since 1970.
    pub since_unix: u64,
    /// Address of its listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    /// Its guest-facing interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// Connections of its guests.
    pub connections: Counts,
    /// Requests of its guests.
    pub requests: Counts,
}

/// A guest-facing interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index in its namespace.
    pub index: u32,
    /// Whether connections are steered from it.
    pub state: InterfaceState,
    /// Why it is failing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whether connections are steered from an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceState {
    /// They are.
    Attached,
    /// Not yet.
    Pending,
    /// They cannot be, for now.
    Failing,
}

/// Every tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantList {
    /// In the order of kind and UUID.
    pub tenants: Vec<TenantStatus>,
}

/// Asks for a tenant to be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddTenant {
    /// What it is to Neutron.
    #[serde(with = "kind_word")]
    pub kind: TenantKind,
    /// Its UUID.
    pub id: Uuid,
    /// Its namespace.
    pub namespace: NamespaceRef,
}

/// How a namespace is named.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceRef {
    /// A name in the directory of namespaces.
    Name(String),
    /// A path that the agent can open.
    Path(PathBuf),
    /// A process in it, by the pid the agent sees.
    Pid(u32),
}

impl fmt::Display for NamespaceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Pid(pid) => write!(f, "pid {pid}"),
        }
    }
}

impl NamespaceRef {
    /// Whether it can name a namespace at all.
    ///
    /// # Errors
    /// What is wrong with it, and what is allowed.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            // Joined to a directory, so it must not lead out of it.
            Self::Name(name)
                if name.is_empty()
                    || matches!(&**name, "." | "..")
                    || name.contains(['/', '\0']) =>
            {
                Err(format!(
                    "{name:?} is no name of a namespace: a name has no slash (a path is given as \
                     a path)"
                ))
            }
            Self::Path(path) if !path.is_absolute() => Err(format!(
                "{} is not absolute: the agent runs elsewhere",
                path.display()
            )),
            Self::Pid(0) => Err(String::from("0 is no process: a pid is 1 or more")),
            Self::Name(_) | Self::Path(_) | Self::Pid(_) => Ok(()),
        }
    }
}

/// What went wrong, as every answer with an error status says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What, and what to do.
    pub error: String,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What.
    pub message: String,
}

/// Kinds of tenants as their words.
pub mod kind_word {
    use metadata_proxy_common::TenantKind;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::identity::{kind_from_name, kind_name};

    /// Writes the word for a kind.
    ///
    /// # Errors
    /// Only the serializer's.
    pub fn serialize<S: Serializer>(kind: &TenantKind, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(kind_name(*kind))
    }

    /// Reads the word for a kind.
    ///
    /// # Errors
    /// If it is none.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TenantKind, D::Error> {
        let word = String::deserialize(deserializer)?;
        kind_from_name(&word).ok_or_else(|| {
            D::Error::custom(format!(
                "{word:?} is no kind of tenant, expected router, network or ovn-network"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_documented() {
        let add: AddTenant = serde_json::from_str(
            r#"{"kind": "ovn-network", "id": "a2e4cf6e-3a1c-4f2b-9d7e-0c8b5a697f10",
                "namespace": {"pid": 42}}"#,
        )
        .unwrap();
        assert_eq!(
            (add.kind, add.namespace),
            (TenantKind::OvnNetwork, NamespaceRef::Pid(42))
        );
    }

    #[test]
    fn names_that_lead_out_of_the_directory_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "/run/netns/a", "a\0"] {
            assert!(
                NamespaceRef::Name(bad.into()).validate().is_err(),
                "{bad:?}"
            );
        }
        assert!(NamespaceRef::Name("qrouter-1".into()).validate().is_ok());
        assert!(NamespaceRef::Path("netns/a".into()).validate().is_err());
        assert!(NamespaceRef::Pid(0).validate().is_err());
    }
}
