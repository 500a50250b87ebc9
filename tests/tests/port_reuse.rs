//! A guest may use a port again at once, whatever is left of its last connection from there.
//!
//! The service closes after `Connection: close`, so it is its side that lingers in `TIME_WAIT`; a
//! guest that asks often meets one such socket soon.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, SocketAddrV6, TcpStream},
    time::Duration,
};

use metadata_proxy_tests::{
    Agent, Kind, MetadataAgent, NeutronProxy, Node, TenantFixture, neutron,
    raw_http::METADATA,
    subnet::{GUEST_DEVICE, METADATA_V6_ADDRESS},
    wait::wait_for,
};
use socket2::{Domain, Socket, Type};

/// Longer than a SYN that was lost once, shorter than one that is lost again and again.
const SOON: Duration = Duration::from_secs(5);

/// Asks from this port and waits for the end of the connection.
fn ask(from_port: u16, metadata: SocketAddr) -> String {
    let socket = Socket::new(Domain::for_address(metadata), Type::STREAM, None).unwrap();
    let any: SocketAddr = match metadata {
        SocketAddr::V4(_) => ([0, 0, 0, 0], from_port).into(),
        SocketAddr::V6(_) => ([0_u16; 8], from_port).into(),
    };
    // The guest's own side lets go of the port when the last acknowledgement has come.
    wait_for("the guest's own port", SOON, || {
        match socket.bind(&any.into()) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
            bound => Ok(Some(bound?)),
        }
    })
    .unwrap();
    socket
        .connect_timeout(&metadata.into(), SOON)
        .unwrap_or_else(|error| panic!("cannot connect to {metadata} from {from_port}: {error}"));
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The metadata service over IPv6, on the guest's link.
fn metadata_v6() -> SocketAddr {
    let scope = nix::net::if_::if_nametoindex(GUEST_DEVICE).unwrap();
    SocketAddrV6::new(METADATA_V6_ADDRESS.parse().unwrap(), 80, 0, scope).into()
}

fn is_served_again(kind: Kind, rules: Option<NeutronProxy>) {
    let node = Node::new().unwrap();
    let tenant = TenantFixture::new(&node, kind).unwrap();
    if let Some(proxy) = rules {
        neutron::install_rules(&tenant.netns, proxy).unwrap();
    }
    let upstream = MetadataAgent::builder()
        .start(&node.directory().join("agent"))
        .unwrap();
    let agent = Agent::builder(&node)
        .upstream_agent(upstream.socket())
        .start()
        .unwrap();
    agent.wait_served(&tenant).unwrap();
    let ask_again = || {
        for metadata in [METADATA, metadata_v6()] {
            for attempt in 0..4 {
                let answer = ask(45_000, metadata);
                assert!(
                    answer.starts_with("HTTP/1.1 200 "),
                    "{attempt} got {answer:?}"
                );
            }
        }
        Ok(())
    };
    tenant.guest().netns.run(ask_again).unwrap();
}

#[test]
fn a_guest_of_a_network_may_use_a_port_again_at_once() {
    is_served_again(Kind::Network, None);
}

#[test]
fn a_guest_of_a_router_may_use_a_port_again_at_once() {
    is_served_again(Kind::Router, Some(NeutronProxy::Disabled));
}

#[test]
fn a_guest_behind_a_redirect_may_use_a_port_again_at_once() {
    is_served_again(Kind::Router, Some(NeutronProxy::Enabled));
}
