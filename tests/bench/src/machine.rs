//! What was measured on, and with what.

use std::{fs, process::Command};

/// The machine and the versions, one a line, for people.
pub(crate) fn description() -> Vec<(&'static str, String)> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or_else(|| "unknown".to_owned(), |(_, model)| model.to_owned());
    let cores = std::thread::available_parallelism().map_or(0, Into::into);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let gib = memory
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .map_or(0, |kib: u64| kib / 1024 / 1024);
    let virtual_machine = if cpu.contains(" hypervisor") {
        ", a virtual machine"
    } else {
        ""
    };
    vec![
        (
            "processor",
            format!("{cores} cores of {model}{virtual_machine}"),
        ),
        ("memory", format!("{gib} GiB")),
        ("kernel", first_line("uname", &["-sr"])),
        ("haproxy", first_line("haproxy", &["-v"])),
        ("iptables", first_line("iptables", &["--version"])),
        ("rustc", first_line("rustc", &["--version"])),
        (
            "metadata-proxy",
            first_line("git", &["describe", "--always", "--dirty"]),
        ),
    ]
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    Command::new(program)
        .args(arguments)
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .and_then(|text| text.lines().next().map(str::to_owned))
        .unwrap_or_else(|| "unknown".to_owned())
}
