//! The haproxy stand-in as Neutron drives it, with an agent in this process.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that cannot be set up fails its test"
)]

#[path = "standin/failures.rs"]
mod failures;
#[path = "standin/fixture.rs"]
mod fixture;

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixDatagram,
        process::CommandExt,
    },
    path::Path,
    process::Command,
};

use metadata_proxy_common::TenantKind;
use nix::sys::{
    signal::{Signal, kill},
    wait::WaitStatus,
};

use fixture::{Agent, Foreground, Node, PATIENCE, PROMPT, Policy, Seen, Standin, program, within};

const ID: &str = "2b661bf4-4e5c-4239-8918-397e260ed85d";

/// Number of tenants where there are many.
const MANY: usize = 200;

#[test]
fn neutrons_call_returns_only_once_the_tenant_is_served() {
    let node = Node::new();
    let agent = Agent::start(&node.socket(), Policy::Ask);
    let config = node.configure(ID);
    let child = node
        .command(&["-f", config.to_str().unwrap()])
        .spawn()
        .unwrap();
    let mut child = Foreground(child);
    let Seen::Started {
        tenant,
        registration: Some(registration),
        ..
    } = agent.next()
    else {
        panic!("not started");
    };
    assert_eq!(tenant.kind, TenantKind::Router);
    assert_eq!(tenant.id.to_string(), ID);
    assert_eq!(
        registration.settings.agent_socket,
        node.path("metadata_proxy")
    );
    assert!(child.0.try_wait().unwrap().is_none());
    assert!(!node.pidfile(ID).exists());

    registration.reply.serving();
    assert!(child.exit(PATIENCE).success());
    let pid = fs::read_to_string(node.pidfile(ID)).unwrap();
    let standin = Standin(nix::unistd::Pid::from_raw(pid.trim().parse().unwrap()));
    assert_eq!(registration.pid, standin.0.as_raw());
}

#[test]
fn the_process_that_stays_is_found_as_neutron_looks_for_it() {
    let node = Node::new();
    let _agent = Agent::start(&node.socket(), Policy::Serve);
    let standin = node.started(ID);
    assert!(standin.command_line().contains(ID));
    assert_eq!(standin.number("status", "Threads:"), 1);
    assert_eq!(standin.number("status", "NSsid:"), {
        u64::try_from(standin.0.as_raw()).unwrap()
    });
    for descriptor in 0..3 {
        let open = fs::read_link(format!("/proc/{}/fd/{descriptor}", standin.0)).unwrap();
        assert_eq!(open, Path::new("/dev/null"));
    }
    let mode = fs::metadata(node.pidfile(ID)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    let capabilities = standin.proc("status");
    assert!(
        capabilities.contains("CapEff:\t0000000000000000"),
        "{capabilities}"
    );
}

#[test]
fn sigterm_ends_the_process_and_the_lease_within_a_second() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1] {
        let node = Node::new();
        let agent = Agent::start(&node.socket(), Policy::Serve);
        let standin = node.started(ID);
        let (_, lease, _) = agent.started();
        standin.signal(signal);
        assert_eq!(agent.ended(PROMPT), lease);
        let ended = within(PROMPT, "end", || standin.ended());
        assert_eq!(ended, WaitStatus::Exited(standin.0, 0), "{signal}");
        // As haproxy leaves it; Neutron may have put its successor's there.
        assert!(node.pidfile(ID).exists());
    }
}

#[test]
fn other_signals_of_haproxys_end_nothing() {
    let node = Node::new();
    let agent = Agent::start(&node.socket(), Policy::Serve);
    let standin = node.started(ID);
    let (_, lease, _) = agent.started();
    for signal in [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR2] {
        standin.signal(signal);
    }
    // Whatever they did would come before this.
    standin.signal(Signal::SIGTERM);
    let ended = within(PROMPT, "end", || standin.ended());
    assert_eq!(ended, WaitStatus::Exited(standin.0, 0));
    assert_eq!(agent.ended(PROMPT), lease);
}

#[test]
fn a_killed_process_is_noticed_at_once_and_respawned() {
    let node = Node::new();
    let agent = Agent::start(&node.socket(), Policy::Serve);
    let standin = node.started(ID);
    let (_, first, _) = agent.started();
    standin.signal(Signal::SIGKILL);
    assert_eq!(agent.ended(PROMPT), first);
    within(PROMPT, "end", || standin.ended());

    let successor = node.started(ID);
    let (_, second, pid) = agent.started();
    assert_ne!(first, second);
    assert_eq!(pid, successor.0.as_raw());
}

