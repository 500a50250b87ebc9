use std::{
    fs::{self, File},
    io::{self, IoSlice, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use tempfile::TempDir;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Limits, Listener, MESSAGE_LIMIT, RegisterEvent, Registration, Reply, Server,
    client::{Lease, ReplyError, own_namespace},
    message::tests::request,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A server with its events, in a directory of its own.
struct Node {
    directory: TempDir,
    events: mpsc::Receiver<RegisterEvent>,
    stop: CancellationToken,
    server: JoinHandle<Listener>,
}

impl Node {
    fn start(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&directory.path().join("register.sock")).unwrap();
        let (sender, events) = mpsc::channel(8);
        let stop = CancellationToken::new();
        let server = Server::new(listener, limits).unwrap();
        let server = tokio::spawn(server.serve(sender, stop.clone()));
        Self {
            directory,
            events,
            stop,
            server,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("register.sock")
    }

    fn register(&self) -> Lease {
        let netns = own_namespace().unwrap();
        Lease::request(&self.path(), &request().encode(), netns.as_fd()).unwrap()
    }

    async fn started(&mut self) -> Registration {
        match timeout(PATIENCE, self.events.recv()).await.unwrap() {
            Some(RegisterEvent::Started(registration)) => *registration,
            other => panic!("not started: {other:?}"),
        }
    }

    async fn ended(&mut self) -> super::LeaseId {
        match timeout(PATIENCE, self.events.recv()).await.unwrap() {
            Some(RegisterEvent::Ended(lease)) => lease,
            other => panic!("not ended: {other:?}"),
        }
    }

    /// Sends a message as no client of ours would.
    fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> OwnedFd {
        let socket = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        connect(socket.as_raw_fd(), &UnixAddr::new(&self.path()).unwrap()).unwrap();
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &control };
        let part = [IoSlice::new(message)];
        sendmsg::<()>(
            socket.as_raw_fd(),
            &part,
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .unwrap();
        socket
    }
}

/// The next reply, or the end of the lease.
async fn reply(lease: &Lease) -> Result<Reply, ReplyError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match lease.reply() {
            Err(ReplyError::None) if Instant::now() < deadline => {
                sleep(Duration::from_millis(2)).await;
            }
            reply => return reply,
        }
    }
}

/// The reason with which a raw connection is refused and closed.
fn refusal(socket: OwnedFd) -> impl Future<Output = String> {
    let mut connection = std::os::unix::net::UnixStream::from(socket);
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    async move {
        tokio::task::spawn_blocking(move || {
            let mut buffer = [0; 4096];
            let length = connection.read(&mut buffer).unwrap();
            let Reply::Failed { reason } = Reply::decode(&buffer[..length]).unwrap() else {
                panic!("not refused");
            };
            assert_eq!(connection.read(&mut buffer).unwrap(), 0, "not closed");
            reason
        })
        .await
        .unwrap()
    }
}

#[tokio::test]
async fn a_registration_arrives_whole_and_its_verdict_comes_back() {
    let mut node = Node::start(Limits::default());
    let lease = node.register();
    assert_eq!(reply(&lease).await.unwrap(), Reply::Accepted);
    let registration = node.started().await;
    assert_eq!(registration.tenant, request().tenant);
    assert_eq!(registration.settings, request().settings);
    assert_eq!(registration.client, request().client);
    assert_eq!(registration.pid, i32::try_from(std::process::id()).unwrap());
    let handed_over = File::from(registration.netns).metadata().unwrap();
    let own = fs::metadata("/proc/self/ns/net").unwrap();
    assert_eq!(
        (handed_over.dev(), handed_over.ino()),
        (own.dev(), own.ino())
    );

    registration.reply.failed("not yet");
    let failed = Reply::Failed {
        reason: "not yet".to_owned(),
    };
    assert_eq!(reply(&lease).await.unwrap(), failed);
    registration.reply.serving();
    assert_eq!(reply(&lease).await.unwrap(), Reply::Serving);
}

#[tokio::test]
async fn a_lease_ends_when_its_client_closes() {
    let mut node = Node::start(Limits::default());
    let (first, second) = (node.register(), node.register());
    let (one, two) = (node.started().await, node.started().await);
    assert_ne!(one.lease, two.lease);
    drop(first);
    assert_eq!(node.ended().await, one.lease);
    drop(second);
    assert_eq!(node.ended().await, two.lease);
}

