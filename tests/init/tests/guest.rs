//! Proves inside a test guest that it has what the namespace tests need, so that a failure of
//! theirs is not the guest's.
//!
//! Ignored elsewhere: `cargo xtask vm-test` runs it with `--include-ignored` as PID 1's child.

use std::fs;
use std::path::Path;
use std::process::Command;

fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let program = words.next().expect("a command has a name");
    let output = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{program} does not start: {error}"));
    assert!(
        output.status.success(),
        "{line}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
#[ignore = "for test guests: cargo xtask vm-test"]
fn namespaces_veth_tun_and_bridges_can_be_made() {
    run("ip netns add guest-links");
    run("ip -n guest-links link add veth0 type veth peer name veth1");
    run("ip -n guest-links link add br0 type bridge");
    run("ip -n guest-links link add dummy0 type dummy");
    run("ip -n guest-links tuntap add mode tap name tap0");
    run("ip -n guest-links link set tap0 master br0");
    let links = run("ip -n guest-links -o link");
    run("ip netns del guest-links");
    assert_eq!(links.lines().count(), 6, "{links}");
}

#[test]
#[ignore = "for test guests: cargo xtask vm-test"]
fn neutrons_rules_can_be_installed_for_both_families() {
    run("ip netns add guest-rules");
    let inside = "nsenter --net=/run/netns/guest-rules";
    for (iptables, address) in [
        ("iptables", "169.254.169.254/32"),
        ("ip6tables", "fe80::a9fe:a9fe/128"),
    ] {
        let matched = format!("-d {address} -i qr-+ -p tcp -m tcp --dport 80");
        run(&format!(
            "{inside} {iptables} -t nat -A PREROUTING {matched} -j REDIRECT --to-ports 9697"
        ));
        run(&format!(
            "{inside} {iptables} -t mangle -A PREROUTING {matched} -j MARK --set-xmark 0x1/0xffff"
        ));
        run(&format!(
            "{inside} {iptables} -A INPUT -m mark --mark 0x1/0xffff -j ACCEPT"
        ));
        run(&format!(
            "{inside} {iptables} -A INPUT -p tcp -m tcp --dport 9697 -j DROP"
        ));
        run(&format!(
            "{inside} {iptables} -A FORWARD -m mark --mark 0x1/0xffff -j DROP"
        ));
    }
    run("ip netns del guest-rules");
}

#[test]
#[ignore = "for test guests: cargo xtask vm-test"]
fn a_clsact_qdisc_can_be_added() {
    run("ip netns add guest-clsact");
    run("ip -n guest-clsact link add veth0 type veth peer name veth1");
    run("tc -n guest-clsact qdisc add dev veth0 clsact");
    let shown = run("tc -n guest-clsact qdisc show dev veth0");
    run("ip netns del guest-clsact");
    assert!(shown.contains("clsact"), "{shown}");
}

#[test]
#[ignore = "for test guests: cargo xtask vm-test"]
fn cgroup2_is_mounted_and_takes_a_child() {
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc is mounted");
    let root = mounts
        .lines()
        .filter_map(|line| line.strip_prefix("cgroup2 "))
        .find_map(|line| line.split(' ').next())
        .expect("a cgroup2 mount");
    let child = Path::new(root).join("guest-child");
    fs::create_dir(&child).expect("a child cgroup can be made");
    assert!(child.join("cgroup.procs").exists());
    fs::remove_dir(&child).expect("a child cgroup can be removed");
}

/// A variant that did not come about would pass as a plain guest.
#[test]
#[ignore = "for test guests: cargo xtask vm-test"]
fn the_guest_is_of_the_variant_that_was_asked_for() {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_else(|error| error.to_string());
    let mounts = read("/proc/mounts");
    let is_mounted = |kind: &str, at: &str| mounts.contains(&format!(" {at} {kind} "));
    match std::env::var("METADATA_PROXY_VM_VARIANT").as_deref() {
        Ok("jit-harden") => assert_eq!(read("/proc/sys/net/core/bpf_jit_harden"), "2\n"),
        Ok("unprivileged-bpf-off") => {
            assert_eq!(read("/proc/sys/kernel/unprivileged_bpf_disabled"), "1\n");
        }
        Ok("hybrid-cgroups") => {
            assert!(is_mounted("cgroup2", "/sys/fs/cgroup/unified"), "{mounts}");
            assert!(!is_mounted("cgroup2", "/sys/fs/cgroup"), "{mounts}");
        }
        Ok("no-bpffs") => assert!(!is_mounted("bpf", "/sys/fs/bpf"), "{mounts}"),
        Ok("lockdown") => {
            let lockdown = read("/sys/kernel/security/lockdown");
            assert!(lockdown.contains("[confidentiality]"), "{lockdown}");
        }
        Ok("plain" | "capabilities") => {
            assert!(is_mounted("bpf", "/sys/fs/bpf"), "{mounts}");
            assert!(is_mounted("cgroup2", "/sys/fs/cgroup"), "{mounts}");
        }
        other => panic!("nobody knows the variant {other:?}"),
    }
}

#[test]
#[ignore = "for test guests: cargo xtask vm-test"]
fn the_host_tools_start() {
    for command in [
        "bpftool version",
        "curl --version",
        "haproxy -v",
        "tc -Version",
        "dash -c true",
        "nsenter --version",
        "ip -Version",
    ] {
        run(command);
    }
    assert!(
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        "the kernel carries BTF"
    );
}
