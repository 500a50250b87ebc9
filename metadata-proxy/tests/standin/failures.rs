//! A tenant that cannot be served: who is told, and what runs instead.

use std::{fs, os::unix::fs::PermissionsExt};

use crate::{
    ID,
    fixture::{Agent, Node, PROMPT, Policy, program},
};

#[test]
fn without_an_agent_the_failure_is_told_and_the_exit_code_says_so() {
    let node = Node::new();
    let (output, standin) = node.start(ID);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("[ALERT]"), "{message}");
    assert!(message.contains("is metadata-proxy running?"), "{message}");
    assert!(
        message.contains(node.socket().to_str().unwrap()),
        "{message}"
    );
    let logged = node.logged();
    assert!(
        logged.starts_with("<129>haproxy-metadata-proxy-"),
        "{logged}"
    );
    assert!(logged.contains("is metadata-proxy running?"), "{logged}");
    assert!(standin.is_none());
}

#[test]
fn a_refused_tenant_is_told_why() {
    let node = Node::new();
    let agent = Agent::start(&node.socket(), Policy::Refuse("address in use"));
    let (output, standin) = node.start(ID);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("address in use"), "{message}");
    assert!(node.logged().contains("address in use"));
    assert!(standin.is_none());
    let (_, lease, _) = agent.started();
    assert_eq!(agent.ended(PROMPT), lease);
}

#[test]
fn an_agent_that_never_serves_is_waited_for_only_so_long() {
    let node = Node::new();
    let agent = Agent::start(&node.socket(), Policy::Ask);
    let config = node.configure(ID);
    let output = node
        .command(&["-f", config.to_str().unwrap()])
        .env("METADATA_PROXY_WAIT_SECONDS", "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("did not serve within 1 s"), "{message}");
    drop(agent);
}

#[test]
fn what_neutron_did_not_write_is_refused_with_its_line() {
    let node = Node::new();
    for (from, to, expected) in [
        (
            ID,
            "not-a-uuid",
            "line 32: router id «not-a-uuid»: not a UUID",
        ),
        ("mode http", "mode tcp", "does not understand «mode tcp»"),
        ("bind", "binnd", "does not understand «binnd 0.0.0.0:9697»"),
    ] {
        let config = node.configure(ID);
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replace(from, to)).unwrap();
        for flags in [&["-f"][..], &["-c", "-f"]] {
            let mut command = node.command(flags);
            let output = command.arg(&config).output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            let message = String::from_utf8(output.stderr).unwrap();
            assert!(message.contains(expected), "{message}");
            assert!(message.contains(config.to_str().unwrap()), "{message}");
        }
    }
}

/// A program that leaves its arguments in `called` and exits with 7.
fn fake_haproxy(node: &Node) -> String {
    let script = node.path("real-haproxy");
    let called = node.path("called");
    let text = format!("#!/bin/sh\necho \"$@\" > {}\nexit 7\n", called.display());
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script.to_str().unwrap().to_owned()
}

#[test]
fn the_fallback_is_run_with_the_original_arguments() {
    let node = Node::new();
    let fallback = fake_haproxy(&node);
    let config = node.configure(ID);
    let config = config.to_str().unwrap();
    let file = format!("# ours\nfallback = {fallback}\n");
    for way in ["argument", "environment", "file"] {
        let mut command = node.command(&["-Ws"]);
        match way {
            "argument" => command.args(["--fallback", &fallback]),
            "environment" => command.env("METADATA_PROXY_FALLBACK", &fallback),
            _ => {
                fs::write(node.path("standin.conf"), &file).unwrap();
                &mut command
            }
        };
        let output = command.args(["-f", config]).output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{way}: {output:?}");
        let called = fs::read_to_string(node.path("called")).unwrap();
        assert_eq!(called, format!("-Ws -f {config}\n"), "{way}");
        fs::remove_file(node.path("called")).unwrap();
        assert!(node.logged().contains("is metadata-proxy running?"));
        assert!(node.logged().contains("running "));
    }
}

#[test]
fn the_fallback_is_run_whatever_the_reason() {
    let node = Node::new();
    let fallback = fake_haproxy(&node);
    let fallback = format!("--fallback={fallback}");
    let refusing = Agent::start(&node.socket(), Policy::Refuse("no"));
    let config = node.configure(ID);
    let good = config.to_str().unwrap();
    let strange = node.path("strange.conf");
    fs::write(&strange, "frontend web\n").unwrap();
    for arguments in [
        &[fallback.as_str(), "-f", good][..],
        &["-f", strange.to_str().unwrap(), &fallback],
        &["-f", "/nowhere", &fallback],
        &["-sf", "12", &fallback, "-f", good],
    ] {
        let output = node.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{arguments:?}: {output:?}");
    }
    drop(refusing);
}

#[test]
fn a_fallback_that_leads_back_here_is_not_run() {
    let node = Node::new();
    let itself = node.path("haproxy");
    std::os::unix::fs::symlink(program(), &itself).unwrap();
    let output = node
        .command(&["-f", "/nowhere", "--fallback", itself.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("is this program itself"), "{message}");
}
