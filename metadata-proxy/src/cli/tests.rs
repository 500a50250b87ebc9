//! Commands as a user gives them: what they print, and how they end.

use std::{fs, path::Path, sync::Arc, thread::JoinHandle};

use metadata_proxy_common::TenantKind;
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::*;
use crate::admin::{
    AdminServer,
    api::{InterfaceState, InterfaceStatus, TenantState},
    fake::{Fake, tenant},
};

const ID: &str = "a2e4cf6e-3a1c-4f2b-9d7e-0c8b5a697f10";

/// What a command wrote, and how it ended.
#[derive(Debug)]
struct Ended {
    exit: Exit,
    out: String,
    err: String,
}

impl Ended {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

/// Runs a command; words are separated by blanks.
fn command(line: &str) -> Ended {
    command_with("CapEff:\tffffffffffffffff", line, |_, _, _| {
        panic!("nothing was to be run")
    })
}

fn command_with(
    capabilities: &str,
    line: &str,
    run: impl FnOnce(Config, ConfigSources, Start) -> anyhow::Result<()>,
) -> Ended {
    let words = std::iter::once("metadata-proxy").chain(line.split(' '));
    let invocation = Invocation::try_from_args(words).unwrap();
    let output = invocation.0.output;
    let capabilities = Capabilities::from_status(capabilities).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = execute(invocation, || Ok(capabilities), run, &mut out, &mut err)
        .unwrap_or_else(|error| report(&error, output, &mut err));
    Ended {
        exit,
        out: String::from_utf8(out).unwrap(),
        err: String::from_utf8(err).unwrap(),
    }
}

/// An agent that answers until this is dropped.
struct Agent {
    directory: TempDir,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    fn start(fake: Fake) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let server = AdminServer::bind(&directory.path().join("admin.sock")).unwrap();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime
                .block_on(server.serve(Arc::new(fake), stopped))
                .unwrap();
        });
        Self {
            directory,
            stop,
            thread: Some(thread),
        }
    }

    fn ask(&self, line: &str) -> Ended {
        command(&format!(
            "{line} --admin-socket {}/admin.sock",
            self.directory.path().display()
        ))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn file(text: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    fs::write(&file, text).unwrap();
    let path = file.to_str().unwrap().to_owned();
    (directory, path)
}

#[test]
fn tenants_are_added_listed_and_removed() {
    let agent = Agent::start(Fake::default());
    let list = || agent.ask("tenants list");
    assert_eq!(list().out, "There are no tenants.\n");

    let added = agent.ask(&format!("tenants add --kind router --id {ID} --netns lab"));
    assert_eq!(added.exit, Exit::Ok);
    assert_eq!(added.out, format!("router/{ID} in lab is pending\n"));
    let table = list().out;
    assert!(table.starts_with("KIND    ID  "), "{table}");
    assert!(table.contains(&format!(
        "\nrouter  {ID}  lab        pending  1970-01-01T00:00:00Z"
    )));

    let again = agent.ask(&format!("tenants add --kind router --id {ID} --netns lab"));
    assert_eq!(
        (again.exit, again.err.as_str()),
        (Exit::Failure, "metadata-proxy: it is there already\n")
    );
    let json = agent.ask("tenants list --output json").json();
    assert_eq!(json["tenants"][0]["id"], ID);
    assert_eq!(json["tenants"][0]["kind"], "router");

    let removed = agent.ask(&format!(
        "tenants remove --kind router --id {ID} --output json"
    ));
    assert_eq!(
        removed.json()["message"],
        format!("router/{ID} is no longer served")
    );
    assert_eq!(list().out, "There are no tenants.\n");
}

#[test]
fn what_fails_is_told_with_its_reason() {
    let fake = Fake::default();
    let id: Uuid = ID.parse().unwrap();
    let mut failing = tenant(TenantKind::OvnNetwork, id, format!("ovnmeta-{ID}"));
    failing.state = TenantState::Failing;
    failing.reason = Some("the port is taken".into());
    failing.attempts = 3;
    failing.interfaces = vec![InterfaceStatus {
        name: "tap1".into(),
        index: 2,
        state: InterfaceState::Failing,
        reason: Some("no clsact".into()),
    }];
    fake.tenants
        .lock()
        .unwrap()
        .insert((failing.kind, id), failing);
    let agent = Agent::start(fake);

    let list = agent.ask("tenants list").out;
    assert!(list.contains("tap1 (failing)"), "{list}");
    assert!(list.contains(&format!(
        "\novn-network/{ID}: failing (tried 3 times): the port is taken\n\
         ovn-network/{ID}: interface tap1: no clsact\n"
    )));

    let status = agent.ask("status");
    assert_eq!(status.exit, Exit::Ok);
    for line in [
        "agent        0.1.0 (ABI 1), pid 7, up 1m\n",
        "engine       tc, attached by tcx: it is the best\n",
        "queue        1 of 4 in flight, 0 waiting\n",
        "tenants      0 serving, 0 pending, 1 failing, 0 leaving\n",
        "\nsteered_syn  3\n",
        "the port is taken\n",
    ] {
        assert!(
            status.out.contains(line),
            "{line:?} is not in\n{}",
            status.out
        );
    }
    assert!(
        !status.out.contains("passed_stray"),
        "outcomes that never were are left out"
    );

    let json = agent.ask("status --output json").json();
    assert_eq!(json["engine"]["attach"], "tcx");
    assert_eq!(json["failing_tenants"][0]["reason"], "the port is taken");
}

#[test]
fn without_an_agent_every_question_ends_with_4() {
    let remove = format!("tenants remove --kind router --id {ID}");
    for line in ["status", "tenants list", &remove] {
        let ended = command(&format!("{line} --admin-socket /nonexistent/admin.sock"));
        assert_eq!(ended.exit, Exit::Unreachable);
        assert!(
            ended.err.contains("/nonexistent/admin.sock"),
            "{}",
            ended.err
        );
        assert!(ended.err.contains("metadata-proxy run"), "{}", ended.err);
    }
    let json = command("status --admin-socket /nonexistent/admin.sock --output json");
    let error: Value = serde_json::from_str(&json.err).unwrap();
    assert_eq!((json.out.as_str(), &error["exit"]), ("", &Value::from(4)));
}

#[test]
fn the_socket_of_the_configuration_is_asked() {
    let (_directory, path) = file("admin.socket = \"/nonexistent/of-the-file.sock\"");
    let ended = command(&format!("status -c {path}"));
    assert_eq!(ended.exit, Exit::Unreachable);
    assert!(
        ended.err.contains("/nonexistent/of-the-file.sock"),
        "{}",
        ended.err
    );
}

#[test]
fn a_namespace_that_can_be_none_is_a_wrong_command_line() {
    let ended = command(&format!("tenants add --kind router --id {ID} --netns ../x"));
    assert_eq!(ended.exit, Exit::Usage);
}

#[test]
fn print_config_adds_the_layers_up() {
    let (_directory, path) = file("workers = 2\n[limits]\nconnections = 10\n");
    let line = format!("print-config -c {path} --workers 5 --upstream-agent-socket /x/y");
    let ended = command(&line);
    assert_eq!(ended.exit, Exit::Ok);
    assert!(ended.err.contains("warning: ") && ended.err.contains("has no effect"));
    let printed: toml::Table = ended.out.parse().unwrap();
    assert_eq!(printed["workers"].as_integer(), Some(5));
    assert_eq!(printed["limits"]["connections"].as_integer(), Some(10));
    let json = command(&format!("{line} --output json")).json();
    assert_eq!(json["upstream"]["agent"]["socket"], "/x/y");
    assert_eq!(json["timeouts"]["connect"], "30s");
}

#[test]
fn a_wrong_configuration_ends_with_2_and_all_problems() {
    let (_directory, path) = file("workers = -1\nprot = 1\n");
    for verb in ["run", "print-config", "status"] {
        let ended = command(&format!("{verb} -c {path}"));
        assert_eq!(ended.exit, Exit::Usage, "{verb}");
        for line in [
            format!("\n{path}:1: workers: "),
            format!("\n{path}:2: prot: "),
        ] {
            assert!(ended.err.contains(&line), "{verb}: {}", ended.err);
        }
    }
    let ended = command(&format!("check -c {path} --listener-port x --output json"));
    assert_eq!(ended.exit, Exit::Usage);
    let report = ended.json();
    let failures: Vec<_> = report["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|item| item["check"] == "configuration" && item["verdict"] == "failure")
        .collect();
    assert_eq!(failures.len(), 3, "{report}");
    assert_eq!(report["verdict"], "failure");
}

#[test]
fn check_tells_which_namespaces_would_be_served() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(format!("qrouter-{ID}")), "").unwrap();
    let socket = directory.path().join("admin.sock");
    let line = format!(
        "check -c /dev/null --discovery-netns-dir {} --admin-socket {}",
        directory.path().display(),
        socket.display()
    );
    let table = command(&line).out;
    assert!(table.contains("1 of 1 in "), "{table}");
    assert!(
        table.contains(&format!("router  {ID}  qrouter-{ID}  neutron-router")),
        "{table}"
    );
    let json = command(&format!("{line} --output json")).json();
    assert_eq!(json["tenants"][0]["interfaces"][0], "qr-*");
    assert!(!socket.exists(), "it changes nothing");
}

