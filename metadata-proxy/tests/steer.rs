//! `steer` on crafted frames, by `BPF_PROG_TEST_RUN`: every outcome, and nothing else ever touched.
//!
//! A test run is not at TC ingress, so the kernel refuses every assignment there
//! (`skb_at_tc_ingress`, net/core/filter.c): a frame that would be steered ends as
//! [`WOULD_STEER`]. That steering works is tested with real connections elsewhere.
//!
//! Needs root. Runs in a network namespace of its own, with a bpffs directory of its own.

#![expect(clippy::unwrap_used, reason = "what fails in a test is to panic there")]

use std::{fs, net::TcpListener, path::PathBuf, thread, time::Duration};

use metadata_proxy::{
    kernel::{EbpfKernel, Kernel as _, KernelOptions, Repair},
    listener,
};
use metadata_proxy_common::{METADATA_V4, METADATA_V6, Outcome, names};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;

/// `TC_ACT_UNSPEC`: untouched.
const PASSED: i32 = -1;
/// How a frame ends that goes to a socket, in a test run.
const WOULD_STEER: Option<Outcome> = Some(Outcome::PassedAssignRefused);

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FIN: u8 = 0x01;
const PORT: u16 = 9697;

/// The kernel programs in a namespace of their own; everything is gone after the drop.
struct Bench {
    kernel: EbpfKernel,
    dir: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        let up = std::process::Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.expect("iproute2 is needed").success());
        let dir = PathBuf::from(format!(
            "/sys/fs/bpf/mdp-test-{name}-{}",
            std::process::id()
        ));
        let kernel = EbpfKernel::load(KernelOptions {
            bpffs_dir: dir.clone(),
            listener_port: PORT,
            listener_v4_only: false,
            max_tenants: 16,
            rcu_expedited: false,
            debug_log: false,
        })
        .unwrap_or_else(|error| panic!("{error}"));
        Self { kernel, dir }
    }

    fn count(&self, outcome: Outcome) -> u64 {
        let outcomes = self.kernel.outcomes().unwrap();
        outcomes.iter().find(|(of, _)| *of == outcome).unwrap().1
    }

    /// Runs a frame; asserts that it is not changed, and which outcome is counted, if one is.
    fn run(&self, frame: &[u8], expected: Option<Outcome>) {
        let before = self.kernel.outcomes().unwrap();
        let run = self.kernel.run_steer(frame, 1).unwrap();
        assert_eq!(run.frame, frame, "the frame was changed");
        let after = self.kernel.outcomes().unwrap();
        let counted: Vec<_> = before
            .iter()
            .zip(&after)
            .filter(|((_, before), (_, after))| before != after)
            .map(|(_, (outcome, _))| *outcome)
            .collect();
        assert_eq!(counted, expected.into_iter().collect::<Vec<_>>());
        assert_eq!(run.verdict, PASSED);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.kernel.remove_pins();
        assert!(
            !self.dir.exists(),
            "pins are left in {}",
            self.dir.display()
        );
    }
}

