//! `cargo xtask vm-guest`: real guests, with cloud-init, get their metadata from the agent.
//!
//! Each is plugged in as a node of OpenStack does it: a tap in a bridge, behind it the tenant's
//! namespaces. What a guest says over its console decides. No guest has a way out of its bridge.

mod agent;
pub(super) mod background;
mod console;
mod image;
mod namespace;
mod plant;
mod sandbox;
mod scenario;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use self::agent::Agent;
use self::console::Seen;
use self::image::Image;
use self::plant::Plant;
use self::scenario::{Guest, Scenario};
use self::tools::Tools;
use super::cache::Cache;
use super::qemu::{self, Accel, Machine, Qemu};
use crate::build::{self, BuildArgs};
use crate::setup::{self, Purpose};

const MEMORY_MIB: u32 = 640;

/// Boots real guests that get their metadata from the agent.
#[derive(clap::Args, Debug)]
pub(crate) struct VmGuestArgs {
    /// The agent's executable [default: built in release mode]
    #[arg(long, value_name = "PROGRAM")]
    agent: Option<PathBuf>,
    /// `routers`, `isolated` or `ipv6-only`; may be repeated [default: all]
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
    /// Seconds until cloud-init must have finished in a guest
    #[arg(long, value_name = "SECONDS", default_value_t = 400)]
    timeout: u64,
    /// How the guests' processors are had
    #[arg(long, value_enum, default_value_t)]
    accel: Accel,
    /// Shows all that the guests print
    #[arg(long)]
    verbose: bool,
}

/// Runs the scenarios one after the other, and fails when a guest was not told what it should be.
pub(crate) fn run(args: &VmGuestArgs) -> anyhow::Result<()> {
    let begun = Instant::now();
    let scenarios = chosen(&args.scenarios)?;
    setup::ensure(Purpose::Test)?;
    setup::ensure(Purpose::Vm)?;
    qemu::ensure_usable(args.accel)?;
    let cache = Cache::claim()?;
    let agent = match &args.agent {
        Some(agent) => agent.clone(),
        None => build::build(BuildArgs::default())?.agent,
    };
    let tools = Tools::fetch(cache.root())?;
    let bench = Bench {
        args,
        agent,
        qemu: Qemu::fetch(cache.root())?,
        image: Image::ensure(&cache, &tools)?,
        tools,
        logs: cache.logs(),
        scratch: sandbox::enter()?,
    };
    fs::create_dir_all(&bench.logs).context("creating the folder of logs")?;
    eprintln!(
        "{}; ready after {:.1} s",
        bench.qemu.version()?,
        begun.elapsed().as_secs_f64()
    );
    let mut failed = Vec::new();
    for scenario in scenarios {
        failed.extend(bench.scenario(scenario)?);
    }
    println!("guests took {:.1} s", begun.elapsed().as_secs_f64());
    ensure!(failed.is_empty(), "failed guests: {}", failed.join(", "));
    Ok(())
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(scenario::ALL.iter().collect());
    }
    names
        .iter()
        .map(|name| {
            let found = scenario::ALL.iter().find(|scenario| scenario.name == name);
            found.with_context(|| {
                let known: Vec<_> = scenario::ALL.iter().map(|scenario| scenario.name).collect();
                format!(
                    "there is no scenario {name}; known are {}",
                    known.join(", ")
                )
            })
        })
        .collect()
}

/// What all scenarios share.
struct Bench<'a> {
    args: &'a VmGuestArgs,
    agent: PathBuf,
    qemu: Qemu,
    image: Image,
    tools: Tools,
    logs: PathBuf,
    scratch: PathBuf,
}