#[test]
fn an_agent_that_restarts_finds_the_same_process_registering_again() {
    let node = Node::new();
    let agent = Agent::start(&node.socket(), Policy::Serve);
    let standin = node.started(ID);
    let (tenant, _, pid) = agent.started();
    drop(agent);
    assert!(node.logged().contains("registering again"));
    let agent = Agent::start(&node.socket(), Policy::Serve);
    let (again, _, again_pid) = agent.started();
    assert_eq!((tenant, pid), (again, again_pid));
    assert!(node.logged().contains("served again"));
    assert_eq!(standin.ended(), None);

    // And it is still ours to stop.
    standin.signal(Signal::SIGTERM);
    within(PROMPT, "end", || standin.ended());
    agent.ended(PROMPT);
}

#[test]
fn a_process_ends_promptly_while_its_agent_is_away() {
    let node = Node::new();
    let agent = Agent::start(&node.socket(), Policy::Serve);
    let standin = node.started(ID);
    drop(agent);
    assert!(node.logged().contains("registering again"));
    standin.signal(Signal::SIGTERM);
    let ended = within(PROMPT, "end", || standin.ended());
    assert_eq!(ended, WaitStatus::Exited(standin.0, 0));
}

#[test]
fn an_agent_that_changes_its_mind_does_not_end_the_process() {
    let node = Node::new();
    let agent = Agent::start(&node.socket(), Policy::Serve);
    let standin = node.started(ID);
    drop(agent);
    assert!(node.logged().contains("registering again"));
    let agent = Agent::start(&node.socket(), Policy::Refuse("no device yet"));
    agent.started();
    assert!(node.logged().contains("not served: no device yet"));
    drop(agent);
    let agent = Agent::start(&node.socket(), Policy::Serve);
    agent.started();
    assert!(node.logged().contains("served again"));
    assert_eq!(standin.ended(), None);
}

#[test]
fn many_tenants_come_back_after_a_restart_and_end_one_by_one() {
    let node = Node::new();
    let agent = Agent::start(&node.socket(), Policy::Serve);
    let ids: Vec<String> = (0..MANY)
        .map(|index| format!("00000000-0000-4000-8000-{index:012x}"))
        .collect();
    let standins: Vec<Standin> = ids.iter().map(|id| node.started(id)).collect();
    drop(agent);
    let agent = Agent::start(&node.socket(), Policy::Serve);
    let mut back: Vec<String> = ids
        .iter()
        .map(|_| agent.started().0.id.to_string())
        .collect();
    back.sort_unstable();
    assert_eq!(back, ids);
    for standin in &standins {
        standin.signal(Signal::SIGTERM);
        within(PROMPT, "end", || standin.ended());
        agent.ended(PROMPT);
    }
}

#[test]
fn a_supervised_process_stays_in_the_foreground_and_says_when_it_is_ready() {
    let node = Node::new();
    let _agent = Agent::start(&node.socket(), Policy::Serve);
    let notified = UnixDatagram::bind(node.path("notify")).unwrap();
    notified.set_read_timeout(Some(PATIENCE)).unwrap();
    let config = node.configure(ID);
    let child = node
        .command(&["-Ws", "-f", config.to_str().unwrap()])
        .env("NOTIFY_SOCKET", node.path("notify"))
        .spawn()
        .unwrap();
    let mut child = Foreground(child);
    let mut buffer = [0; 64];
    let length = notified.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"READY=1\n");
    let pid = fs::read_to_string(node.pidfile(ID)).unwrap();
    assert_eq!(pid, format!("{}\n", child.pid()));
    kill(child.pid(), Signal::SIGTERM).unwrap();
    assert!(child.exit(PROMPT).success());
}

#[test]
fn a_process_that_is_kept_from_the_background_writes_no_pidfile() {
    let node = Node::new();
    let agent = Agent::start(&node.socket(), Policy::Serve);
    let config = node.configure(ID);
    let child = node
        .command(&["-db", "-f", config.to_str().unwrap()])
        .spawn()
        .unwrap();
    let mut child = Foreground(child);
    let (_, lease, pid) = agent.started();
    assert_eq!(pid, child.pid().as_raw());
    assert!(child.0.try_wait().unwrap().is_none());
    kill(child.pid(), Signal::SIGTERM).unwrap();
    assert!(child.exit(PROMPT).success());
    assert_eq!(agent.ended(PROMPT), lease);
    assert!(!node.pidfile(ID).exists());
}

