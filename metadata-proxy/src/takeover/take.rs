//! The side that takes over: three steps, each of which consumes the one before.

use std::{os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};

use super::{
    Channel, ChannelError, Handed, HandedDeclaration, Message, MessageError, Offer, OfferedNode,
    message::{DeclarationMessage, ProviderWord, TenantMessage},
};
use crate::{
    admission::rate::WindowRecord,
    kernel::NetnsCookie,
    netns::NetnsId,
    tenants::{Provider, Source},
};

/// How long the running process may take for each message. It has nothing to prepare.
const PROMPT: Duration = Duration::from_secs(10);

/// Why nothing was taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// There is something at the socket that cannot be reached.
    #[error("cannot reach the running agent: {0}")]
    Unreachable(std::io::Error),
    /// The conversation failed.
    #[error("the running agent did not hand over: {0}")]
    Channel(#[from] ChannelError),
}

impl From<MessageError> for TakeError {
    fn from(error: MessageError) -> Self {
        Self::Channel(error.into())
    }
}

/// Both speak the same protocol; nothing has been asked for.
#[derive(Debug)]
pub struct Begun(Channel);

/// Everything is there; the running process waits.
#[derive(Debug)]
pub struct Received {
    channel: Channel,
    /// What was handed over.
    pub offer: Offer,
}

/// The running process has let go, and waits to hear that somebody else accepts.
#[derive(Debug)]
pub struct Committed {
    channel: Channel,
    /// The limiter's windows.
    pub windows: Vec<WindowRecord>,
}

/// Finds the agent that runs and makes sure that it speaks the same protocol; `None` if none runs.
///
/// # Errors
/// [`TakeError`]; nothing has changed then.
pub fn begin(path: &Path) -> Result<Option<Begun>, TakeError> {
    let Some(channel) = Channel::connect(path).map_err(TakeError::Unreachable)? else {
        return Ok(None);
    };
    Begun::on(channel).map(Some)
}

impl Begun {
    /// Makes sure that the other end speaks the same protocol.
    ///
    /// # Errors
    /// [`TakeError`]; nothing has changed then.
    pub fn on(channel: Channel) -> Result<Self, TakeError> {
        channel.send(&Message::hello(), &[], PROMPT)?;
        channel.receive_hello(PROMPT)?;
        Ok(Self(channel))
    }

    /// Asks for everything.
    ///
    /// # Errors
    /// [`TakeError`]; the running process goes on as before.
    pub fn receive(self) -> Result<Received, TakeError> {
        let Self(channel) = self;
        channel.send(&Message::Give, &[], PROMPT)?;
        let (node, sockets) = node(&channel)?;
        let mut tenants = Vec::new();
        loop {
            match channel.receive(PROMPT)? {
                (Message::Tenant(message), descriptors) => {
                    tenants.push(decoded(message, descriptors)?);
                }
                (Message::End { tenants: announced }, _) if announced == tenants.len() => break,
                (Message::End { tenants: announced }, _) => {
                    return Err(MessageError::Incomplete(tenants.len(), announced).into());
                }
                _ => return Err(MessageError::OutOfTurn.into()),
            }
        }
        let offer = Offer {
            node,
            sockets,
            tenants,
        };
        Ok(Received { channel, offer })
    }
}

impl Received {
    /// Says that it will not go on, and why.
    pub fn refuse(&self, reason: &dyn std::fmt::Display) {
        self.channel.refuse(reason);
    }

    /// Says that everything is served, and waits until the running process lets go.
    ///
    /// # Errors
    /// [`TakeError`]; the running process goes on as before.
    pub fn ready(self) -> Result<Committed, TakeError> {
        let channel = self.channel;
        channel.send(&Message::Ready, &[], PROMPT)?;
        let mut windows = Vec::new();
        loop {
            match channel.receive_plain(PROMPT)? {
                Message::Windows { windows: some } => windows.extend(some),
                Message::Commit => return Ok(Committed { channel, windows }),
                _ => return Err(MessageError::OutOfTurn.into()),
            }
        }
    }
}

impl Committed {
    /// Says that connections are accepted here: the running process drains and ends.
    ///
    /// # Errors
    /// [`TakeError`]; the running process goes on as before.
    pub fn taken(self) -> Result<(), TakeError> {
        self.channel.send(&Message::Taken, &[], PROMPT)?;
        // It closes in order once it has read that; had it not, this would be a reset (unix(7)).
        match self.channel.receive_plain(PROMPT) {
            Err(ChannelError::Closed) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(MessageError::OutOfTurn.into()),
        }
    }
}

fn node(channel: &Channel) -> Result<(OfferedNode, [OwnedFd; 3]), TakeError> {
    match channel.receive(PROMPT)? {
        (Message::Node(node), sockets) => {
            let sockets = sockets
                .try_into()
                .map_err(|all: Vec<_>| MessageError::Descriptors(all.len(), 3))?;
            Ok((node, sockets))
        }
        _ => Err(MessageError::OutOfTurn.into()),
    }
}

/// A namespace from a message and its descriptors.
pub(super) fn decoded(
    message: TenantMessage,
    descriptors: Vec<OwnedFd>,
) -> Result<Handed, TakeError> {
    let files = message.declarations.iter().filter(|it| it.path.is_none());
    let wanted = message.listeners.saturating_add(files.count());
    if descriptors.len() != wanted {
        return Err(MessageError::Descriptors(descriptors.len(), wanted).into());
    }
    let mut descriptors = descriptors.into_iter();
    let listeners = descriptors.by_ref().take(message.listeners).collect();
    let declarations = message
        .declarations
        .into_iter()
        .map(|declaration| declared(declaration, &mut descriptors))
        .collect::<Result<_, _>>()?;
    let (device, inode) = message.netns;
    Ok(Handed {
        tenant: message.tenant.try_into()?,
        cookie: NetnsCookie(message.cookie),
        netns: NetnsId::from_parts(device, inode),
        name: message.name,
        listeners,
        is_suspended: message.is_suspended,
        declarations,
    })
}

fn declared(
    message: DeclarationMessage,
    files: &mut impl Iterator<Item = OwnedFd>,
) -> Result<HandedDeclaration, MessageError> {
    let source = match message.path {
        Some(path) => Source::Path(path),
        None => Source::File(Arc::new(
            files.next().ok_or(MessageError::Value("descriptor"))?,
        )),
    };
    Ok(HandedDeclaration {
        provider: match message.provider {
            ProviderWord::Admin => Provider::Admin,
            ProviderWord::Register => Provider::Register,
        },
        tenant: message.tenant.try_into()?,
        name: message.name,
        source,
        settings: message.settings,
    })
}
