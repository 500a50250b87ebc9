//! What the service manager (systemd) is told, and what it keeps for us: `sd_notify(3)`,
//! `sd_listen_fds(3)`, and its store of file descriptors.
//!
//! Without one, nothing here does anything.

use std::{
    env, io,
    net::TcpListener,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::net::UnixDatagram,
    },
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{UnixAddr, connect};
use sd_notify::NotifyState;
use tracing::warn;
use uuid::Uuid;

use crate::{
    identity::{Tenant, kind_from_name, kind_name},
    netns::NetnsCookie,
    packet::{self, Wait},
};

/// How long a notification may wait for room in the service manager's queue.
const PATIENCE: Duration = Duration::from_secs(5);
/// Name of what is stored besides listeners: what a successor could not find out.
const STATE: &str = "state";

/// Where the service manager listens, and how often it wants to hear of us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceManager {
    socket: Option<String>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// As the environment says (`NOTIFY_SOCKET`, `WATCHDOG_USEC`).
    #[must_use]
    pub fn from_environment() -> Self {
        Self {
            socket: env::var("NOTIFY_SOCKET")
                .ok()
                .filter(|name| !name.is_empty()),
            watchdog: sd_notify::watchdog_enabled(),
        }
    }

    /// The one of a predecessor, where the environment names none.
    #[must_use]
    pub fn or(self, socket: Option<&str>, watchdog: Option<Duration>) -> Self {
        if self.socket.is_some() {
            return self;
        }
        Self {
            socket: socket.map(str::to_owned),
            watchdog,
        }
    }

    /// The address to which notifications go.
    #[must_use]
    pub fn socket(&self) -> Option<&str> {
        self.socket.as_deref()
    }

    /// How long the service manager waits for a sign of life.
    #[must_use]
    pub const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Tells it something, if it wants to know (`Type=notify`).
    pub fn tell(&self, states: &[NotifyState<'_>]) {
        if let Err(error) = self.send(states, &[]) {
            warn!(%error, "cannot tell the service manager");
        }
    }

    fn send(&self, states: &[NotifyState<'_>], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let words = states.iter().map(|state| format!("{state}\n"));
        self.send_text(&words.collect::<String>(), descriptors)
    }

    fn send_text(&self, text: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let Some(name) = &self.socket else {
            return Ok(());
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let address = match name.strip_prefix('@') {
            Some(name) => UnixAddr::new_abstract(name.as_bytes())?,
            None => UnixAddr::new(name.as_str())?,
        };
        connect(socket.as_raw_fd(), &address)?;
        packet::send(socket.as_fd(), text.as_bytes(), descriptors, Wait::Yes)
    }
}

/// Keeps listeners with the service manager, so that guests wait in them while the agent restarts.
#[derive(Clone, Debug, Default)]
pub struct FdStore(Option<Arc<ServiceManager>>);

impl FdStore {
    /// A store, if the service manager keeps descriptors for us (`FDSTORE`, since systemd 254, or
    /// as it is told by the unit's environment).
    #[must_use]
    pub fn of(manager: &ServiceManager) -> Self {
        Self(manager.socket.is_some().then(|| Arc::new(manager.clone())))
    }

    /// Stores listeners of a namespace.
    pub fn keep(&self, tenant: Tenant, cookie: NetnsCookie, listeners: &[TcpListener]) {
        let Some(manager) = &self.0 else {
            return;
        };
        let name = Stored { tenant, cookie }.name();
        let listeners: Vec<_> = listeners.iter().map(TcpListener::as_fd).collect();
        if listeners.is_empty() {
            return;
        }
        let text = format!("FDSTORE=1\nFDNAME={name}\n");
        if let Err(error) = manager.send_text(&text, &listeners) {
            warn!(%error, %tenant, "the service manager keeps no listener of this tenant");
        }
    }

    /// Takes the listeners of a namespace out, which would keep it alive.
    pub fn forget(&self, tenant: Tenant, cookie: NetnsCookie) {
        self.forget_named(&Stored { tenant, cookie }.name());
    }

    /// Stores what a successor could not find out.
    pub fn keep_state(&self, state: &OwnedFd) {
        let Some(manager) = &self.0 else {
            return;
        };
        let text = format!("FDSTORE=1\nFDNAME={STATE}\n");
        if let Err(error) = manager.send_text(&text, &[state.as_fd()]) {
            warn!(%error, "the service manager does not keep the state for a restart");
        }
    }

    /// Takes that out.
    pub fn forget_state(&self) {
        self.forget_named(STATE);
    }

    fn forget_named(&self, name: &str) {
        if let Some(manager) = &self.0 {
            let text = format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
            if let Err(error) = manager.send_text(&text, &[]) {
                warn!(%error, name, "the service manager keeps what it need not");
            }
        }
    }
}

/// Whose listener is stored: what its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The tenant it was declared for.
    pub tenant: Tenant,
    /// Its namespace.
    pub cookie: NetnsCookie,
}

impl Stored {
    /// The name; no character in it has a meaning to the service manager.
    #[must_use]
    pub fn name(&self) -> String {
        let Tenant { kind, id } = self.tenant;
        format!("{}.{id}.{}", kind_name(kind), self.cookie)
    }

    /// Reads a name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let mut words = name.split('.');
        let kind = kind_from_name(words.next()?)?;
        let id = Uuid::try_parse(words.next()?).ok()?;
        let cookie = words.next()?.parse().ok().map(NetnsCookie)?;
        words.next().is_none().then_some(Self {
            tenant: Tenant { kind, id },
            cookie,
        })
    }
}

