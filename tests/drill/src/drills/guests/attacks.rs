//! What hostile guests do, each until it is told to stop; each counts what it did.
//!
//! All of it is done by threads inside the namespace of one guest, which has many addresses, with
//! the lowest priority: on a real node guests have CPUs of their own.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use metadata_proxy_tests::{
    Guest,
    raw_http::{Connection, METADATA, Read},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::requests;

/// A target for which the upstream gives an answer that no socket's buffer holds.
pub(super) const LONG: &str = "/long";
/// A target that attackers ask for where asking is allowed.
pub(super) const FLOOD: &str = "/flood";

/// Longest that anything may take before a guest looks whether it shall stop.
const TICK: Duration = Duration::from_millis(500);
/// Longest that a refusal may take, the agent's own timeouts included.
const PATIENCE: Duration = Duration::from_secs(10);

/// What attackers have at hand, and what they saw.
pub(super) struct Ground<'a> {
    pub(super) guest: &'a Guest,
    pub(super) addresses: &'a [Ipv4Addr],
    /// Requests that were sent as they should be: at most so many may be asked upstream.
    pub(super) asked: &'a AtomicU64,
    /// Answers that should not have been given.
    pub(super) wrong: &'a AtomicU64,
    /// Refusals with a status.
    pub(super) refused: &'a AtomicU64,
}

/// Something hostile.
pub(super) struct Attack {
    pub(super) name: &'static str,
    pub(super) threads: usize,
    /// Goes on until told to stop; returns how often it did what it does.
    pub(super) act: fn(&Ground<'_>, usize, &AtomicBool) -> Result<u64>,
}

pub(super) const ALL: &[Attack] = &[
    Attack {
        name: "Slowloris: heads",
        threads: 2,
        act: slow_heads,
    },
    Attack {
        name: "Slowloris: bodies",
        threads: 2,
        act: slow_bodies,
    },
    Attack {
        name: "Slowloris: reading",
        threads: 2,
        act: slow_readers,
    },
    Attack {
        name: "idle connections",
        threads: 2,
        act: idle,
    },
    Attack {
        name: "SYN flood",
        threads: 1,
        act: syn_flood,
    },
    Attack {
        name: "churn",
        threads: 2,
        act: churn,
    },
    Attack {
        name: "huge and endless bodies",
        threads: 2,
        act: huge_bodies,
    },
    Attack {
        name: "pipelining",
        threads: 2,
        act: pipelining,
    },
    Attack {
        name: "header bombs",
        threads: 2,
        act: header_bombs,
    },
    Attack {
        name: "smuggling",
        threads: 2,
        act: smuggling,
    },
];

impl Attack {
    /// Attacks with all threads until told to stop.
    pub(super) fn run(&self, ground: &Ground<'_>, stop: &AtomicBool) -> Result<u64> {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads)
                .map(|number| {
                    scope.spawn(move || {
                        ground.guest.netns.enter()?;
                        give_way();
                        (self.act)(ground, number, stop)
                    })
                })
                .collect();
            let mut done = 0;
            for thread in threads {
                done += thread.join().ok().context("an attacker panicked")??;
            }
            Ok(done)
        })
    }
}

/// Takes the lowest priority for the calling thread.
fn give_way() {
    // SAFETY: setpriority(2) takes integers only; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

fn goes_on(stop: &AtomicBool) -> bool {
    !stop.load(Ordering::Relaxed)
}

/// A connection from one of the addresses, with a small buffer for what comes.
fn open(source: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.set_recv_buffer_size(4096)?;
    socket.connect_timeout(&METADATA.into(), TICK)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TICK))?;
    stream.set_write_timeout(Some(TICK))?;
    Ok(stream)
}

/// Holds as many connections as it can get up to `most`, begins each with `first` and goes on with a
/// byte of `then` for each now and then; replaces those that end. `reads`: takes a byte instead.
fn hold(
    ground: &Ground<'_>,
    number: usize,
    stop: &AtomicBool,
    most: usize,
    first: &[u8],
    then: Option<u8>,
    reads: bool,
) -> Result<u64> {
    let mut held: Vec<TcpStream> = Vec::new();
    let mut opened = 0;
    let mut next = number;
    while goes_on(stop) {
        let round = Instant::now();
        while held.len() < most && goes_on(stop) && round.elapsed() < TICK {
            next += 1;
            let Ok(mut stream) = open(ground.addresses[next % ground.addresses.len()]) else {
                break;
            };
            let _ = stream.write_all(first);
            stream
                .set_nonblocking(true)
                .context("a socket that waits")?;
            opened += 1;
            held.push(stream);
        }
        held.retain_mut(|stream| {
            let mut bytes = [0; 1];
            if reads {
                return !matches!(stream.read(&mut bytes), Ok(0));
            }
            if let Some(byte) = then
                && let Err(error) = stream.write(&[byte])
                && error.kind() != io::ErrorKind::WouldBlock
            {
                return false;
            }
            match stream.peek(&mut bytes) {
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
                Ok(0) => false,
                Ok(_) => {
                    check_refusal(ground, stream);
                    false
                }
            }
        });
        thread::sleep(Duration::from_millis(100).saturating_sub(round.elapsed()));
    }
    Ok(opened)
}

