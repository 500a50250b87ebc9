//! Proves inside a test guest what the agent says and does without a capability.
//!
//! Ignored elsewhere: `cargo xtask vm-test --variant capabilities` runs it with
//! `--include-ignored`, once for each capability, with that one out of the bounding set.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use metadata_proxy_tests::agent;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// `EX_NOPERM` of sysexits.h: what the agent ends with when a privilege is missing.
const NO_PERMISSION: i32 = 77;
const READY_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// What the agent's documentation says that it needs. `CAP_SYS_ADMIN` stands for `CAP_BPF` too.
const NEEDED: [(&str, u32); 2] = [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21)];
/// All capabilities up to `CAP_CHECKPOINT_RESTORE`.
const ALL: u64 = (1 << 41) - 1;

/// The one that this process lacks of those that the agent needs.
fn lacking() -> Option<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap();
    let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
    assert_ne!(mask & ALL, ALL, "this test is run without one capability");
    NEEDED
        .iter()
        .find(|(_, number)| mask & (1 << number) == 0)
        .map(|(name, _)| *name)
}

/// A node without tenants. Nothing in here needs a capability.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("netns")).unwrap();
        let text = format!(
            "discovery.netns_dir = {:?}\nsteering.bpffs_dir = \"/sys/fs/bpf/privileges\"\n\
             steering.cgroup = \"/sys/fs/cgroup\"\nsteering.connect_hooks = false\n\
             upstream.kind = \"http\"\nupstream.http.address = \"127.0.0.1:9\"\n\
             admin.socket = {:?}\nadmin.register_socket = {:?}\n",
            place.path("netns").display().to_string(),
            place.path("admin.sock").display().to_string(),
            place.path("register.sock").display().to_string(),
        );
        fs::write(place.path("metadata-proxy.toml"), text).unwrap();
        place
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn agent(&self, verb: &str) -> Command {
        let mut command = Command::new(agent::binary().unwrap());
        command
            .arg(verb)
            .arg("--config")
            .arg(self.path("metadata-proxy.toml"));
        command
    }
}

fn assert_tells(output: &Output, capability: &str) {
    let told = [output.stdout.as_slice(), &output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert_eq!(output.status.code(), Some(NO_PERMISSION), "{told}");
    assert!(told.contains(capability), "{told}");
}

fn told(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let told = [output.stdout.as_slice(), &output.stderr].concat();
    format!("{}: {}", output.status, String::from_utf8_lossy(&told))
}

#[test]
#[ignore = "for test guests: cargo xtask vm-test --variant capabilities"]
fn check_names_the_capability_that_is_missing_and_only_one_that_is_needed() {
    let place = Place::new();
    let output = place.agent("check").output().unwrap();
    match lacking() {
        Some(capability) => assert_tells(&output, capability),
        None => assert_ne!(output.status.code(), Some(NO_PERMISSION), "{output:?}"),
    }
}

#[test]
#[ignore = "for test guests: cargo xtask vm-test --variant capabilities"]
fn run_refuses_without_a_needed_capability_and_runs_without_any_other() {
    let place = Place::new();
    if let Some(capability) = lacking() {
        assert_tells(&place.agent("run").output().unwrap(), capability);
        return;
    }
    let mut child = place
        .agent("run")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + READY_WITHIN;
    while !place.path("admin.sock").exists() {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "the agent ended: {}", told(child));
        assert!(Instant::now() < deadline, "the agent is not ready");
        thread::sleep(POLL);
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
}
