//! What can be seen of an agent in a namespace, a cgroup and a bpffs: equal before it started and
//! after it stopped, or it has left something behind.

use std::{collections::BTreeSet, fmt, fs, os::fd::AsRawFd as _, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{netns::Netns, node::Node, process::run, wait::wait_for};

/// One thing seen, as a line: what kind of thing, then the thing.
type Lines = BTreeSet<String>;

/// What was seen at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint(Lines);

impl Footprint {
    /// Looks at a namespace: addresses, routes, queueing disciplines, filters, TCX and `sk_lookup`
    /// programs, listening sockets.
    ///
    /// # Errors
    /// Something could not be asked.
    pub fn of_netns(netns: &Netns) -> Result<Self> {
        let mut seen = Lines::new();
        add(&mut seen, "address", &netns.ip("-oneline address show")?);
        add(&mut seen, "route", &netns.ip("-4 route show table all")?);
        add(&mut seen, "route", &netns.ip("-6 route show table all")?);
        add(&mut seen, "rule", &netns.ip("rule show")?);
        add(
            &mut seen,
            "qdisc",
            &run(netns.command("tc")?.args(["qdisc", "show"]))?,
        );
        add(
            &mut seen,
            "socket",
            &run(netns.command("ss")?.args(["-Hltn"]))?,
        );
        let devices = netns.ip("-oneline link show")?;
        for device in devices.lines().filter_map(device_of) {
            let filters = netns
                .command("tc")
                .map(|mut tc| run(tc.args(["filter", "show", "dev", &device, "ingress"])))?
                // No ingress discipline, no filters.
                .unwrap_or_default();
            add(&mut seen, &format!("filter on {device}"), &filters);
            let programs = netns.run(|| {
                let index = nix::net::if_::if_nametoindex(device.as_str())
                    .with_context(|| format!("{device} has gone"))?;
                programs_attached(Target::Interface(index), BPF_TCX_INGRESS)
            })?;
            add(&mut seen, &format!("tcx on {device}"), &programs);
        }
        let lookups = programs_attached(Target::File(netns.file().as_raw_fd()), BPF_SK_LOOKUP)?;
        add(&mut seen, "sk_lookup", &lookups);
        Ok(Self(seen))
    }

    /// Looks at a node: pins in its bpffs, programs on its cgroup.
    ///
    /// # Errors
    /// Something could not be asked.
    pub fn of_node(node: &Node) -> Result<Self> {
        let mut seen = Lines::new();
        add_pins(&mut seen, &node.bpffs())?;
        let cgroup = fs::File::open(node.cgroup()).context("cannot open the cgroup")?;
        for (name, attach_type) in CGROUP_HOOKS {
            let programs = programs_attached(Target::File(cgroup.as_raw_fd()), *attach_type)?;
            add(&mut seen, name, &programs);
        }
        Ok(Self(seen))
    }

    /// Adds what was seen elsewhere, marked with the name of that place.
    pub fn include(&mut self, place: &str, other: &Self) {
        self.0
            .extend(other.0.iter().map(|line| format!("{place}: {line}")));
    }

    /// What is here and not in `before`.
    #[must_use]
    pub fn beyond<'a>(&'a self, before: &Self) -> Vec<&'a str> {
        self.0
            .iter()
            .filter(|line| !before.0.contains(*line))
            .map(String::as_str)
            .collect()
    }

    /// Waits until `look` sees what it saw `before`; the kernel frees some things a moment late.
    ///
    /// # Errors
    /// Something is left, or missing, at the deadline: the message has it.
    pub fn wait_for_return(
        before: &Self,
        deadline: std::time::Duration,
        mut look: impl FnMut() -> Result<Self>,
    ) -> Result<()> {
        let mut last = None;
        let waited = wait_for("what was there before", deadline, || {
            let now = look()?;
            let same = now == *before;
            last = Some(now);
            Ok(same.then_some(()))
        });
        match (waited, last) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(now)) => {
                bail!(
                    "left behind: {:?}; missing: {:?}",
                    now.beyond(before),
                    before.beyond(&now)
                )
            }
            (Err(error), None) => Err(error),
        }
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

fn add(seen: &mut Lines, kind: &str, text: &str) {
    seen.extend(
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(|line| {
                format!(
                    "{kind}: {}",
                    line.split_whitespace().collect::<Vec<_>>().join(" ")
                )
            }),
    );
}

fn add_pins(seen: &mut Lines, directory: &Path) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry.context("cannot list pins")?.path();
        if path.is_dir() {
            add_pins(seen, &path)?;
        }
        seen.insert(format!("pin: {}", path.display()));
    }
    Ok(())
}

/// The device in a line of `ip -oneline link`: `7: qr-1@if2: <BROADCAST...`.
fn device_of(line: &str) -> Option<String> {
    let name = line.split(": ").nth(1)?;
    Some(name.split('@').next()?.to_owned())
}

// From linux/bpf.h, `enum bpf_cmd` and `enum bpf_attach_type`.
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_SK_LOOKUP: u32 = 36;
const BPF_TCX_INGRESS: u32 = 46;
const CGROUP_HOOKS: &[(&str, u32)] = &[
    ("connect4", 10),
    ("connect6", 11),
    ("getpeername4", 29),
    ("getpeername6", 30),
];

/// What programs may be attached to.
#[derive(Clone, Copy)]
enum Target {
    /// An interface of the namespace of the calling thread, by index.
    Interface(u32),
    /// A cgroup or a network namespace, by descriptor.
    File(i32),
}

/// `struct { ... } query` of `union bpf_attr`.
#[derive(Default)]
#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    program_ids: u64,
    program_count: u32,
    padding: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Ids of the programs attached, one a line; none where the kernel does not know the kind.
fn programs_attached(target: Target, attach_type: u32) -> Result<String> {
    const ROOM: u32 = 64;
    let mut ids = [0_u32; ROOM as usize];
    let target = match target {
        Target::Interface(index) => index,
        Target::File(descriptor) => descriptor.cast_unsigned(),
    };
    let mut query = Query {
        target,
        attach_type,
        program_ids: ids.as_mut_ptr() as u64,
        program_count: ROOM,
        ..Query::default()
    };
    // SAFETY: `query` lives through the call and is as long as said; its pointer leads to `ids`,
    // which has as much room as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    if result == 0 {
        let count = query.program_count.min(ROOM) as usize;
        let lines: Vec<_> = ids[..count]
            .iter()
            .map(|id| {
                format!(
                    "program {id}
"
                )
            })
            .collect();
        return Ok(lines.concat());
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOENT) => Ok(String::new()),
        _ => Err(error).context("cannot ask which BPF programs are attached"),
    }
}