#[tokio::test]
async fn a_client_is_sent_away_when_its_handle_is_dropped() {
    let mut node = Node::start(Limits::default());
    let lease = node.register();
    let registration = node.started().await;
    assert_eq!(reply(&lease).await.unwrap(), Reply::Accepted);
    registration.reply.failed("gone");
    drop(registration.reply);
    let last = reply(&lease).await.unwrap();
    assert!(matches!(last, Reply::Failed { reason } if reason == "gone"));
    assert!(matches!(reply(&lease).await, Err(ReplyError::Closed)));
    assert_eq!(node.ended().await, registration.lease);
}

#[tokio::test]
async fn every_lease_closes_when_the_server_stops() {
    let mut node = Node::start(Limits::default());
    let lease = node.register();
    let registration = node.started().await;
    assert_eq!(reply(&lease).await.unwrap(), Reply::Accepted);
    node.stop.cancel();
    assert!(matches!(reply(&lease).await, Err(ReplyError::Closed)));
    drop(registration);
    assert!(node.events.recv().await.is_none());
    drop((&mut node.server).await.unwrap());
    assert!(!node.path().exists());
}

#[tokio::test]
async fn what_is_no_registration_is_refused_and_harms_nobody() {
    let mut node = Node::start(Limits::default());
    let netns = own_namespace().unwrap();
    let netns = netns.as_fd();
    let file = File::open("/dev/null").unwrap();
    let good = request().encode();
    let other = String::from_utf8(good.clone())
        .unwrap()
        .replace("\"protocol\":1", "\"protocol\":2");
    let mut portless = request();
    portless.settings.binds[0].port = 0;
    for (message, descriptors, expected) in [
        (b"".as_slice(), vec![netns], "closed before a message"),
        (b"\xff\x00garbage", vec![netns], "not one of protocol 1"),
        (b"{\"protocol\":1}", vec![netns], "missing field"),
        (other.as_bytes(), vec![netns], "is of protocol 2"),
        (&portless.encode(), vec![netns], "port 0"),
        (&good, vec![], "carries 0 descriptors"),
        (&good, vec![netns; 2], "carries 2 descriptors"),
        (&good, vec![netns; 30], "carries 5 descriptors"),
        (&good, vec![file.as_fd()], "not a network namespace"),
        (&vec![b' '; MESSAGE_LIMIT + 1], vec![netns], "longer than"),
    ] {
        let reason = refusal(node.send(message, &descriptors)).await;
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
    // None of them became an event, and the server still serves.
    let lease = node.register();
    node.started().await;
    drop(lease);
}

#[tokio::test]
async fn descriptors_of_a_refused_message_are_closed_though_not_all_fitted() {
    let node = Node::start(Limits::default());
    let (mut receiver, sender) = io::pipe().unwrap();
    let refused = refusal(node.send(&request().encode(), &[sender.as_fd(); 9]));
    drop(sender);
    refused.await;
    // At its end only when nobody holds a sender any more.
    let read = tokio::task::spawn_blocking(move || receiver.read(&mut [0; 1]));
    assert_eq!(timeout(PATIENCE, read).await.unwrap().unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_client_that_says_more_than_it_may_loses_its_lease() {
    let mut node = Node::start(Limits::default());
    let netns = own_namespace().unwrap();
    let socket = node.send(&request().encode(), &[netns.as_fd()]);
    let registration = node.started().await;
    let part = [IoSlice::new(b"more")];
    sendmsg::<()>(socket.as_raw_fd(), &part, &[], MsgFlags::empty(), None).unwrap();
    assert_eq!(node.ended().await, registration.lease);
}

#[tokio::test]
async fn no_more_leases_are_given_than_the_limit() {
    let mut node = Node::start(Limits { leases: 1 });
    let first = node.register();
    let _held = node.started().await;
    let second = node.register();
    let refused = reply(&second).await.unwrap();
    let Reply::Failed { reason } = &refused else {
        panic!("not refused: {refused:?}");
    };
    assert!(reason.contains("1 leases"), "{reason}");
    drop(first);
    node.ended().await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let third = node.register();
        if reply(&third).await.unwrap() == Reply::Accepted {
            break;
        }
        assert!(Instant::now() < deadline, "the room was not given back");
    }
}
