//! SIGHUP: a good configuration is put in force, a broken one is not.

use std::fs;

use metadata_proxy_tests::{Connection, Kind, METADATA_V4, TenantFixture, wait_until};
use nix::sys::signal::Signal;
use uuid::Uuid;

use metadata_proxy_tests::stage::{SOON, Stage, assert_served, assert_served_twice, builder};

fn wait_logged(stage: &Stage, words: &str) {
    wait_until(words, SOON, || stage.agent.log().contains(words)).unwrap();
}

#[test]
fn a_broken_configuration_keeps_the_old_one_in_force() {
    let mut stage = Stage::with(|agent| agent.set("limits.body_bytes", 100));
    let tenant = stage.tenant(Kind::Router);
    let file = stage.agent.configuration().to_owned();
    let good = fs::read_to_string(&file).unwrap();
    for (broken, complaint) in [
        (format!("{good}no_such_key = 1\n"), "no_such_key"),
        (format!("{good}workers = \"many\"\n"), "workers"),
        ("not TOML at all".to_owned(), "not reloaded"),
    ] {
        fs::write(&file, broken).unwrap();
        stage.agent.signal(Signal::SIGHUP).unwrap();
        wait_logged(&stage, "the old one holds");
        wait_logged(&stage, complaint);
        assert_served(&tenant);
        let long = "x".repeat(101);
        let reply = tenant
            .guest()
            .curl(METADATA_V4, &["--data", &long])
            .unwrap();
        assert_eq!(reply.status, 413, "the old limit: {reply:?}");
    }
    fs::remove_file(&file).unwrap();
    stage.agent.signal(Signal::SIGHUP).unwrap();
    wait_logged(&stage, "cannot be read");
    assert_served(&tenant);
}

#[test]
fn a_good_configuration_is_put_in_force_without_closing_a_connection() {
    let mut stage = Stage::with(|agent| agent.set("limits.body_bytes", 100));
    let tenant = stage.tenant(Kind::Network);
    let post = |connection: &mut Connection| {
        let body = "x".repeat(101);
        connection
            .send(format!(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\n\r\n{body}"
            ))
            .unwrap();
        connection.answer().unwrap().status
    };
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    assert_eq!(connection.get("/").unwrap().status, 200);
    builder(&stage.node, &stage.upstream)
        .set("limits.body_bytes", 101)
        .write_configuration()
        .unwrap();
    stage.agent.signal(Signal::SIGHUP).unwrap();
    wait_logged(&stage, "configuration reloaded");
    assert_eq!(
        post(&mut connection),
        200,
        "on the connection that was open"
    );
}

#[test]
fn a_pattern_that_is_added_finds_its_namespaces_and_one_that_is_gone_lets_them_go() {
    let mut stage = Stage::new();
    let id = Uuid::new_v4();
    let tenant = TenantFixture::builder(Kind::Router)
        .id(id)
        .name(&format!("mine-{id}"))
        .build(&stage.node)
        .unwrap();
    let pattern = "[{ name = \"mine\", regex = 'mine-(?<id>[0-9a-f-]{36})', kind = \"router\" }]";
    builder(&stage.node, &stage.upstream)
        .set("discovery.patterns", pattern)
        .write_configuration()
        .unwrap();
    stage.agent.signal(Signal::SIGHUP).unwrap();
    stage.agent.wait_served(&tenant).unwrap();
    assert_served_twice(&tenant);

    builder(&stage.node, &stage.upstream)
        .write_configuration()
        .unwrap();
    stage.agent.signal(Signal::SIGHUP).unwrap();
    stage.agent.wait_gone(tenant.kind, tenant.id).unwrap();
}

#[test]
fn what_takes_a_restart_is_said() {
    let mut stage = Stage::new();
    builder(&stage.node, &stage.upstream)
        .set("listener.port", 9698)
        .write_configuration()
        .unwrap();
    stage.agent.signal(Signal::SIGHUP).unwrap();
    wait_logged(&stage, "listener");
    wait_logged(&stage, "takes a restart");
}
