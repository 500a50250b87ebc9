//! Writes `docs/benchmarks.md` from the results of a full run.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    machine,
    plots::{self, Series},
    report::{Line, Report, number, with_spread},
    stages::Row,
};

const ROWS: [Row; 11] = [
    Row::Memory,
    Row::Start,
    Row::NewTenant,
    Row::Cpu,
    Row::Throughput,
    Row::Latency,
    Row::CrossCheck,
    Row::Limit,
    Row::Kernel,
    Row::Idle,
    Row::Scale,
];

const HOW: &str = "\
Both proxies run at the same time, each in namespaces made alike: routers whose devices, addresses \
and MAC addresses are the same in all of them, with a guest behind a veth pair. haproxy is Debian's, \
one process for each tenant, with the configuration and the iptables rules of Neutron's L3 agent. \
Ours is one process with its default configuration, in namespaces with the rules that Neutron leaves \
when its own proxy is switched off. It is built as it is installed, laid out by a profile of an agent \
at work that was asked in the same ways, among others (`cargo xtask pgo`); haproxy is as Debian builds \
it. They are measured in turn, again and again; a number is the \
median of the repeats, ± half of their range. CPU time is the kernel's account of a proxy's cgroup, \
its part of the network stack included. Memory is PSS.\n\n\
Both write a line for each request: haproxy to a datagram socket in place of `/dev/log`, ours to a \
stream as journald gives a service; both are read away by the benchmark.\n\n\
The upstream answers at once with a kilobyte. haproxy always asks it as Neutron configures it, over \
the agent's unix socket with a connection for each request. Ours is measured doing the same (*agent \
socket*), and with an upstream whose connections are kept, over a unix socket too (*pooled unix \
socket*) and over TCP (*pooled TCP*), which Neutron's configuration of haproxy does not know: there \
the bars, the same for both, compare ours with haproxy on the agent's socket.\n\n\
The load generator is one thread that enters the guests' namespaces; 32 connections at once, shared \
out among the busy tenants. It checks of every answer that it was given to the tenant that asked. \
Load generator, upstream and proxy share the cores of the machine. *A connection each* means that \
the guest asks the server to close. Latency at half rate is at a fixed rate, half of what haproxy \
reached, counted from when a request was due.\n\n\
The distance to the limit has two measures: the guest straight to an upstream in its own namespace, \
and what the kernel alone spends on a request in our name, nearly all of it on TCP: the handshake's \
end, a request, an answer, a farewell. A proxy that makes the same system calls and whose own code \
took no time would still spend that: where its ratio to haproxy's whole is above a bar of the CPU per \
request, that bar is out of reach this way.\n";

/// Writes the document and its plots into a folder.
pub(crate) fn write(folder: &Path, report: &Report, took: Duration) -> Result<()> {
    let drawings = folder.join("benchmarks");
    fs::create_dir_all(&drawings)
        .with_context(|| format!("cannot create {}", drawings.display()))?;
    let mut text = String::from("# Benchmarks\n\n");
    let minutes = took.as_secs().div_ceil(60);
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "Written by `cargo xtask bench`, which takes about {minutes} minutes as root on a machine \
         that does nothing else.\n\n{} of {} bars hold.\n\n## How\n\n{HOW}\n| | |\n|---|---|",
        report.held(),
        report.barred()
    );
    for (what, value) in machine::description() {
        let _ = writeln!(text, "| {what} | {value} |");
    }
    for row in ROWS {
        let lines: Vec<_> = report.lines.iter().filter(|line| line.row == row).collect();
        if !lines.is_empty() {
            let _ = writeln!(text, "\n## {}\n", capitalised(row.title()));
            for (name, alternative) in draw(&drawings, row, &lines)? {
                let _ = writeln!(text, "![{alternative}](benchmarks/{name})\n");
            }
            write_table(&mut text, &lines);
        }
    }
    link_flame_graphs(&mut text, &drawings)?;
    let path = folder.join("benchmarks.md");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Links what `--only profile` has drawn, now or earlier.
