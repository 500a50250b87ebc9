//! The messages of a hand-over.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{DESCRIPTOR_LIMIT, MESSAGE_LIMIT, PROTOCOL};
use crate::{
    admission::rate::WindowRecord,
    identity::{Tenant, kind_from_name, kind_name},
    neutron::TenantSettings,
};

/// One message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Message {
    /// Begins the conversation, both ways. What all protocols have in common: the number.
    Hello {
        /// The protocol.
        protocol: u32,
        /// The version of the program.
        version: String,
    },
    /// The other end will not go on.
    Refused {
        /// Why, for a person.
        reason: String,
    },
    /// Asks for everything.
    Give,
    /// What the node is, with the listening sockets for operators, stand-ins and successors.
    Node(OfferedNode),
    /// One namespace, with its listening sockets and the namespaces of its declarations.
    Tenant(TenantMessage),
    /// That was all.
    End {
        /// How many `tenant` messages there were.
        tenants: usize,
    },
    /// Everything is served.
    Ready,
    /// Some of the limiter's windows.
    Windows {
        /// The windows, as they were at the moment that each says.
        windows: Vec<WindowRecord>,
    },
    /// It is yours.
    Commit,
    /// It is mine.
    Taken,
}

/// What a successor must have in common with its predecessor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferedNode {
    /// The engine.
    pub engine: String,
    /// Port of the listeners.
    pub port: u16,
    /// Where maps and links are pinned.
    pub bpffs_dir: PathBuf,
    /// Where stand-ins register.
    pub register_socket: PathBuf,
    /// Where the service manager wants to hear of the agent, if there is one.
    pub notify_socket: Option<String>,
    /// How often it wants to, milliseconds.
    pub watchdog_ms: Option<u64>,
}

/// One namespace; see [`super::Handed`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantMessage {
    /// Its tenant.
    pub tenant: TenantWord,
    /// Its cookie.
    pub cookie: u64,
    /// Device and inode of its file.
    pub netns: (u64, u64),
    /// What people call it.
    pub name: String,
    /// How many listening sockets come with it, before all other descriptors.
    pub listeners: usize,
    /// Whether its stand-in ended.
    pub is_suspended: bool,
    /// Who declared it.
    pub declarations: Vec<DeclarationMessage>,
}

/// A declaration; see [`super::HandedDeclaration`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclarationMessage {
    /// Who made it.
    pub provider: ProviderWord,
    /// The tenant.
    pub tenant: TenantWord,
    /// What people call the namespace.
    pub name: String,
    /// Path of the namespace; without one a descriptor comes with the message.
    pub path: Option<PathBuf>,
    /// How the tenant is served.
    pub settings: Option<TenantSettings>,
}

/// Those whose declarations are handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderWord {
    /// The admin API.
    Admin,
    /// A stand-in.
    Register,
}

/// A tenant in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantWord {
    kind: String,
    id: Uuid,
}

impl From<Tenant> for TenantWord {
    fn from(tenant: Tenant) -> Self {
        Self {
            kind: kind_name(tenant.kind).to_owned(),
            id: tenant.id,
        }
    }
}

impl TryFrom<TenantWord> for Tenant {
    type Error = MessageError;

    fn try_from(word: TenantWord) -> Result<Self, MessageError> {
        let kind = kind_from_name(&word.kind).ok_or(MessageError::Value("kind of tenant"))?;
        Ok(Self { kind, id: word.id })
    }
}

/// A message that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// It is none of this protocol.
    #[error("the message is not one of hand-over protocol {PROTOCOL}: {0}")]
    Form(#[from] serde_json::Error),
    /// The other end speaks another protocol.
    #[error(
        "the other process speaks hand-over protocol {0}, this one {PROTOCOL}: the agent must be \
         stopped and started instead"
    )]
    Protocol(u32),
    /// It is longer than the limit.
    #[error("the message is longer than {MESSAGE_LIMIT} bytes")]
    TooLong,
    /// It came with another number of descriptors than it says.
    #[error("the message comes with {0} descriptors, and says {1}")]
    Descriptors(usize, usize),
    /// It came with more than there is room for.
    #[error("the message comes with more than {DESCRIPTOR_LIMIT} descriptors")]
    TooManyDescriptors,
    /// A value makes no sense.
    #[error("the message has no sensible {0}")]
    Value(&'static str),
    /// It came out of turn.
    #[error("the message is not the one whose turn it is")]
    OutOfTurn,
    /// Fewer or more namespaces came than were announced.
    #[error("{0} namespaces were handed over, {1} announced")]
    Incomplete(usize, usize),
}

impl Message {
    /// How one begins.
    #[must_use]
    pub fn hello() -> Self {
        Self::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Writes the message.
    ///
    /// # Errors
    /// A path is not UTF-8, or the message is too long.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() > MESSAGE_LIMIT {
            return Err(MessageError::TooLong);
        }
        Ok(bytes)
    }

    /// Reads a message.
    ///
    /// # Errors
    /// It is none of this protocol.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Reads the first message of the other end, whatever protocol it speaks.
    ///
    /// # Errors
    /// It speaks another one, or none at all.
    pub fn decode_first(bytes: &[u8]) -> Result<Self, MessageError> {
        #[derive(Deserialize)]
        struct First {
            protocol: Option<u32>,
        }
        let First { protocol } = serde_json::from_slice(bytes)?;
        match protocol {
            Some(protocol) if protocol != PROTOCOL => Err(MessageError::Protocol(protocol)),
            // A refusal has no number.
            _ => Self::decode(bytes),
        }
    }
}