impl Bench<'_> {
    /// Boots the guests of one scenario together; gives the names of those that failed.
    fn scenario(&self, scenario: &Scenario) -> anyhow::Result<Vec<&'static str>> {
        let scratch =
            tempfile::tempdir_in(&self.scratch).context("creating a folder for a scenario")?;
        let namespaces = scratch.path().join("netns");
        fs::create_dir(&namespaces).context("creating a folder for namespaces")?;
        let agent_log = self.logs.join(format!("guest-{}-agent.log", scenario.name));
        let agent = Agent::start(
            &self.agent,
            scenario.guests,
            &namespaces,
            scratch.path(),
            &agent_log,
        )?;
        let plants = scenario
            .guests
            .iter()
            .map(|guest| Plant::build(guest, &namespaces, scratch.path(), &self.tools))
            .collect::<anyhow::Result<Vec<_>>>()?;

        let results = thread::scope(|scope| {
            let running: Vec<_> = scenario
                .guests
                .iter()
                .zip(&plants)
                .map(|(guest, plant)| scope.spawn(|| self.guest(guest, plant, scratch.path())))
                .collect();
            let joined = running.into_iter().map(|guest| match guest.join() {
                Ok(result) => result,
                Err(_) => bail!("a guest's thread panicked"),
            });
            joined.collect::<anyhow::Result<Vec<_>>>()
        })?;
        // The agent goes first, so that it finds what it has to undo.
        drop(agent);
        drop(plants);

        let mut failed = Vec::new();
        for (guest, complaints) in scenario.guests.iter().zip(results) {
            if complaints.is_empty() {
                continue;
            }
            let told = fs::read_to_string(&agent_log).unwrap_or_default();
            eprintln!(
                "---- the agent's log ({}) ----\n{told}----",
                agent_log.display()
            );
            for complaint in complaints {
                eprintln!("[{}] {complaint}", guest.name);
            }
            failed.push(guest.name);
        }
        Ok(failed)
    }

    /// Boots one guest, and tells what was wrong.
    fn guest(&self, guest: &Guest, plant: &Plant, scratch: &Path) -> anyhow::Result<Vec<String>> {
        let log = self.logs.join(format!("guest-{}.log", guest.name));
        let machine = Machine {
            accel: self.args.accel,
            memory_mib: MEMORY_MIB,
            kernel: self.image.kernel.clone(),
            initrd: self.image.initrd.clone(),
            command_line: "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet"
                .to_owned(),
            namespace: Some(plant.segment().to_path_buf()),
            devices: self.devices(guest),
        };
        let running = self.qemu.boot(&machine, &log)?;
        let seen = Seen::follow(&running, Duration::from_secs(self.args.timeout), |line| {
            if self.args.verbose || line.contains("VMGUEST ") || line.contains("finished at") {
                eprintln!("[{}] {line}", guest.name);
            }
        });
        drop(running);
        let mut expected = guest.expected();
        expected.push(("user-data", agent::user_data_sum(scratch, guest)?));
        let complaints = seen.complaints(&expected);
        let verdict = if complaints.is_empty() {
            "ok"
        } else {
            "FAILED"
        };
        println!(
            "VMGUEST {} {verdict} {:.1}",
            guest.name,
            seen.took.as_secs_f64()
        );
        if !complaints.is_empty() && !self.args.verbose {
            let console = fs::read_to_string(&log).unwrap_or_else(|error| error.to_string());
            eprintln!(
                "---- console of {} ({}) ----\n{console}----",
                guest.name,
                log.display()
            );
        }
        Ok(complaints)
    }

    /// A disk that forgets, a network card with all offloads, and nova's mark in the firmware.
    fn devices(&self, guest: &Guest) -> Vec<String> {
        [
            "-drive",
            &format!(
                "file={},format=raw,if=virtio,snapshot=on",
                self.image.disk.display()
            ),
            "-netdev",
            &format!(
                "tap,id=net0,ifname={},script=no,downscript=no,vnet_hdr=on",
                plant::TAP
            ),
            "-device",
            &format!("virtio-net-pci,netdev=net0,mac={},romfile=", guest.mac),
            "-smbios",
            &format!(
                "type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova,uuid={}",
                guest.instance
            ),
        ]
        .map(ToString::to_string)
        .to_vec()
    }
}