#[test]
fn the_agent_is_run_with_what_was_configured() {
    let (_directory, path) = file("listener.port = 99\n");
    let line = format!("run -c {path} --workers 3");
    let mut given = None;
    let ended = command_with(
        "CapEff:\tffffffffffffffff",
        &line,
        |config, sources, start| {
            assert_eq!(start, Start::Afresh);
            given = Some((config, sources));
            Ok(())
        },
    );
    assert_eq!(ended.exit, Exit::Ok);
    let (config, sources) = given.unwrap();
    assert_eq!((config.listener.port, config.workers), (99, 3));
    // What a reload reads.
    assert_eq!(sources.file(), Path::new(&path));
    assert_eq!(Config::load(&sources).unwrap().config, config);
}

#[test]
fn the_agents_own_failure_decides_the_exit_code() {
    let run = |error: anyhow::Error| {
        command_with(
            "CapEff:\tffffffffffffffff",
            "run -c /dev/null",
            |_, _, _| Err(error),
        )
        .exit
    };
    assert_eq!(run(anyhow::anyhow!("something")), Exit::Failure);
    let node = anyhow::Error::from(Failure::new(Exit::Node, "old kernel"));
    assert_eq!(run(node.context("cannot start")), Exit::Node);
}

#[test]
fn without_privileges_run_names_what_is_missing_and_runs_nothing() {
    let ended = command_with("CapEff:\t0", "run -c /dev/null", |_, _, _| {
        panic!("it was run")
    });
    assert_eq!(ended.exit, Exit::Privilege);
    for name in ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_BPF"] {
        assert!(ended.err.contains(name), "{}", ended.err);
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = command(&format!("completions {shell}"));
        assert!(
            ended.exit == Exit::Ok && ended.out.contains("print-config"),
            "{shell}"
        );
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let error = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
    assert_eq!(report(&error, Output::Table, &mut Vec::new()), Exit::Ok);
}
