//! What the agent cannot do any more once it serves.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _};

use metadata_proxy_tests::{
    Kind,
    agent::bpffs_dir,
    stage::{Stage, assert_served},
};

/// Numbers of `CAP_DAC_OVERRIDE`, `CAP_NET_BIND_SERVICE`, `CAP_NET_ADMIN`, `CAP_SYS_PTRACE`,
/// `CAP_SYS_ADMIN`, `CAP_BPF` (linux/capability.h), which SECURITY.md lists.
const KEPT: [u32; 6] = [1, 10, 12, 19, 21, 39];

/// The value of a line of every thread's status.
fn of_threads(pid: u32, name: &str) -> BTreeSet<String> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|task| {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().to_owned()
        })
        .collect()
}

#[test]
fn no_thread_keeps_a_capability_that_is_not_needed() {
    let stage = Stage::new();
    let pid = stage.agent.pid();
    let kept: u64 = KEPT.iter().map(|number| 1 << number).sum();
    let kept = BTreeSet::from([format!("{kept:016x}")]);
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(of_threads(pid, set), kept, "{set}");
    }
    for set in ["CapInh:", "CapAmb:"] {
        assert_eq!(
            of_threads(pid, set),
            BTreeSet::from(["0".repeat(16)]),
            "{set}"
        );
    }
}

#[test]
fn every_thread_is_filtered_and_gets_no_new_privileges() {
    let stage = Stage::new();
    let pid = stage.agent.pid();
    assert_eq!(
        of_threads(pid, "NoNewPrivs:"),
        BTreeSet::from(["1".to_owned()])
    );
    // 2 is SECCOMP_MODE_FILTER.
    assert_eq!(
        of_threads(pid, "Seccomp:"),
        BTreeSet::from(["2".to_owned()])
    );
    let tenant = stage.tenant(Kind::Router);
    assert_served(&tenant);
}

#[test]
fn an_operator_may_do_without_the_filter() {
    let stage = Stage::with(|agent| agent.set("security.seccomp", "\"off\""));
    let pid = stage.agent.pid();
    assert_eq!(
        of_threads(pid, "Seccomp:"),
        BTreeSet::from(["0".to_owned()])
    );
}

#[test]
fn sockets_and_pins_are_for_nobody_else() {
    let stage = Stage::new();
    let _tenant = stage.tenant(Kind::Router);
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().mode() & 0o777;
    for socket in ["admin.sock", "admin.sock.takeover", "register.sock"] {
        assert_eq!(
            mode(&stage.node.directory().join(socket)),
            0o600,
            "{socket}"
        );
    }
    let pins = bpffs_dir(&stage.node);
    assert_eq!(mode(&pins), 0o700);
    let mut count = 0;
    for pin in fs::read_dir(&pins).unwrap() {
        let path = pin.unwrap().path();
        // The mark that says which layout the maps have is a directory.
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&path), expected, "{}", path.display());
        count += 1;
    }
    assert!(count >= 4, "both maps, their mark and a link");
}
