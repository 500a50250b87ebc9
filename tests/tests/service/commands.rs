//! Commands that need no running agent: they look, say what they found, and change nothing.

use std::fs;

use metadata_proxy_tests::{
    Agent, Footprint, Kind, Node, TenantFixture,
    agent::binary,
    process::{output, run},
    stage::{Stage, builder, traces_on_node, upstream},
};

#[test]
fn check_says_what_would_be_done_and_changes_nothing() {
    let node = Node::new().unwrap();
    let tenants = Kind::ALL.map(|kind| TenantFixture::new(&node, kind).unwrap());
    let look = |tenant: &TenantFixture| Footprint::of_netns(&tenant.netns).unwrap();
    let before: Vec<_> = tenants.iter().map(look).collect();
    let upstream = upstream(&node);
    let configuration = builder(&node, &upstream).write_configuration().unwrap();
    let mut check = std::process::Command::new(binary().unwrap());
    check.args(["check", "--config"]).arg(&configuration);
    let text = run(&mut check).unwrap();
    for tenant in &tenants {
        assert!(text.contains(&tenant.netns.name()), "{text}");
    }
    assert_eq!(tenants.iter().map(look).collect::<Vec<_>>(), before);
    assert_eq!(traces_on_node(&node), [""; 0]);
    assert_eq!(upstream.requests(), []);
    assert!(!node.directory().join("admin.sock").exists());
}

#[test]
fn check_beside_a_running_agent_disturbs_nobody() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let before = Footprint::of_netns(&tenant.netns).unwrap();
    output(&mut stage.agent.command(&["check"])).unwrap();
    assert_eq!(Footprint::of_netns(&tenant.netns).unwrap(), before);
    metadata_proxy_tests::stage::assert_served_twice(&tenant);
}

#[test]
fn a_wrong_configuration_is_told_all_at_once_and_with_its_own_exit_code() {
    let node = Node::new().unwrap();
    let upstream = upstream(&node);
    let file = builder(&node, &upstream).write_configuration().unwrap();
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{good}no_such_key = 1\nworkers = -1\n")).unwrap();
    for verb in ["check", "run", "print-config"] {
        let mut command = std::process::Command::new(binary().unwrap());
        command.args([verb, "--config"]).arg(&file);
        let done = output(&mut command).unwrap();
        let said = [done.stdout, done.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(done.status.code(), Some(2), "{verb}: {said}");
        for word in ["no_such_key", "workers"] {
            assert!(said.contains(word), "{verb}, {word}: {said}");
        }
    }
    let mut command = std::process::Command::new(binary().unwrap());
    command.args(["run", "--config", "/nonexistent/metadata-proxy.toml"]);
    let done = output(&mut command).unwrap();
    assert_eq!(
        done.status.code(),
        Some(2),
        "a file that was named must be there"
    );
}

#[test]
fn an_agent_that_cannot_start_leaves_nothing() {
    let node = Node::new().unwrap();
    let upstream = upstream(&node);
    let mut agent = Agent::builder(&node)
        .upstream_agent(upstream.socket())
        .set("steering.cgroup", "\"/nonexistent/cgroup\"")
        .start_unready()
        .unwrap();
    let status = agent.wait(metadata_proxy_tests::stage::SOON).unwrap();
    assert!(!status.success());
    assert!(
        agent.log().contains("/nonexistent/cgroup"),
        "{}",
        agent.log()
    );
    assert_eq!(traces_on_node(&node), [""; 0]);
    for socket in ["admin.sock", "register.sock"] {
        assert!(!node.directory().join(socket).exists(), "{socket}");
    }
}