/// What the service manager has kept.
#[derive(Debug, Default)]
pub struct Returned {
    /// Listeners.
    pub listeners: Vec<(Stored, OwnedFd)>,
    /// What a predecessor left to be known.
    pub state: Option<OwnedFd>,
}

/// Takes what the service manager has kept for this process; to be called once, at its begin.
///
/// # Errors
/// What the environment says makes no sense.
pub fn returned() -> io::Result<Returned> {
    let mut returned = Returned::default();
    for (descriptor, name) in sd_notify::listen_fds_with_names()? {
        // SAFETY: the service manager opened it for this process, and nobody else takes it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        match Stored::of_name(&name) {
            Some(stored) => returned.listeners.push((stored, descriptor)),
            None if name == STATE => returned.state = Some(descriptor),
            None => warn!(name, "a descriptor that nobody knows is closed"),
        }
    }
    Ok(returned)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _};

    use metadata_proxy_common::TenantKind;

    use super::*;

    const TENANT: Tenant = Tenant {
        kind: TenantKind::OvnNetwork,
        id: Uuid::from_u128(0x1111_1111_1111_4111_8111_1111_1111_1111),
    };

    /// A service manager that only listens.
    fn manager(name: &str) -> (UnixDatagram, ServiceManager, Option<tempfile::TempDir>) {
        if let Some(name) = name.strip_prefix('@') {
            use std::os::linux::net::SocketAddrExt as _;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
            let socket = UnixDatagram::bind_addr(&address).unwrap();
            let manager = ServiceManager::default().or(Some(&format!("@{name}")), None);
            return (socket, manager, None);
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager::default().or(path.to_str(), None);
        (socket, manager, Some(directory))
    }

    fn heard(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
        let mut buffer = [0; 4096];
        let packet = packet::receive(socket.as_fd(), &mut buffer, 8, Wait::No).unwrap();
        let text = String::from_utf8(buffer[..packet.length].to_vec()).unwrap();
        (text, packet.descriptors)
    }

    #[test]
    fn a_name_carries_tenant_and_namespace_and_comes_back() {
        let stored = Stored {
            tenant: TENANT,
            cookie: NetnsCookie(42),
        };
        let name = stored.name();
        assert_eq!(name, "ovn-network.11111111-1111-4111-8111-111111111111.42");
        assert_eq!(Stored::of_name(&name), Some(stored));
        for other in ["", "state", "router.x.1", &format!("{name}.1"), "a.b.c"] {
            assert_eq!(Stored::of_name(other), None, "{other}");
        }
    }

    #[test]
    fn it_is_told_at_a_path_and_at_an_abstract_address() {
        let abstract_name = format!("@mdp-test-{}", std::process::id());
        for name in ["notify.sock", &abstract_name] {
            let (socket, manager, _directory) = manager(name);
            manager.tell(&[NotifyState::Ready, NotifyState::MainPid(7)]);
            assert_eq!(heard(&socket).0, "READY=1\nMAINPID=7\n");
        }
    }

    #[test]
    fn listeners_are_stored_with_a_name_and_taken_out_by_it() {
        let (socket, manager, _directory) = manager("notify.sock");
        let store = FdStore::of(&manager);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        store.keep(TENANT, NetnsCookie(42), &[listener]);
        let (text, descriptors) = heard(&socket);
        let name = "ovn-network.11111111-1111-4111-8111-111111111111.42";
        assert_eq!(text, format!("FDSTORE=1\nFDNAME={name}\n"));
        let [kept] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
        assert_eq!(TcpListener::from(kept).local_addr().unwrap(), address);
        store.forget(TENANT, NetnsCookie(42));
        let (text, descriptors) = heard(&socket);
        assert_eq!(text, format!("FDSTOREREMOVE=1\nFDNAME={name}\n"));
        assert!(descriptors.is_empty());
    }

    #[test]
    fn the_state_is_stored_by_its_own_name() {
        let (socket, manager, _directory) = manager("notify.sock");
        let store = FdStore::of(&manager);
        let (reader, writer) = io::pipe().unwrap();
        drop(writer);
        store.keep_state(&reader.into());
        let (text, mut descriptors) = heard(&socket);
        assert_eq!(text, "FDSTORE=1\nFDNAME=state\n");
        let mut kept = File::from(descriptors.remove(0));
        assert_eq!(kept.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn without_one_nothing_is_told() {
        let manager = ServiceManager::default();
        manager.tell(&[NotifyState::Ready]);
        FdStore::of(&manager).forget_state();
        assert_eq!(manager.socket(), None);
    }
}