/// What is said unasked is a refusal.
fn check_refusal(ground: &Ground<'_>, stream: &mut TcpStream) {
    let mut answer = [0; 12];
    let len = stream.read(&mut answer).unwrap_or(0);
    if answer[..len].starts_with(b"HTTP/1.1 4") {
        ground.refused.fetch_add(1, Ordering::Relaxed);
    } else {
        eprintln!("unasked: {:?}", String::from_utf8_lossy(&answer[..len]));
        ground.wrong.fetch_add(1, Ordering::Relaxed);
    }
}

fn slow_heads(ground: &Ground<'_>, number: usize, stop: &AtomicBool) -> Result<u64> {
    let first = b"GET /slow HTTP/1.1\r\nHost: a\r\nX: ";
    hold(ground, number, stop, 300, first, Some(b'x'), false)
}

fn slow_bodies(ground: &Ground<'_>, number: usize, stop: &AtomicBool) -> Result<u64> {
    let first = b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n";
    hold(ground, number, stop, 300, first, Some(b'x'), false)
}

fn slow_readers(ground: &Ground<'_>, number: usize, stop: &AtomicBool) -> Result<u64> {
    let first = format!("GET {LONG} HTTP/1.1\r\nHost: a\r\n\r\n");
    let opened = hold(ground, number, stop, 100, first.as_bytes(), None, true)?;
    ground.asked.fetch_add(opened, Ordering::Relaxed);
    Ok(opened)
}

fn idle(ground: &Ground<'_>, number: usize, stop: &AtomicBool) -> Result<u64> {
    hold(ground, number, stop, 2000, b"", None, false)
}