fn link_flame_graphs(text: &mut String, drawings: &Path) -> Result<()> {
    let entries = fs::read_dir(drawings)
        .with_context(|| format!("cannot list {}", drawings.display()))?
        .filter_map(Result::ok);
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| {
            let title = name.strip_prefix("flame-")?.strip_suffix(".svg")?;
            Some((title.replace('-', " "), name))
        })
        .collect();
    names.sort_unstable();
    if !names.is_empty() {
        text.push_str("\n## Where the time goes\n\nFlame graphs of one busy tenant, drawn by `cargo xtask bench --only profile`:\n\n");
    }
    for (title, name) in names {
        let _ = writeln!(text, "- [{title}](benchmarks/{name})");
    }
    Ok(())
}

fn write_table(text: &mut String, lines: &[&Line]) {
    text.push_str(
        "| | unit | ours | haproxy | ratio | bar | |\n|---|---|---:|---:|---:|---:|---|\n",
    );
    for line in lines {
        let verdict = match line.holds() {
            Some(true) => "holds",
            Some(false) => "**fails**",
            None => "",
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {verdict} |",
            line.name,
            line.unit,
            with_spread(&line.ours),
            line.peer.as_ref().map(with_spread).unwrap_or_default(),
            line.ratio().map(number).unwrap_or_default(),
            line.bar_text(),
        );
    }
}

/// Draws what a row is easier to see by; names of files, and what they show.
fn draw(folder: &Path, row: Row, lines: &[&Line]) -> Result<Vec<(&'static str, &'static str)>> {
    let drawing = match row {
        Row::Memory => growth(
            folder,
            "memory.svg",
            "Memory (PSS), idle",
            "MiB",
            lines,
            " tenants, idle",
        )?,
        Row::Start => growth(
            folder,
            "start.svg",
            "Cold start until all answer",
            "s",
            lines,
            " tenants",
        )?,
        Row::NewTenant => growth(
            folder,
            "new-tenant.svg",
            "New tenant, p99",
            "ms",
            lines,
            " others, p99",
        )?,
        Row::Scale => growth(
            folder,
            "scale.svg",
            "CPU per request, 16 busy",
            "µs",
            lines,
            " tenants, CPU per request",
        )?,
        Row::Cpu => {
            plots::pairs(&folder.join("cpu.svg"), "CPU per request", "µs", lines)?;
            ("cpu.svg", "CPU per request")
        }
        Row::Throughput => {
            let title = "Throughput";
            plots::pairs(
                &folder.join("throughput.svg"),
                title,
                "requests a second",
                lines,
            )?;
            ("throughput.svg", "Throughput")
        }
        Row::Latency => {
            let tails: Vec<_> = lines
                .iter()
                .copied()
                .filter(|line| line.name.ends_with("p99"))
                .collect();
            plots::pairs(&folder.join("latency.svg"), "Latency, p99", "µs", &tails)?;
            ("latency.svg", "Latency, p99")
        }
        Row::CrossCheck | Row::Limit | Row::Kernel | Row::Idle | Row::Profile | Row::Training => {
            return Ok(Vec::new());
        }
    };
    Ok(vec![drawing])
}

/// Draws the lines that are named after a number of tenants.
fn growth(
    folder: &Path,
    name: &'static str,
    title: &'static str,
    unit: &str,
    lines: &[&Line],
    after: &str,
) -> Result<(&'static str, &'static str)> {
    let tenants = |line: &Line| line.name.strip_suffix(after)?.parse::<f64>().ok();
    let points = |value: fn(&Line) -> Option<f64>| {
        lines
            .iter()
            .filter_map(|line| Some((tenants(line)?, value(line)?)))
            .collect::<Vec<_>>()
    };
    let mut series = vec![Series {
        name: "metadata-proxy",
        is_ours: true,
        points: points(|line| Some(line.ours.median())),
    }];
    let theirs = points(|line| Some(line.peer.as_ref()?.median()));
    if !theirs.is_empty() {
        series.push(Series {
            name: "haproxy",
            is_ours: false,
            points: theirs,
        });
    }
    plots::growth(&folder.join(name), title, unit, &series)?;
    Ok((name, title))
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}
