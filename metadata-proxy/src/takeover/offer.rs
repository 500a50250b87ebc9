//! The side that hands over.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::unistd::geteuid;

use super::{
    Channel, ChannelError, Handed, HandedDeclaration, Message, MessageError, OfferedNode,
    message::{DeclarationMessage, ProviderWord, TenantMessage},
};
use crate::{
    admission::rate::WindowRecord,
    tenants::{Provider, Source},
};

/// How long a peer may take to say who it is, or to take what it is sent.
const PROMPT: Duration = Duration::from_secs(5);
/// How long a successor may take to load its programs.
const LOADING: Duration = Duration::from_secs(30);
/// How long it may take to have everything served. Nothing is changed on the node meanwhile.
const SERVING: Duration = Duration::from_mins(1);
/// Windows in one message: one takes less than 400 bytes.
const WINDOWS_AT_ONCE: usize = 150;

/// What the running process is asked for while it hands over.
pub trait Question {
    /// Everything that is to be handed over. From now on nothing on the node is to be changed, until
    /// the conversation is over.
    fn give(&mut self) -> Option<Offer>;
    /// The limiter's windows as they are now.
    fn windows(&mut self) -> Vec<WindowRecord>;
}

/// What is handed over.
#[derive(Debug)]
pub struct Offer {
    /// What the node is.
    pub node: OfferedNode,
    /// The listening sockets for operators, stand-ins and successors, in this order.
    pub sockets: [OwnedFd; 3],
    /// Every namespace.
    pub tenants: Vec<Handed>,
}

impl Offer {
    /// Takes the sockets out: the conversation goes on without them.
    ///
    /// # Errors
    /// There are no descriptors to spare.
    pub fn take_sockets(&self) -> io::Result<[OwnedFd; 3]> {
        let [admin, register, successor] = &self.sockets;
        Ok([
            admin.try_clone()?,
            register.try_clone()?,
            successor.try_clone()?,
        ])
    }
}

/// Why nothing was handed over.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// Whoever asked may not.
    #[error("user {0} may not take over; only root and the agent's own user may")]
    User(u32),
    /// The process is ending.
    #[error("the agent is ending")]
    Ending,
    /// The conversation failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

impl From<MessageError> for OfferError {
    fn from(error: MessageError) -> Self {
        Self::Channel(error.into())
    }
}

/// Hands everything over to whoever connected, and returns its process id. When this fails, nothing
/// was: the caller goes on as before.
///
/// # Errors
/// [`OfferError`].
pub fn answer(channel: &Channel, question: &mut impl Question) -> Result<i32, OfferError> {
    let (pid, user) = channel
        .peer()
        .map_err(|error: io::Error| ChannelError::System(error))?;
    let told = converse(channel, user, question);
    if let Err(error) = &told {
        channel.refuse(error);
    }
    told.map(|()| pid)
}

fn converse(channel: &Channel, user: u32, question: &mut impl Question) -> Result<(), OfferError> {
    if user != 0 && user != geteuid().as_raw() {
        return Err(OfferError::User(user));
    }
    // Told before the other's is judged: so both know what the other speaks.
    channel.send(&Message::hello(), &[], PROMPT)?;
    channel.receive_hello(PROMPT)?;
    expect(channel, &Message::Give, LOADING)?;
    let offer = question.give().ok_or(OfferError::Ending)?;
    give(channel, &offer)?;
    drop(offer);
    expect(channel, &Message::Ready, SERVING)?;
    for windows in question.windows().chunks(WINDOWS_AT_ONCE) {
        let windows = windows.to_vec();
        channel.send(&Message::Windows { windows }, &[], PROMPT)?;
    }
    channel.send(&Message::Commit, &[], PROMPT)?;
    expect(channel, &Message::Taken, PROMPT)
}

fn expect(channel: &Channel, wanted: &Message, patience: Duration) -> Result<(), OfferError> {
    if channel.receive_plain(patience)? == *wanted {
        Ok(())
    } else {
        Err(MessageError::OutOfTurn.into())
    }
}

fn give(channel: &Channel, offer: &Offer) -> Result<(), OfferError> {
    let sockets: Vec<_> = offer.sockets.iter().map(OwnedFd::as_fd).collect();
    channel.send(&Message::Node(offer.node.clone()), &sockets, PROMPT)?;
    for tenant in &offer.tenants {
        let (message, descriptors) = encoded(tenant);
        channel.send(&Message::Tenant(message), &descriptors, PROMPT)?;
    }
    let tenants = offer.tenants.len();
    Ok(channel.send(&Message::End { tenants }, &[], PROMPT)?)
}

/// A namespace as a message and its descriptors.
fn encoded(tenant: &Handed) -> (TenantMessage, Vec<BorrowedFd<'_>>) {
    let files = tenant
        .declarations
        .iter()
        .filter_map(|declaration| match &declaration.source {
            Source::File(file) => Some(file.as_fd()),
            Source::Path(_) => None,
        });
    let listeners = tenant.listeners.iter().map(OwnedFd::as_fd);
    let declarations = tenant.declarations.iter().filter_map(declared).collect();
    (
        message(tenant, tenant.listeners.len(), declarations),
        listeners.chain(files).collect(),
    )
}

/// As much of a namespace as needs no descriptor.
pub(super) fn without_descriptors(tenant: &Handed) -> TenantMessage {
    let by_path = tenant
        .declarations
        .iter()
        .filter_map(declared)
        .filter(|declaration| declaration.path.is_some());
    message(tenant, 0, by_path.collect())
}

fn message(
    tenant: &Handed,
    listeners: usize,
    declarations: Vec<DeclarationMessage>,
) -> TenantMessage {
    TenantMessage {
        tenant: tenant.tenant.into(),
        cookie: tenant.cookie.0,
        netns: tenant.netns.parts(),
        name: tenant.name.clone(),
        listeners,
        is_suspended: tenant.is_suspended,
        declarations,
    }
}

fn declared(declaration: &HandedDeclaration) -> Option<DeclarationMessage> {
    let provider = match declaration.provider {
        Provider::Admin => ProviderWord::Admin,
        Provider::Register => ProviderWord::Register,
        // A look at the node finds them.
        Provider::Map | Provider::NetnsDir => return None,
    };
    Some(DeclarationMessage {
        provider,
        tenant: declaration.tenant.into(),
        name: declaration.name.clone(),
        path: match &declaration.source {
            Source::Path(path) => Some(path.clone()),
            Source::File(_) => None,
        },
        settings: declaration.settings.clone(),
    })
}
