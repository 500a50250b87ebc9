use std::{
    net::{Ipv4Addr, TcpListener},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use metadata_proxy_common::TenantKind;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use uuid::Uuid;

use super::*;
use crate::{
    admission::{
        Families, RateLimiter, RateLimits, WindowLimit,
        rate::{Verdict, WindowRecord},
    },
    identity::GuestAddress,
    packet::{self, Wait},
};

const TENANT: Tenant = Tenant {
    kind: TenantKind::Router,
    id: Uuid::from_u128(7),
};
const SOON: Duration = Duration::from_secs(10);

fn pair() -> (Channel, OwnedFd) {
    let (one, other) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap();
    (Channel::new(one).unwrap(), other)
}

fn socket() -> OwnedFd {
    TcpListener::bind("127.0.0.1:0").unwrap().into()
}

fn node() -> OfferedNode {
    OfferedNode {
        engine: "tc".to_owned(),
        port: 9697,
        bpffs_dir: "/sys/fs/bpf/metadata-proxy".into(),
        register_socket: "/run/register.sock".into(),
        notify_socket: None,
        watchdog_ms: Some(500),
    }
}

fn handed() -> Handed {
    Handed {
        tenant: TENANT,
        cookie: NetnsCookie(42),
        netns: NetnsId::from_parts(4, 9),
        name: "qrouter-7".to_owned(),
        listeners: vec![socket(), socket()],
        is_suspended: true,
        declarations: vec![
            HandedDeclaration {
                provider: Provider::Admin,
                tenant: TENANT,
                name: "by hand".to_owned(),
                source: Source::Path("/proc/7/ns/net".into()),
                settings: None,
            },
            HandedDeclaration {
                provider: Provider::Register,
                tenant: TENANT,
                name: "registered".to_owned(),
                source: Source::File(Arc::new(socket())),
                settings: None,
            },
        ],
    }
}

/// A running process that says whether it was asked.
#[derive(Default)]
struct Running {
    given: bool,
    windows: Vec<WindowRecord>,
    tenants: usize,
}

impl Question for Running {
    fn give(&mut self) -> Option<Offer> {
        self.given = true;
        Some(Offer {
            node: node(),
            sockets: [socket(), socket(), socket()],
            tenants: (0..self.tenants).map(|_| handed()).collect(),
        })
    }

    fn windows(&mut self) -> Vec<WindowRecord> {
        self.windows.clone()
    }
}

/// Runs the old side on a thread; tells how it went, and whether it was asked for everything.
fn old(channel: Channel, mut running: Running) -> JoinHandle<(Result<i32, OfferError>, bool)> {
    thread::spawn(move || {
        let told = answer(&channel, &mut running);
        (told, running.given)
    })
}

/// Says something that no program of ours would.
fn say(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    packet::send(socket.as_fd(), bytes, descriptors, Wait::No).unwrap();
}

fn windows() -> (RateLimiter, RateLimits) {
    let limiter = RateLimiter::new(1000, 1000);
    let window = WindowLimit {
        period: Duration::from_secs(100),
        requests: 3,
    };
    let limits = RateLimits {
        base: window,
        burst: window,
        families: Families { v4: true, v6: true },
    };
    (limiter, limits)
}

#[test]
fn everything_arrives_whole() {
    let (limiter, limits) = windows();
    let guest = |last: u8| GuestAddress::of_peer((Ipv4Addr::new(10, 0, 0, last), 1).into());
    for last in 1..=200 {
        for _ in 0..3 {
            limiter.check(TENANT, guest(last), &limits, Instant::now());
        }
    }
    let (channel, other) = pair();
    let running = Running {
        windows: limiter.windows(Instant::now()),
        tenants: 300,
        ..Running::default()
    };
    let old = old(channel, running);
    let begun = Begun::on(Channel::new(other).unwrap()).unwrap();
    let received = begun.receive().unwrap();
    assert_eq!(received.offer.node, node());
    assert_eq!(received.offer.tenants.len(), 300);
    let expected = handed();
    for tenant in &received.offer.tenants {
        assert_eq!(
            (tenant.tenant, tenant.cookie, tenant.netns, &tenant.name),
            (TENANT, expected.cookie, expected.netns, &expected.name)
        );
        assert_eq!(tenant.listeners.len(), 2);
        assert!(tenant.is_suspended);
        let [by_hand, registered] = &tenant.declarations[..] else {
            panic!("{tenant:?}");
        };
        assert_eq!(by_hand.provider, Provider::Admin);
        assert!(matches!(&by_hand.source, Source::Path(path) if path.ends_with("net")));
        assert_eq!(registered.provider, Provider::Register);
        assert!(matches!(registered.source, Source::File(_)));
    }
    let committed = received.ready().unwrap();
    let (next, _) = windows_of(&committed.windows);
    committed.taken().unwrap();
    let (told, given) = old.join().unwrap();
    assert_eq!(told.unwrap(), i32::try_from(std::process::id()).unwrap());
    assert!(given);
    // Whoever had used up its rate has still.
    for last in [1, 200] {
        let verdict = next.check(TENANT, guest(last), &limits, Instant::now());
        assert!(matches!(verdict, Verdict::Denied { .. }), "{last}");
    }
    let verdict = next.check(TENANT, guest(201), &limits, Instant::now());
    assert_eq!(verdict, Verdict::Admitted);
}

fn windows_of(records: &[WindowRecord]) -> (RateLimiter, RateLimits) {
    let (limiter, limits) = windows();
    limiter.resume(records, Instant::now());
    (limiter, limits)
}

#[test]
fn a_successor_of_another_protocol_is_refused_before_anything_is_asked_for() {
    let (channel, other) = pair();
    let old = old(channel, Running::default());
    say(
        &other,
        br#"{"message":"hello","protocol":2,"version":"9"}"#,
        &[],
    );
    let (told, given) = old.join().unwrap();
    let error = told.unwrap_err().to_string();
    assert!(error.contains("protocol 2, this one 1"), "{error}");
    assert!(!given);
    // It hears our number, and why.
    let other = Channel::new(other).unwrap();
    other.receive_hello(SOON).unwrap();
    let refused = other.receive(SOON).unwrap_err().to_string();
    assert!(refused.contains("protocol 2"), "{refused}");
}

#[test]
fn a_predecessor_of_another_protocol_is_left_alone() {
    let (channel, other) = pair();
    say(
        &other,
        br#"{"protocol":2,"greeting":"of another kind"}"#,
        &[],
    );
    let error = Begun::on(channel).unwrap_err().to_string();
    assert!(error.contains("hand-over protocol 2"), "{error}");
    // It was told our number, and asked for nothing.
    let other = Channel::new(other).unwrap();
    other.receive_hello(SOON).unwrap();
    assert!(matches!(other.receive(SOON), Err(ChannelError::Closed)));
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let hello = Message::hello().encode().unwrap();
    let (file, spare) = (socket(), socket());
    for (messages, descriptors, expected) in [
        (
            vec![&b"\xff\x00garbage"[..]],
            vec![],
            "not one of hand-over",
        ),
        (vec![b"{}"], vec![], "not one of hand-over"),
        (
            vec![br#"{"message":"give"}"#],
            vec![],
            "not the one whose turn",
        ),
        (
            vec![&hello[..hello.len() - 1]],
            vec![],
            "not one of hand-over",
        ),
        (
            vec![&hello, br#"{"message":"ready"}"#],
            vec![],
            "whose turn",
        ),
        (
            vec![&hello, br#"{"message":"unheard-of"}"#],
            vec![],
            "unknown variant",
        ),
        (
            vec![&hello, br#"{"message":"give"}"#],
            vec![file.as_fd()],
            "comes with 1 descriptors",
        ),
        (
            vec![&hello, br#"{"message":"refused","reason":"no"}"#],
            vec![],
            "refused: no",
        ),
    ] {
        let (channel, other) = pair();
        let old = old(channel, Running::default());
        let (last, first) = messages.split_last().unwrap();
        for message in first {
            say(&other, message, &[]);
        }
        say(&other, last, &descriptors);
        let (told, given) = old.join().unwrap();
        let error = told.unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!given, "{expected}");
    }
    drop(spare);
}

#[test]
fn a_message_that_is_too_long_is_refused() {
    let (channel, other) = pair();
    let old = old(channel, Running::default());
    say(&other, &vec![b' '; MESSAGE_LIMIT + 1], &[]);
    let error = old.join().unwrap().0.unwrap_err().to_string();
    assert!(error.contains("longer than"), "{error}");
    let reason = "x".repeat(MESSAGE_LIMIT);
    assert!(matches!(
        Message::Refused { reason }.encode(),
        Err(MessageError::TooLong)
    ));
}

#[test]
fn descriptors_that_are_missing_or_too_many_are_noticed() {
    let hello = Message::hello().encode().unwrap();
    let node = Message::Node(node()).encode().unwrap();
    let tenant = |listeners: usize| {
        format!(
            r#"{{"message":"tenant","tenant":{{"kind":"router","id":"{}"}},"cookie":1,
            "netns":[1,2],"name":"n","listeners":{listeners},"is_suspended":false,
            "declarations":[]}}"#,
            TENANT.id
        )
    };
    let sockets = [socket(), socket(), socket()];
    let some: Vec<_> = sockets.iter().map(OwnedFd::as_fd).collect();
    for (with_node, with_tenant, says, expected) in [
        (2, 0, 0, "comes with 2 descriptors, and says 3"),
        (3, 1, 2, "comes with 1 descriptors, and says 2"),
        (3, 2, 1, "comes with 2 descriptors, and says 1"),
        (3, 0, usize::MAX, "comes with 0 descriptors"),
    ] {
        let (channel, other) = pair();
        say(&other, &hello, &[]);
        say(&other, &node, &some[..with_node]);
        say(&other, tenant(says).as_bytes(), &some[..with_tenant]);
        let error = Begun::on(channel)
            .unwrap()
            .receive()
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn fewer_namespaces_than_announced_are_noticed() {
    let (channel, other) = pair();
    let sockets = [socket(), socket(), socket()];
    let some: Vec<_> = sockets.iter().map(OwnedFd::as_fd).collect();
    say(&other, &Message::hello().encode().unwrap(), &[]);
    say(&other, &Message::Node(node()).encode().unwrap(), &some);
    say(&other, &Message::End { tenants: 3 }.encode().unwrap(), &[]);
    let error = Begun::on(channel)
        .unwrap()
        .receive()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("0 namespaces were handed over, 3"),
        "{error}"
    );
}

#[test]
fn a_successor_that_dies_at_any_step_leaves_the_old_one_as_it_was() {
    for step in 0..4 {
        let (channel, other) = pair();
        let old = old(channel, Running::default());
        let other = Channel::new(other).unwrap();
        if step == 0 {
            drop(other);
        } else {
            let begun = Begun::on(other).unwrap();
            match step {
                1 => drop(begun),
                2 => drop(begun.receive().unwrap()),
                // Even after the commit: it has not said that it accepts.
                _ => drop(begun.receive().unwrap().ready().unwrap()),
            }
        }
        let (told, given) = old.join().unwrap();
        assert!(told.is_err(), "step {step}");
        assert_eq!(given, step > 1, "step {step}");
    }
}

#[test]
fn a_successor_notices_that_the_old_one_did_not_hear_it() {
    let (channel, other) = pair();
    let new = thread::spawn(move || {
        let committed = Begun::on(channel)
            .unwrap()
            .receive()
            .unwrap()
            .ready()
            .unwrap();
        committed.taken()
    });
    let sockets = [socket(), socket(), socket()];
    let some: Vec<_> = sockets.iter().map(OwnedFd::as_fd).collect();
    let other = Channel::new(other).unwrap();
    other.receive_hello(SOON).unwrap();
    other.send(&Message::hello(), &[], SOON).unwrap();
    assert_eq!(other.receive_plain(SOON).unwrap(), Message::Give);
    other.send(&Message::Node(node()), &some, SOON).unwrap();
    other.send(&Message::End { tenants: 0 }, &[], SOON).unwrap();
    assert_eq!(other.receive_plain(SOON).unwrap(), Message::Ready);
    other.send(&Message::Commit, &[], SOON).unwrap();
    // It crashes while `taken` waits to be read.
    other.wait_readable(SOON);
    drop(other);
    let error = new.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("did not hear"), "{error}");
}

#[test]
fn what_is_left_for_later_comes_back_without_descriptors() {
    let (limiter, limits) = windows();
    let guest = GuestAddress::of_peer((Ipv4Addr::LOCALHOST, 1).into());
    limiter.check(TENANT, guest, &limits, Instant::now());
    let nothing_to_tell = Handed {
        is_suspended: false,
        declarations: Vec::new(),
        ..handed()
    };
    let left = State {
        tenants: vec![handed(), nothing_to_tell],
        windows: limiter.windows(Instant::now()),
    };
    let read = State::read(left.write().unwrap()).unwrap();
    let [tenant] = &read.tenants[..] else {
        panic!("{read:?}");
    };
    assert!(tenant.is_suspended && tenant.listeners.is_empty());
    let [by_hand] = &tenant.declarations[..] else {
        panic!("{tenant:?}");
    };
    assert_eq!(by_hand.provider, Provider::Admin);
    assert_eq!(read.windows, left.windows);
    for wrong in [&b""[..], b"garbage\n", br#"{"protocol":2}"#] {
        let (reader, mut writer) = (tempfile::tempfile().unwrap(), Vec::new());
        std::io::Write::write_all(&mut writer, wrong).unwrap();
        std::io::Write::write_all(&mut &reader, &writer).unwrap();
        assert!(State::read(reader.into()).is_err());
    }
}

#[test]
fn nobody_to_take_over_from_is_no_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock.takeover");
    assert!(begin(&path).unwrap().is_none());
    assert_eq!(socket_path(&directory.path().join("admin.sock")), path);
}