#[test]
fn the_pidfile_of_the_command_line_goes_before_the_configurations() {
    let node = Node::new();
    let _agent = Agent::start(&node.socket(), Policy::Serve);
    let config = node.configure(ID);
    let output = node
        .command(&["-D", "-p", "own.pid", "-f", config.to_str().unwrap()])
        .current_dir(node.directory.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let pid = fs::read_to_string(node.path("own.pid")).unwrap();
    let standin = Standin(nix::unistd::Pid::from_raw(pid.trim().parse().unwrap()));
    assert!(standin.command_line().contains(ID));
    assert!(!node.pidfile(ID).exists());
}

#[test]
fn the_version_reads_like_haproxys_and_names_its_owner() {
    let node = Node::new();
    for flag in ["-v", "-vv"] {
        let output = node.command(&[flag]).output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let version = text.strip_prefix("HAProxy version 2.").unwrap();
        assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{text}");
        assert!(text.contains("not HAProxy itself"), "{text}");
        assert!(text.contains("metadata-proxy"), "{text}");
    }
}

#[test]
fn a_check_says_what_haproxy_says() {
    let node = Node::new();
    let config = node.configure(ID);
    let config = config.to_str().unwrap();
    let output = node.command(&["-c", "-f", config]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"Configuration file is valid\n");
    let output = node.command(&["-c", "-q", "-f", config]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"");
    assert!(!node.pidfile(ID).exists());
}

#[test]
fn the_namespace_it_was_started_in_is_handed_over() {
    let node = Node::new();
    let agent = Agent::start(&node.socket(), Policy::Serve);
    let config = node.configure(ID);
    // Its own namespaces for network, mounts and pids: as in a container.
    let mut command = Command::new("unshare");
    node.tell(&mut command);
    command
        .args(["--net", "--mount", "--pid", "--fork", "--mount-proc"])
        .arg(program())
        .args(["-Ws", "-f", config.to_str().unwrap()])
        .process_group(0);
    let mut child = Foreground(command.spawn().unwrap());
    let Seen::Started {
        netns,
        pid,
        client_pid,
        lease,
        ..
    } = agent.next()
    else {
        panic!("not started");
    };
    let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
    let theirs = fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino();
    assert_ne!(netns, own);
    assert_eq!(netns, theirs);
    assert_eq!(client_pid, 1);
    let pidfile = within(PATIENCE, "pidfile", || {
        fs::read_to_string(node.pidfile(ID)).ok()
    });
    assert_eq!(pidfile, "1\n");
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert_eq!(agent.ended(PROMPT), lease);
    child.exit(PATIENCE);
}

#[test]
fn only_root_and_the_agents_own_user_may_register() {
    let node = Node::new();
    let agent = Agent::start(&node.socket(), Policy::Serve);
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    open(node.directory.path(), 0o777);
    open(&node.socket(), 0o666);
    let copy = node.path("haproxy");
    // Not by this process: what another test forks meanwhile would hold it open for writing.
    let copied = Command::new("cp").arg(program()).arg(&copy).status();
    assert!(copied.unwrap().success());
    let config = node.configure(ID);
    let mut command = Command::new(copy);
    node.tell(&mut command);
    let output = command
        .args(["-f", config.to_str().unwrap()])
        .uid(65534)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("may not register"), "{message}");
    drop(agent);
}

/// Run with `STANDIN` set to the program as it is installed; a debug build is no measure.
#[test]
#[ignore = "measures the program that STANDIN names: cargo xtask test"]
fn a_process_has_at_most_100_kib_of_its_own() {
    assert!(std::env::var_os("STANDIN").is_some(), "STANDIN is not set");
    let node = Node::new();
    let agent = Agent::start(&node.socket(), Policy::Serve);
    let standins: Vec<Standin> = (0..MANY)
        .map(|index| node.started(&format!("00000000-0000-4000-8000-{index:012x}")))
        .collect();
    let measure = |when: &str| {
        let of = |field| {
            let numbers = standins
                .iter()
                .map(|standin| standin.number("smaps_rollup", field));
            let (sum, most) = numbers.fold((0, 0), |(sum, most), n| (sum + n, most.max(n)));
            (sum / standins.len() as u64, most)
        };
        let (clean, dirty) = (of("Private_Clean:"), of("Private_Dirty:"));
        let (pss, rss) = (of("Pss:"), of("Rss:"));
        eprintln!(
            "{when}, kB, mean and most of {MANY}: private clean {clean:?}, private dirty \
             {dirty:?}, Pss {pss:?}, Rss {rss:?}"
        );
        assert!(clean.1 + dirty.1 <= 100, "private: {clean:?} + {dirty:?}");
    };
    measure("after the first registration");
    drop(agent);
    let agent = Agent::start(&node.socket(), Policy::Serve);
    for _ in &standins {
        agent.started();
    }
    measure("after the agent's restart");
}
