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
    thread,
    time::{Duration, Instant},
};

use metadata_proxy_tests::{
    Guest, Kind, METADATA_V4, Netns, NeutronProxy, TenantFixture, neutron,
    process::run,
    raw_http::METADATA,
    stage::{Stage, assert_served},
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
    let stage = Stage::new();
    let tenant = TenantFixture::new(&stage.node, kind).unwrap();
    if let Some(proxy) = rules {
        neutron::install_rules(&tenant.netns, proxy).unwrap();
    }
    uses_a_port_again(&stage.served(tenant));
}

/// Its guest asks from one port again and again.
fn uses_a_port_again(tenant: &TenantFixture) {
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

/// Which of the addresses of its link a device has first is a matter of which was added last: what
/// Neutron adds and what the agent adds may come in either order. `REDIRECT` leads to the first.
#[test]
fn either_address_of_a_router_s_link_may_be_the_first() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    neutron::install_rules(&tenant.netns, NeutronProxy::Enabled).unwrap();
    let port = &tenant.subnets[0];
    let device = &port.device;
    for last in [
        format!("{}/64", port.link_local),
        format!("{METADATA_V6_ADDRESS}/128"),
    ] {
        // Whoever misses the address adds it again, so it may be there already.
        let again = format!("addr del {last} dev {device}\naddr replace {last} dev {device} nodad");
        tenant.netns.ip_batch(&again).unwrap();
        uses_a_port_again(&tenant);
    }
}

/// Connections of a guest that connects again and again: more than a tenant's count as many.
const AGAIN: usize = 6000;
/// Guest's ports for them.
const PORTS: usize = 500;
/// What counts as many (`Farewells`), and some that are closed until the listeners are there.
const LEFT_AT_MOST: usize = 4096 + 2 * PORTS;
/// Shorter than the time after which a SYN that nobody answers is sent again.
const AT_ONCE: Duration = Duration::from_millis(900);

/// What is left of connections in the calling thread's namespace.
fn in_time_wait() -> usize {
    let counts = std::fs::read_to_string("/proc/thread-self/net/sockstat").unwrap();
    let (_, count) = counts.split_once(" tw ").unwrap();
    count.split(' ').next().unwrap().parse().unwrap()
}

/// Asks many times, each time from whichever port the kernel chooses.
fn ask_again_and_again(times: usize) {
    for _ in 0..times {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(METADATA).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
        let took = begun.elapsed();
        assert!(took < AT_ONCE, "an answer took {took:?}");
    }
}

/// Four at a time, from few ports.
fn connects_again_and_again(guest: &Guest, times: usize) {
    let last = 40_000 + PORTS - 1;
    guest
        .netns
        .sysctl("net/ipv4/ip_local_port_range", &format!("40000 {last}"))
        .unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                guest.netns.enter().unwrap();
                ask_again_and_again(times / 4);
            });
        }
    });
}

/// A host beside the router, on a device that leads out of the cloud.
fn host_outside(stage: &Stage, tenant: &TenantFixture) -> Netns {
    let outside = Netns::hidden(&stage.node, "outside").unwrap();
    outside
        .ip_batch(&format!(
            "link add eth0 type veth peer name qg-outside netns {}\n\
             addr add 198.51.100.9/24 dev eth0\nlink set eth0 up\n\
             route add 169.254.169.254/32 dev eth0",
            tenant.netns.path().display()
        ))
        .unwrap();
    let router = "addr add 198.51.100.1/24 dev qg-outside\nlink set qg-outside up";
    tenant.netns.ip_batch(router).unwrap();
    outside
}

/// However often a guest connects, it leaves no more behind than it has ports; and what that takes is
/// for guests only.
#[test]
fn what_is_left_of_connections_is_bounded() {
    let stage = Stage::new();
    let mut tenant = stage.tenant(Kind::Router);
    neutron::install_rules(&tenant.netns, NeutronProxy::Disabled).unwrap();
    let outside = host_outside(&stage, &tenant);
    connects_again_and_again(tenant.guest(), AGAIN);
    let left = tenant.netns.run(|| Ok(in_time_wait())).unwrap();
    assert!(left <= LEFT_AT_MOST, "{left} are left in TIME_WAIT");
    let listeners = tenant.netns.command("ss").unwrap();
    let listeners = run({ listeners }.args(["-H", "-l", "-t", "-n", "sport = :80"])).unwrap();
    assert!(listeners.contains("169.254.169.254:80"), "{listeners}");
    let unheard = outside.run(|| Ok(TcpStream::connect_timeout(&METADATA, AT_ONCE)));
    assert!(unheard.unwrap().is_err());

    // Nor do guests behind a device that comes later.
    tenant.plug(1).unwrap();
    let later = tenant.guests().last().unwrap();
    wait_for("the later guest's answer", SOON, || {
        let reply = later.curl(METADATA_V4, &["--max-time", "0.5"])?;
        Ok((reply.status == 200).then_some(()))
    })
    .unwrap();
    let before = tenant.netns.run(|| Ok(in_time_wait())).unwrap();
    connects_again_and_again(later, 3 * PORTS);
    let left = tenant.netns.run(|| Ok(in_time_wait())).unwrap();
    assert!(
        left <= before + 2 * PORTS,
        "{left} are left in TIME_WAIT, {before} were"
    );
    assert_served(&tenant);
}
