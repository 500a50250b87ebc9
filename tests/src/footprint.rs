//! What can be seen of an agent in a namespace, a cgroup and a bpffs: equal before it started and
//! after it stopped, or it has left something behind.

use std::{collections::BTreeSet, fmt, fs, os::fd::AsRawFd as _, path::Path, process::Command};

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
        let mut seen = netns.run(look_inside)?;
        let lookups = programs_attached(Target::File(netns.file().as_raw_fd()), BPF_SK_LOOKUP)?;
        add(&mut seen, "sk_lookup", &lookups);
        Ok(Self(seen))
    }

    /// Looks at what gets to see the frames that one device of a namespace receives: filters and TCX
    /// programs.
    ///
    /// # Errors
    /// Something could not be asked.
    pub fn of_ingress(netns: &Netns, device: &str) -> Result<Self> {
        netns.run(|| {
            let mut seen = Lines::new();
            let index = nix::net::if_::if_nametoindex(device)
                .with_context(|| format!("{device} has gone"))?;
            add_tcx(&mut seen, device, index)?;
            add_filters(&mut seen, device);
            Ok(Self(seen))
        })
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

/// What there is in the namespace of the calling thread. Every program that is run costs a guest
/// without KVM a tenth of a second, so no more are than it takes.
fn look_inside() -> Result<Lines> {
    let mut seen = Lines::new();
    let mut ask = |kind: &str, program: &str, arguments: &str| {
        let text = run(Command::new(program).args(arguments.split_whitespace()))?;
        add(&mut seen, kind, &text);
        anyhow::Ok(text)
    };
    ask("address", "ip", "-oneline address show")?;
    ask("route", "ip", "-4 route show table all")?;
    ask("route", "ip", "-6 route show table all")?;
    ask("rule", "ip", "rule show")?;
    ask("socket", "ss", "-Hltn")?;
    let disciplines = ask("qdisc", "tc", "qdisc show")?;
    let devices = nix::net::if_::if_nameindex().context("cannot list devices")?;
    for device in &devices {
        let name = device.name().to_string_lossy();
        add_tcx(&mut seen, &name, device.index())?;
        let on_device = format!(" dev {name} ");
        let takes_filters = |line: &str| {
            line.contains(&on_device) && (line.contains(" clsact ") || line.contains(" ingress "))
        };
        if disciplines.lines().any(takes_filters) {
            add_filters(&mut seen, &name);
        }
    }
    Ok(seen)
}

fn add_tcx(seen: &mut Lines, device: &str, index: u32) -> Result<()> {
    let programs = programs_attached(Target::Interface(index), BPF_TCX_INGRESS)?;
    add(seen, &format!("tcx on {device}"), &programs);
    Ok(())
}

fn add_filters(seen: &mut Lines, device: &str) {
    let mut tc = Command::new("tc");
    // No ingress discipline, no filters.
    let filters = run(tc.args(["filter", "show", "dev", device, "ingress"])).unwrap_or_default();
    add(seen, &format!("filter on {device}"), &filters);
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
