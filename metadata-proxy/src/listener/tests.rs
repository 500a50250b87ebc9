use std::time::Duration;

use tokio::time::timeout;

use super::*;

fn caller(local: &str, peer: &str, original: Option<&str>) -> Caller {
    Caller {
        peer: peer.parse().unwrap(),
        local: local.parse().unwrap(),
        original: original.map(|text| text.parse().unwrap()),
        netns: NetnsCookie(1),
    }
}

#[test]
fn only_steered_connections_count_as_metadata() {
    let guest = "10.0.0.5:40000";
    assert!(caller("169.254.169.254:80", guest, None).dialled_metadata());
    assert!(caller("[fe80::a9fe:a9fe]:80", "[fe80::1]:4000", None).dialled_metadata());
    assert!(caller("10.0.0.1:9697", guest, Some("169.254.169.254:80")).dialled_metadata());
    assert!(caller("127.0.0.1:9697", "127.0.0.1:4000", None).dialled_metadata());
    assert!(!caller("10.0.0.1:9697", guest, None).dialled_metadata());
    assert!(!caller("10.0.0.1:9697", guest, Some("10.0.0.1:9697")).dialled_metadata());
    assert!(!caller("169.254.169.254:9697", guest, None).dialled_metadata());
    assert!(!caller("169.254.169.254:443", guest, None).dialled_metadata());
    assert!(!caller("127.0.0.1:9697", guest, None).dialled_metadata());
}

#[test]
fn a_connection_over_loopback_tells_its_namespace() {
    let listener = bind(0).unwrap();
    listener.set_nonblocking(false).unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (stream, peer) = listener.accept().unwrap();
    let caller = Caller::of(&stream, peer, stream.local_addr().unwrap()).unwrap();
    assert_eq!(
        caller.peer,
        client.local_addr().unwrap(),
        "mapped addresses are reduced"
    );
    assert_eq!(caller.netns, netns::cookie_of(&client).unwrap());
    assert!(caller.dialled_metadata());
}

fn connect(listener: &TcpListener) -> TcpStream {
    let port = listener.local_addr().unwrap().port();
    TcpStream::connect(("127.0.0.1", port)).unwrap()
}

/// Waits until so many wait: the last segment of a handshake may be on its way.
async fn crowded(acceptor: &Acceptor, crowd: u32) {
    let all_wait = async {
        while acceptor.backlog() != crowd {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(5), all_wait).await.unwrap();
}

#[tokio::test]
async fn who_waits_is_accepted_and_who_comes_later_too() {
    let listener = bind(0).unwrap();
    let second = listener.try_clone().unwrap();
    let acceptor = Acceptor::new(listener).unwrap();
    for crowd in [1, 3, 2] {
        let waiting: Vec<_> = (0..crowd).map(|_| connect(&second)).collect();
        crowded(&acceptor, crowd).await;
        for guest in &waiting {
            let (_, peer) = acceptor.accept().await.unwrap();
            assert_eq!(canonical(peer), guest.local_addr().unwrap());
        }
        assert_eq!(acceptor.waiting.load(Ordering::Relaxed), 0);
        let moment = Duration::from_millis(20);
        assert!(timeout(moment, acceptor.accept()).await.is_err());
    }
}

#[tokio::test]
async fn whom_somebody_else_accepts_is_not_waited_for() {
    let listener = bind(0).unwrap();
    let second = listener.try_clone().unwrap();
    let acceptor = Acceptor::new(listener).unwrap();
    let guests: Vec<_> = (0..3).map(|_| connect(&second)).collect();
    crowded(&acceptor, 3).await;
    acceptor.accept().await.unwrap();
    // By a process that takes over, from the same socket.
    second.accept().unwrap();
    second.accept().unwrap();
    let moment = Duration::from_millis(20);
    assert!(timeout(moment, acceptor.accept()).await.is_err());
    let late = connect(&second);
    let (_, peer) = acceptor.accept().await.unwrap();
    assert_eq!(canonical(peer), late.local_addr().unwrap());
    drop(guests);
}

#[test]
fn accepted_sockets_acknowledge_by_their_answers_and_are_not_paced() {
    let listener = bind(0).unwrap();
    listener.set_nonblocking(false).unwrap();
    let _guest = connect(&listener);
    let (stream, _) = listener.accept().unwrap();
    let stream = SockRef::from(&stream);
    assert!(!stream.tcp_quickack().unwrap());
    let name = stream.tcp_congestion().unwrap();
    assert!(name.starts_with(CONGESTION_CONTROL), "{name:?}");
}