fn churn(ground: &Ground<'_>, number: usize, stop: &AtomicBool) -> Result<u64> {
    let mut done = 0;
    while goes_on(stop) {
        let source = ground.addresses[(number + usize::try_from(done)?) % ground.addresses.len()];
        done += 1;
        let Ok(mut stream) = open(source) else {
            continue;
        };
        // Every other one asks; all leave at once, with a reset.
        if done % 2 == 0 {
            ground.asked.fetch_add(1, Ordering::Relaxed);
            let _ = write!(stream, "GET {FLOOD} HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        let _ = Socket::from(stream).set_linger(Some(Duration::ZERO));
    }
    Ok(done)
}

fn huge_bodies(ground: &Ground<'_>, number: usize, stop: &AtomicBool) -> Result<u64> {
    const ANNOUNCED: &str = "POST /huge HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000\r\n\r\n";
    const ENDLESS: &str = "POST /huge HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [b"4000\r\n".as_slice(), &[b'x'; 0x4000], b"\r\n"].concat();
    let mut done = 0;
    while goes_on(stop) {
        let source = ground.addresses[(number + usize::try_from(done)?) % ground.addresses.len()];
        let Ok(mut connection) = Connection::open(Some(source), TICK) else {
            continue;
        };
        let head = if done % 2 == 0 { ANNOUNCED } else { ENDLESS };
        let mut sent = connection.send(head.as_bytes());
        // Goes on until it is refused, and a while after.
        for _ in 0..64 {
            if sent.is_err() || !goes_on(stop) {
                break;
            }
            sent = connection.send(&chunk);
        }
        judge(ground, &mut connection, "a huge body")?;
        done += 1;
    }
    Ok(done)
}

fn pipelining(ground: &Ground<'_>, number: usize, stop: &AtomicBool) -> Result<u64> {
    const AT_ONCE: usize = 100;
    let many = format!("GET {FLOOD} HTTP/1.1\r\nHost: a\r\n\r\n").repeat(AT_ONCE);
    let mut done = 0;
    while goes_on(stop) {
        let source = ground.addresses[(number + usize::try_from(done)?) % ground.addresses.len()];
        let Ok(mut connection) = Connection::open(Some(source), TICK) else {
            continue;
        };
        ground.asked.fetch_add(AT_ONCE as u64, Ordering::Relaxed);
        if connection.send(many.as_bytes()).is_err() {
            continue;
        }
        // Every other one leaves without having read anything.
        if done % 2 == 0 {
            for _ in 0..AT_ONCE {
                match connection.answer("GET", Instant::now() + PATIENCE)? {
                    Read::Answer(answer) if answer.status == 200 || answer.status == 429 => {}
                    other => {
                        eprintln!("pipelined: {other:?}");
                        ground.wrong.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                }
            }
        }
        done += AT_ONCE as u64;
    }
    Ok(done)
}

fn header_bombs(ground: &Ground<'_>, number: usize, stop: &AtomicBool) -> Result<u64> {
    let bombs = [
        format!(
            "GET /bomb HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "A: b\r\n".repeat(20_000)
        ),
        format!(
            "GET /bomb HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n",
            "b".repeat(1 << 20)
        ),
        format!(
            "GET /bomb{} HTTP/1.1\r\nHost: a\r\n\r\n",
            "b".repeat(1 << 20)
        ),
        format!(
            "GET /bomb HTTP/1.1\r\nHost: a\r\n{}: b\r\n\r\n",
            "A".repeat(1 << 20)
        ),
        format!(
            "GET /bomb HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n",
            "a=b; ".repeat(200_000)
        ),
        "\r\n".repeat(500_000),
    ];
    let mut done = 0;
    while goes_on(stop) {
        let at = number + usize::try_from(done)?;
        let source = ground.addresses[at % ground.addresses.len()];
        let Ok(mut connection) = Connection::open(Some(source), TICK) else {
            continue;
        };
        let _ = connection.send(bombs[at % bombs.len()].as_bytes());
        let _ = connection.finish();
        judge(ground, &mut connection, "a header bomb")?;
        done += 1;
    }
    Ok(done)
}

fn smuggling(ground: &Ground<'_>, number: usize, stop: &AtomicBool) -> Result<u64> {
    let all = requests::all();
    let mut done = 0;
    while goes_on(stop) {
        let at = number + usize::try_from(done)?;
        let sent = &all[at % all.len()];
        let source = ground.addresses[at % ground.addresses.len()];
        let Ok(mut connection) = Connection::open(Some(source), TICK) else {
            continue;
        };
        ground
            .asked
            .fetch_add(sent.admitted.len() as u64, Ordering::Relaxed);
        let _ = connection.send(&sent.bytes);
        let _ = connection.finish();
        if sent.admitted.is_empty() {
            judge(ground, &mut connection, sent.name)?;
        }
        done += 1;
    }
    Ok(done)
}

/// What is no request is answered with a clean 4xx (or 501), or the connection ends.
fn judge(ground: &Ground<'_>, connection: &mut Connection, what: &str) -> Result<()> {
    match connection.answer("POST", Instant::now() + PATIENCE)? {
        Read::Answer(answer) if (400..500).contains(&answer.status) || answer.status == 501 => {
            ground.refused.fetch_add(1, Ordering::Relaxed);
        }
        // A reset overtakes an answer where much is unread.
        Read::Closed | Read::Reset => {}
        other => {
            eprintln!("{what}: {other:?}");
            ground.wrong.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// SYNs from addresses that nobody has, as fast as 5,000 a second.
fn syn_flood(_: &Ground<'_>, number: usize, stop: &AtomicBool) -> Result<u64> {
    let socket = Socket::new(
        Domain::IPV4,
        Type::from(libc::SOCK_RAW),
        Some(Protocol::from(libc::IPPROTO_RAW)),
    )
    .context("no raw socket")?;
    let mut random = u32::try_from(number)? + 0x9e37_79b9;
    let mut sent = 0;
    while goes_on(stop) {
        for _ in 0..50 {
            // xorshift32 (Marsaglia).
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            let [a, b, c, d] = random.to_be_bytes();
            // Some on the guest's own subnet, which are answered to nobody; most from elsewhere.
            let source = if a % 4 == 0 {
                [10, 0, 0, 100 + b % 100]
            } else {
                [198, 18, b, c]
            };
            let port = u16::from_be_bytes([c | 0x80, d]);
            let packet = syn(source, port, random);
            match socket.send_to(&packet, &METADATA.into()) {
                Ok(_) => sent += 1,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => bail!("cannot send a raw packet: {error}"),
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(sent)
}

/// An IPv4 packet with a SYN; the kernel fills in the IP checksum (raw(7)).
fn syn(source: [u8; 4], port: u16, sequence: u32) -> [u8; 40] {
    let SocketAddr::V4(to) = METADATA else {
        unreachable!("an IPv4 address")
    };
    let to = to.ip().octets();
    let mut packet = [0; 40];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&40_u16.to_be_bytes());
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&to);
    let tcp = &mut packet[20..];
    tcp[0..2].copy_from_slice(&port.to_be_bytes());
    tcp[2..4].copy_from_slice(&80_u16.to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = 2;
    tcp[14..16].copy_from_slice(&0xffff_u16.to_be_bytes());
    let mut sum = 6 + 20;
    for pair in source.chunks(2).chain(to.chunks(2)).chain(tcp.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let sum = !u16::try_from(sum).unwrap_or_default();
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}