/// Runs on a thread of its own, since the namespace belongs to the thread.
fn in_own_namespace(name: &'static str, test: impl FnOnce(&Bench) + Send + 'static) {
    let thread = thread::spawn(move || test(&Bench::new(name)));
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn tcp(destination: u16, flags: u8) -> Vec<u8> {
    let mut tcp = vec![0_u8; 20];
    tcp[0..2].copy_from_slice(&40_000_u16.to_be_bytes());
    tcp[2..4].copy_from_slice(&destination.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = flags;
    tcp
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2_u8; 12];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn ipv4(destination: [u8; 4], options: &[u8], fragment: u16, payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let mut ip = vec![0_u8; 20];
    ip[0] = 0x40 | u8::try_from(header_len / 4).unwrap();
    ip[2..4].copy_from_slice(
        &u16::try_from(header_len + payload.len())
            .unwrap()
            .to_be_bytes(),
    );
    ip[6..8].copy_from_slice(&fragment.to_be_bytes());
    ip[8] = 64;
    ip[9] = 6;
    ip[12..16].copy_from_slice(&[10, 0, 0, 5]);
    ip[16..20].copy_from_slice(&destination);
    ip.extend(options);
    ip.extend(payload);
    ethernet(0x0800, &ip)
}

fn ipv6(destination: [u8; 16], next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0_u8; 40];
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    ip[6] = next_header;
    ip[7] = 64;
    ip[8..10].copy_from_slice(&[0xfe, 0x80]);
    ip[23] = 5;
    ip[24..40].copy_from_slice(&destination);
    ip.extend(payload);
    ethernet(0x86dd, &ip)
}

fn syn_v4() -> Vec<u8> {
    ipv4(METADATA_V4, &[], 0, &tcp(80, SYN))
}

fn syn_v6() -> Vec<u8> {
    ipv6(METADATA_V6, 6, &tcp(80, SYN))
}

fn tagged(mut frame: Vec<u8>, tags: &[u16]) -> Vec<u8> {
    for tag in tags {
        frame.splice(12..12, [tag.to_be_bytes(), [0, 7]].concat());
    }
    frame
}

#[test]
fn a_syn_goes_to_the_listener_over_both_families() {
    in_own_namespace("syn", |bench| {
        let _listener = listener::bind(PORT).unwrap();
        bench.run(&syn_v4(), WOULD_STEER);
        bench.run(&syn_v6(), WOULD_STEER);
        bench.run(&ipv4(METADATA_V4, &[1; 20], 0, &tcp(80, SYN)), WOULD_STEER);
        bench.run(&tagged(syn_v4(), &[0x8100]), WOULD_STEER);
        bench.run(&tagged(syn_v6(), &[0x8100, 0x88a8]), WOULD_STEER);
        let mut extended = vec![6, 0, 1, 4, 0, 0, 0, 0];
        extended.extend(tcp(80, SYN));
        bench.run(&ipv6(METADATA_V6, 60, &extended), WOULD_STEER);
        assert_eq!(bench.count(Outcome::PassedAssignRefused), 6);
    });
}

#[test]
fn without_a_listener_everything_passes() {
    in_own_namespace("none", |bench| {
        bench.run(&syn_v4(), Some(Outcome::PassedNoListener));
        bench.run(&syn_v6(), Some(Outcome::PassedNoListener));
        // An IPv4-only listener is another program's, as haproxy's while a node is migrated.
        let _other = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
        bench.run(&syn_v4(), Some(Outcome::PassedNoListener));
    });
}

#[test]
fn what_neither_belongs_to_a_connection_nor_opens_one_passes() {
    in_own_namespace("stray", |bench| {
        let _listener = listener::bind(PORT).unwrap();
        for flags in [ACK, ACK | FIN, SYN | ACK, SYN | FIN, 0, 0xff] {
            bench.run(
                &ipv4(METADATA_V4, &[], 0, &tcp(80, flags)),
                Some(Outcome::PassedStray),
            );
        }
    });
}

#[test]
fn fragments_and_contradictions_are_left_alone() {
    in_own_namespace("odd", |bench| {
        let _listener = listener::bind(PORT).unwrap();
        let segment = tcp(80, SYN);
        for fragment in [0x2000, 0x0001, 0x3fff] {
            let frame = ipv4(METADATA_V4, &[], fragment, &segment);
            bench.run(&frame, Some(Outcome::PassedFragment));
        }
        let mut fragment = vec![6, 0, 0, 1, 0, 0, 0, 9];
        fragment.extend(&segment);
        bench.run(
            &ipv6(METADATA_V6, 44, &fragment),
            Some(Outcome::PassedFragment),
        );
        for (at, byte) in [(14, 0x44), (14, 0x65), (16, 0), (46, 0x10), (46, 0xf0)] {
            let mut frame = syn_v4();
            frame[at] = byte;
            if at == 16 {
                frame[17] = 30;
            }
            bench.run(&frame, Some(Outcome::PassedMalformed));
        }
        bench.run(&syn_v4()[..40], Some(Outcome::PassedMalformed));
        bench.run(
            &ipv6(METADATA_V6, 60, &[6, 200]),
            Some(Outcome::PassedMalformed),
        );
    });
}

#[test]
fn other_traffic_is_not_even_counted() {
    in_own_namespace("other", |bench| {
        let _listener = listener::bind(PORT).unwrap();
        bench.run(&ipv4(METADATA_V4, &[], 0, &tcp(443, SYN)), None);
        bench.run(&ipv4([169, 254, 169, 253], &[], 0, &tcp(80, SYN)), None);
        bench.run(&ipv6([1; 16], 6, &tcp(80, SYN)), None);
        let mut udp = syn_v4();
        udp[14 + 9] = 17;
        bench.run(&udp, None);
        bench.run(&ethernet(0x0806, &[0; 28]), None);
    });
}

#[test]
fn an_open_connection_keeps_its_socket() {
    in_own_namespace("open", |bench| {
        // A listener on the metadata address itself, whose connection steer must find.
        let ip = |args: &[&str]| {
            assert!(
                std::process::Command::new("ip")
                    .args(args)
                    .status()
                    .unwrap()
                    .success()
            );
        };
        ip(&["addr", "add", "169.254.169.254/32", "dev", "lo"]);
        ip(&["addr", "add", "10.0.0.5/32", "dev", "lo"]);
        let listener = listener::bind_at("169.254.169.254:80".parse().unwrap()).unwrap();
        let guest =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let address = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
        guest.bind(&address("10.0.0.5:40000")).unwrap();
        guest.connect(&address("169.254.169.254:80")).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (_stream, _) = listener.accept().unwrap();
        for flags in [ACK, ACK | FIN, SYN, 0x04] {
            let frame = ipv4(METADATA_V4, &[], 0, &tcp(80, flags));
            bench.run(&frame, WOULD_STEER);
        }
    });
}

#[test]
fn random_frames_are_never_changed_and_only_metadata_is_counted() {
    in_own_namespace("random", |bench| {
        let _listener = listener::bind(PORT).unwrap();
        let frames = prop_oneof![
            prop::collection::vec(any::<u8>(), 14..200),
            // Nearly right frames reach deeper.
            (
                any::<bool>(),
                any::<prop::sample::Index>(),
                any::<u8>(),
                14_usize..80
            )
                .prop_map(|(v4, at, byte, len)| {
                    let mut frame = if v4 { syn_v4() } else { syn_v6() };
                    let at = at.index(frame.len());
                    frame[at] = byte;
                    frame.truncate(len);
                    frame
                }),
        ];
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 4000,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        runner
            .run(&frames, |frame| {
                let before: u64 = bench
                    .kernel
                    .outcomes()
                    .unwrap()
                    .iter()
                    .map(|(_, n)| n)
                    .sum();
                // The kernel runs nothing on a frame that ends inside its IP header.
                let Ok(run) = bench.kernel.run_steer(&frame, 1) else {
                    return Ok(());
                };
                let after: u64 = bench
                    .kernel
                    .outcomes()
                    .unwrap()
                    .iter()
                    .map(|(_, n)| n)
                    .sum();
                prop_assert_eq!(&run.frame, &frame);
                let names_metadata = frame.windows(4).any(|four| four == METADATA_V4)
                    || frame.windows(16).any(|sixteen| sixteen == METADATA_V6);
                prop_assert!(after - before <= u64::from(names_metadata));
                prop_assert_eq!(run.verdict, PASSED);
                Ok(())
            })
            .unwrap();
    });
}

#[test]
fn the_verifier_s_figures_are_known() {
    in_own_namespace("sizes", |bench| {
        let sizes = bench.kernel.program_sizes();
        let steer = sizes.iter().find(|size| size.name == "steer").unwrap();
        println!("{sizes:?}");
        assert!(steer.verified_instructions.unwrap() > 100);
    });
}

/// A directory that has not changed is not looked through again.
#[test]
fn a_pin_that_goes_is_missed_however_long_the_directory_was_the_same() {
    in_own_namespace("pins", |bench| {
        let mend = || bench.kernel.mend().unwrap();
        for name in [names::TENANTS, names::OUTCOMES] {
            thread::sleep(Duration::from_millis(1100));
            assert_eq!((mend(), mend()), (vec![], vec![]));
            fs::remove_file(bench.dir.join(name)).unwrap();
            assert_eq!((mend(), mend()), (vec![Repair::Map], vec![]));
        }
    });
}
