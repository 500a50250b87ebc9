//! The messages of the registration protocol.

use std::os::unix::ffi::OsStrExt;

use metadata_proxy_common::TenantKind;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{MESSAGE_LIMIT, PROTOCOL};
use crate::{
    identity::{Tenant, kind_from_name, kind_name},
    neutron::TenantSettings,
};

/// Longest reason that a reply carries, in bytes.
const REASON_LIMIT: usize = 1000;

/// Most binds that one tenant may have; Neutron writes two.
const BIND_LIMIT: usize = 16;

/// Room for a path in `sockaddr_un`, without its final NUL (unix(7)).
const SOCKET_PATH_LIMIT: usize = 107;

/// Room for a device name, without its final NUL (`IFNAMSIZ`).
const INTERFACE_NAME_LIMIT: usize = 15;

/// What a client asks for: to have a tenant served in the namespace it passes along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whose guests are to be served.
    pub tenant: Tenant,
    /// How they are to be served.
    pub settings: TenantSettings,
    /// Who asks.
    pub client: Client,
}

/// Who asks for a tenant to be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its process, as it is numbered in the client's own pid namespace.
    pub pid: u32,
    /// Its version.
    #[serde(default)]
    pub version: String,
}

/// What becomes of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It was understood; the tenant is not served yet.
    Accepted,
    /// The tenant's guests are served.
    Serving,
    /// The tenant's guests are not served.
    Failed {
        /// Why not, for a person.
        reason: String,
    },
}

/// A message that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// It is not JSON, or lacks something.
    #[error("the message is not one of protocol {PROTOCOL}: {0}")]
    Form(#[from] serde_json::Error),
    /// It belongs to another protocol.
    #[error(
        "the message is of protocol {0}, this program speaks {PROTOCOL}; \
         the agent and the stand-in must come from the same release"
    )]
    Protocol(u32),
    /// It is longer than the limit.
    #[error("the message is longer than {MESSAGE_LIMIT} bytes")]
    TooLong,
    /// It does not carry exactly one descriptor.
    #[error("the message carries {0} descriptors, not one")]
    Descriptors(usize),
    /// Its descriptor is something else.
    #[error("the descriptor that came with the message is not a network namespace")]
    NotANamespace,
    /// A value cannot be used.
    #[error("the message's {0}")]
    Value(&'static str),
}

/// What every message of every protocol has.
#[derive(Deserialize)]
struct Version {
    protocol: u32,
}

#[derive(Serialize)]
struct RequestOut<'a> {
    protocol: u32,
    tenant: TenantOut,
    settings: &'a TenantSettings,
    client: &'a Client,
}

#[derive(Serialize)]
struct TenantOut {
    kind: &'static str,
    id: Uuid,
}

#[derive(Deserialize)]
struct RequestIn {
    tenant: TenantIn,
    settings: TenantSettings,
    client: Client,
}

#[derive(Deserialize)]
struct TenantIn {
    #[serde(deserialize_with = "kind")]
    kind: TenantKind,
    id: Uuid,
}

fn kind<'de, D: serde::Deserializer<'de>>(from: D) -> Result<TenantKind, D::Error> {
    let name = String::deserialize(from)?;
    kind_from_name(&name)
        .ok_or_else(|| serde::de::Error::custom(format_args!("there is no tenant kind {name:?}")))
}

#[derive(Deserialize)]
struct ReplyIn {
    state: String,
    reason: Option<String>,
}

impl Request {
    /// Writes the message.
    ///
    /// # Panics
    ///
    /// If the agent socket's path is not UTF-8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&RequestOut {
            protocol: PROTOCOL,
            tenant: TenantOut {
                kind: kind_name(self.tenant.kind),
                id: self.tenant.id,
            },
            settings: &self.settings,
            client: &self.client,
        })
        .expect("a configuration's text is UTF-8, and so is every path taken from it")
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// If it is of another protocol, lacks something or asks for the impossible.
    pub fn decode(message: &[u8]) -> Result<Self, MessageError> {
        let Version { protocol } = serde_json::from_slice(message)?;
        if protocol != PROTOCOL {
            return Err(MessageError::Protocol(protocol));
        }
        let RequestIn {
            tenant: TenantIn { kind, id },
            settings,
            client,
        } = serde_json::from_slice(message)?;
        check(&settings)?;
        Ok(Self {
            tenant: Tenant { kind, id },
            settings,
            client,
        })
    }
}

/// Refuses settings that no configuration of Neutron can have.
fn check(settings: &TenantSettings) -> Result<(), MessageError> {
    let binds = &settings.binds;
    if binds.is_empty() || binds.len() > BIND_LIMIT {
        return Err(MessageError::Value("binds are not from 1 to 16"));
    }
    for bind in binds {
        if bind.port == 0 {
            return Err(MessageError::Value("bind has port 0"));
        }
        if let Some(name) = &bind.interface
            && (name.is_empty() || name.len() > INTERFACE_NAME_LIMIT || name.contains(['/', '\0']))
        {
            return Err(MessageError::Value("interface is not a device name"));
        }
    }
    let socket = &settings.agent_socket;
    let path = socket.as_os_str().as_bytes();
    if !socket.is_absolute() || path.len() > SOCKET_PATH_LIMIT || path.contains(&0) {
        return Err(MessageError::Value(
            "agent socket is not an absolute path of at most 107 bytes",
        ));
    }
    let timeouts = &settings.timeouts;
    let windows = settings.rate_limit.iter();
    let nothing_takes_no_time = [
        timeouts.request_head,
        timeouts.connect,
        timeouts.client,
        timeouts.server,
        timeouts.keep_alive,
    ]
    .into_iter()
    .chain(windows.flat_map(|limit| [limit.base.duration, limit.burst.duration]))
    .all(|duration| !duration.is_zero());
    if !nothing_takes_no_time {
        return Err(MessageError::Value("durations must not be 0"));
    }
    if settings.max_connections == Some(0) {
        return Err(MessageError::Value("connection limit is 0"));
    }
    Ok(())
}

impl Reply {
    /// Writes the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let message = match self {
            Self::Accepted => json!({"protocol": PROTOCOL, "state": "accepted"}),
            Self::Serving => json!({"protocol": PROTOCOL, "state": "serving"}),
            Self::Failed { reason } => {
                let end = reason.floor_char_boundary(REASON_LIMIT);
                // One line, and no longer for being escaped.
                let reason = reason[..end].replace(char::is_control, " ");
                json!({"protocol": PROTOCOL, "state": "failed", "reason": reason})
            }
        };
        message.to_string().into_bytes()
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// If it is of another protocol, or says nothing that this one knows.
    pub fn decode(message: &[u8]) -> Result<Self, MessageError> {
        let Version { protocol } = serde_json::from_slice(message)?;
        if protocol != PROTOCOL {
            return Err(MessageError::Protocol(protocol));
        }
        let ReplyIn { state, reason } = serde_json::from_slice(message)?;
        match state.as_str() {
            "accepted" => Ok(Self::Accepted),
            "serving" => Ok(Self::Serving),
            "failed" => Ok(Self::Failed {
                reason: reason.unwrap_or_else(|| "no reason was given".to_owned()),
            }),
            _ => Err(MessageError::Value("state is not one that is known")),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
