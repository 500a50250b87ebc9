//! What steering costs those who do not want metadata.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use metadata_proxy::kernel::{EbpfKernel, KernelOptions};
use metadata_proxy_tests::{
    Kind, NeutronProxy, Node, TenantFixture, neutron, process::run as run_program, wait_for,
};

use super::{Lab, Row};
use crate::{
    Arguments,
    proxies::{Ours, Via},
    report::{Bar, Line, Report, Samples},
};

/// Runs of the program on one frame.
const RUNS: u32 = 1_000_000;
const SERVED_WITHIN: Duration = Duration::from_secs(20);

const fn repeats(arguments: &Arguments) -> usize {
    if arguments.quick {
        3
    } else {
        arguments.repeats
    }
}

/// Turns of iperf3 for each repeat of the others: many short ones, since one differs from the next by
/// many times what is to be seen.
const TURNS: usize = 5;
/// How long each is.
const TURN_SECONDS: u64 = 1;

const fn turns(arguments: &Arguments) -> usize {
    if arguments.quick {
        3
    } else {
        TURNS * arguments.repeats
    }
}

pub(super) fn seconds(arguments: &Arguments) -> u64 {
    let repeats = repeats(arguments) as u64;
    6 + repeats + 3 * turns(arguments) as u64 * (1 + TURN_SECONDS)
}

pub(super) fn run(lab: &Lab<'_>, report: &mut Report) -> Result<()> {
    lab.progress.step("steer on frames that are not for it", 3);
    for (name, samples) in ["IPv4", "IPv6"].into_iter().zip(per_packet(lab)?) {
        report.push(Line {
            row: Row::Kernel,
            name: format!("steer, {name} packet that is not metadata"),
            unit: "ns",
            ours: samples,
            peer: None,
            bar: Some(Bar::AtMost(40.0)),
        });
    }
    throughput(lab, report)
}

/// Time of one run of the program, over IPv4 and IPv6.
fn per_packet(lab: &Lab<'_>) -> Result<[Samples; 2]> {
    let namespace = metadata_proxy_tests::Netns::hidden(&lab.pooled_unix, "frames")?;
    let directory = lab.pooled_unix.bpffs().join("frames");
    namespace.run(|| {
        let kernel = EbpfKernel::load(KernelOptions {
            bpffs_dir: directory,
            listener_port: 9697,
            listener_v4_only: false,
            max_tenants: 16,
            rcu_expedited: false,
            debug_log: false,
        })
        .map_err(|error| anyhow!("{error}"))?;
        let mut samples = [Samples::default(), Samples::default()];
        for _ in 0..repeats(lab.arguments) {
            for (samples, frame) in samples.iter_mut().zip([frame_v4(), frame_v6()]) {
                let run = kernel
                    .run_steer(&frame, RUNS)
                    .map_err(|error| anyhow!("{error}"))?;
                samples.push(run.per_run.as_secs_f64() * 1e9);
            }
        }
        kernel.remove_pins();
        Ok(samples)
    })
}

/// A TCP segment from a guest to somebody on the internet.
fn frame_v4() -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend([10, 0, 0, 5, 192, 0, 2, 1]);
    frame.extend(segment());
    frame
}

fn frame_v6() -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
    let address = |last| {
        let mut address = [0_u8; 16];
        address[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        address[15] = last;
        address
    };
    frame.extend(address(5));
    frame.extend(address(1));
    frame.extend(segment());
    frame
}

fn segment() -> [u8; 20] {
    let mut segment = [0; 20];
    segment[..4].copy_from_slice(&[0x9c, 0x40, 0x01, 0xbb]);
    segment[12] = 5 << 4;
    segment[13] = 0x10;
    segment
}

/// Two guests of a router, on two subnets.
fn router(node: &Node) -> Result<TenantFixture> {
    let mut tenant = TenantFixture::new(node, Kind::Router)?;
    tenant.plug(1)?;
    Ok(tenant)
}

/// What goes through a router: plain, with ours, with Neutron's rules.
fn throughput(lab: &Lab<'_>, report: &mut Report) -> Result<()> {
    lab.progress.step("making three routers", 3);
    let plain = router(&lab.pooled_unix)?;
    let steered = router(&lab.ours)?;
    let ruled = router(&lab.theirs)?;
    neutron::install_rules(&ruled.netns, NeutronProxy::Enabled)?;
    let ours = Ours::start(lab, &lab.ours, Via::AgentSocket)?;
    ours.wait_serving(1, SERVED_WITHIN)?;
    let routers = [&plain, &steered, &ruled];
    let servers: Vec<_> = routers
        .iter()
        .map(|router| router.subnets[1].guests[0].start("iperf3", &["--server"]))
        .collect::<Result<_>>()?;
    for router in routers {
        // Refused until its server listens.
        wait_for("iperf3's server", SERVED_WITHIN, || Ok(iperf(router).ok()))?;
    }
    let mut samples = [Samples::default(), Samples::default(), Samples::default()];
    let mut loss = [Samples::default(), Samples::default()];
    let turns = turns(lab.arguments);
    for turn in 1..=turns {
        let mut once = [0.0; 3];
        // None of them always goes first.
        for at in (turn..turn + routers.len()).map(|at| at % routers.len()) {
            lab.progress.step(
                &format!("iperf3 through a router {turn}/{turns}"),
                TURN_SECONDS + 1,
            );
            once[at] = iperf(routers[at])?;
            samples[at].push(once[at] / 1e9);
        }
        for (loss, with) in loss.iter_mut().zip(&once[1..]) {
            loss.push((1.0 - with / once[0]) * 100.0);
        }
    }
    drop(servers);
    let [plain, steered, ruled] = samples;
    let [loss_steered, loss_ruled] = loss;
    let mut line = |name: &str, unit, ours, peer, bar| {
        report.push(Line {
            row: Row::Kernel,
            name: name.to_owned(),
            unit,
            ours,
            peer,
            bar,
        });
    };
    line("through a router, neither", "Gbit/s", plain, None, None);
    line(
        "through a router, steer or Neutron's rules",
        "Gbit/s",
        steered,
        Some(ruled),
        None,
    );
    let name = "throughput lost by steer, or by Neutron's rules";
    line(
        name,
        "%",
        loss_steered,
        Some(loss_ruled),
        Some(Bar::AtMost(1.0)),
    );
    Ok(())
}

/// Bits a second from one guest to the other.
fn iperf(router: &TenantFixture) -> Result<f64> {
    let server = router.subnets[1].guests[0].v4.to_string();
    let seconds = TURN_SECONDS.to_string();
    let mut client = router.guest().netns.command("iperf3")?;
    client.args(["--json", "--time", &seconds, "--client", &server]);
    // Each end stays on a core of its own: otherwise a turn differs from the next by twice as much.
    client.args(["--affinity", "0,1"]);
    let text = run_program(&mut client)?;
    let result: serde_json::Value = serde_json::from_str(&text).context("iperf3 gave no JSON")?;
    result["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .with_context(|| format!("iperf3 gave no rate: {}", result["error"]))
}
