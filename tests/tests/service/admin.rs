//! The command line and the admin socket, against a running agent.

use std::process::Output;

use metadata_proxy_tests::{
    Agent, Kind, METADATA_V4, Netns, TenantFixture, process::output, wait_until,
};
use serde_json::Value;

use metadata_proxy_tests::stage::{SOON, Stage, assert_served, assert_served_twice};

fn cli(agent: &Agent, arguments: &[&str]) -> Output {
    output(&mut agent.command(arguments)).unwrap()
}

/// Asserts the exit code and returns standard output and error.
fn assert_exit(agent: &Agent, arguments: &[&str], code: i32) -> (String, String) {
    let output = cli(agent, arguments);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {out}{error}"
    );
    (out, error)
}

fn json(agent: &Agent, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--output", "json"]].concat();
    let (out, _) = assert_exit(agent, &arguments, 0);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

#[test]
fn tenants_are_listed_for_people_and_for_programs() {
    let stage = Stage::new();
    let (out, _) = assert_exit(&stage.agent, &["tenants", "list"], 0);
    assert!(out.contains("no tenants"), "{out}");
    let tenants = Kind::ALL.map(|kind| stage.tenant(kind));
    let (table, _) = assert_exit(&stage.agent, &["tenants", "list"], 0);
    let list = json(&stage.agent, &["tenants", "list"]);
    let list = list["tenants"].as_array().unwrap();
    assert_eq!(list.len(), tenants.len());
    for tenant in &tenants {
        let id = tenant.id.to_string();
        let row = table.lines().find(|line| line.contains(&id)).unwrap();
        for word in [tenant.kind.word(), "serving", &tenant.subnets[0].device] {
            assert!(row.contains(word), "{word}: {row}");
        }
        let entry = list.iter().find(|it| it["id"] == id.as_str()).unwrap();
        assert_eq!(entry["kind"], tenant.kind.word());
        assert_eq!(entry["state"], "serving");
        assert_eq!(entry["provider"], "netns-dir");
        assert_eq!(entry["namespace"], tenant.netns.name());
        assert_eq!(entry["netns_inode"], tenant.netns.inode().unwrap());
        assert_eq!(
            entry["interfaces"][0]["name"],
            tenant.subnets[0].device.as_str()
        );
        assert_eq!(entry["interfaces"][0]["state"], "attached");
    }
}

#[test]
fn status_tells_how_the_agent_is_doing() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    assert_served(&tenant);
    let status = json(&stage.agent, &["status"]);
    assert_eq!(status["pid"], stage.agent.pid());
    assert_eq!(status["tenants"]["serving"], 1);
    assert_eq!(status["requests"]["total"], 1);
    assert_eq!(status["upstream"]["kind"], "agent");
    assert_eq!(status["engine"]["name"], "tc");
    assert!(status["outcomes"]["steered_syn"].as_u64() >= Some(1));
    let (table, _) = assert_exit(&stage.agent, &["status"], 0);
    assert!(
        table.contains(&format!("pid {}", stage.agent.pid())),
        "{table}"
    );
    assert!(
        table.contains("1 serving") && table.contains("steered_syn"),
        "{table}"
    );
}

/// Adds a tenant by hand, asserts that it is served, removes it, asserts that it is not.
fn add_and_remove(stage: &Stage, tenant: &TenantFixture, how: [&str; 2]) {
    let id = tenant.id.to_string();
    let which = ["--kind", tenant.kind.word(), "--id", &id];
    let add = [&["tenants", "add"][..], &which, &how].concat();
    let added = json(&stage.agent, &add);
    assert_eq!(
        (&added["state"], &added["provider"]),
        (&"serving".into(), &"admin".into())
    );
    stage.agent.wait_served(tenant).unwrap();
    assert_served_twice(tenant);
    // Once more is no mistake.
    assert_exit(&stage.agent, &add, 0);

    let remove = [&["tenants", "remove"][..], &which].concat();
    let (out, _) = assert_exit(&stage.agent, &remove, 0);
    assert!(out.contains("no longer served"), "{out}");
    assert_eq!(stage.agent.tenant(tenant).unwrap(), None);
    let reply = tenant
        .guest()
        .curl(METADATA_V4, &["--max-time", "0.5"])
        .unwrap();
    assert_eq!(reply.status, 0, "{reply:?}");
    let (_, error) = assert_exit(&stage.agent, &remove, 1);
    assert!(error.contains("not served here"), "{error}");
}

#[test]
fn a_tenant_is_added_by_name_and_removed() {
    let stage = Stage::new();
    let tenant = TenantFixture::builder(Kind::Network)
        .name("by-hand")
        .build(&stage.node)
        .unwrap();
    add_and_remove(&stage, &tenant, ["--netns", "by-hand"]);
}

#[test]
fn a_tenant_is_added_by_path_and_removed() {
    let stage = Stage::new();
    let tenant = TenantFixture::builder(Kind::Router)
        .name("by-hand")
        .build(&stage.node)
        .unwrap();
    let path = tenant.netns.path().display().to_string();
    add_and_remove(&stage, &tenant, ["--path", &path]);
}

#[test]
fn a_tenant_is_added_by_process_and_goes_with_it() {
    let stage = Stage::new();
    let tenant = TenantFixture::builder(Kind::Router)
        .name("by-hand")
        .build(&stage.node)
        .unwrap();
    let mut process = tenant
        .netns
        .command("sleep")
        .unwrap()
        .arg("1000")
        .spawn()
        .unwrap();
    let pid = process.id().to_string();
    add_and_remove(&stage, &tenant, ["--pid", &pid]);

    let id = tenant.id.to_string();
    let which = [
        "tenants", "add", "--kind", "router", "--id", &id, "--pid", &pid,
    ];
    assert_exit(&stage.agent, &which, 0);
    assert_served(&tenant);
    process.kill().unwrap();
    process.wait().unwrap();
    stage.agent.wait_gone(tenant.kind, tenant.id).unwrap();
}

/// Adds a tenant by hand and deletes its namespace.
fn add_and_delete(stage: &Stage, tenant: TenantFixture, how: [&str; 2]) {
    let TenantFixture {
        netns,
        subnets,
        kind,
        id,
        ..
    } = tenant;
    let text = id.to_string();
    let add = [
        &["tenants", "add", "--kind", kind.word(), "--id", &text][..],
        &how,
    ]
    .concat();
    assert_exit(&stage.agent, &add, 0);
    drop::<Netns>(netns);
    let guest = &subnets[0].guests[0];
    wait_until("the end of the namespace", SOON, || {
        !guest.netns.ip("-o link").unwrap().contains("eth0")
    })
    .unwrap();
    stage.agent.wait_gone(kind, id).unwrap();
}

#[test]
fn a_namespace_added_by_hand_is_not_kept_alive() {
    // Far from one scan to the next: whatever has a name is let go at once.
    let stage = Stage::with(|agent| agent.set("discovery.scan_interval", "\"1h\""));
    let tenant = TenantFixture::builder(Kind::Router)
        .name("by-hand")
        .build(&stage.node)
        .unwrap();
    add_and_delete(&stage, tenant, ["--netns", "by-hand"]);
    // By a path of the operator's own, the next scan notices.
    let stage = Stage::new();
    let tenant = TenantFixture::builder(Kind::Router)
        .name("by-hand")
        .build(&stage.node)
        .unwrap();
    let link = stage.node.directory().join("a-link-to-it");
    std::os::unix::fs::symlink(tenant.netns.path(), &link).unwrap();
    add_and_delete(&stage, tenant, ["--path", &link.display().to_string()]);
}

#[test]
fn what_cannot_be_added_or_removed_is_said() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let (id, other) = (tenant.id.to_string(), uuid::Uuid::new_v4().to_string());
    let name = tenant.netns.name();
    let own = format!("/proc/{}/ns/net", stage.agent.pid());
    for (arguments, code, says) in [
        // Found by its name, so it is not for us to take away.
        (
            vec!["remove", "--kind", "router", "--id", &id],
            1,
            "not added by hand",
        ),
        (
            vec!["remove", "--kind", "router", "--id", &other],
            1,
            "not served here",
        ),
        (
            vec![
                "add", "--kind", "router", "--id", &other, "--netns", "nowhere",
            ],
            1,
            "nowhere",
        ),
        (
            vec!["add", "--kind", "router", "--id", &other, "--netns", &name],
            1,
            "belongs to",
        ),
        (
            vec![
                "add",
                "--kind",
                "router",
                "--id",
                &other,
                "--path",
                "/proc/self/ns/mnt",
            ],
            1,
            "not a network namespace",
        ),
        (
            vec![
                "add", "--kind", "router", "--id", &other, "--path", "relative",
            ],
            2,
            "absolute",
        ),
        (
            vec!["add", "--kind", "router", "--id", &other, "--netns", "../x"],
            2,
            "no slash",
        ),
        (
            vec!["add", "--kind", "router", "--id", "no-uuid", "--netns", "x"],
            2,
            "no-uuid",
        ),
        (
            vec!["add", "--kind", "bridge", "--id", &other, "--netns", "x"],
            2,
            "ovn-network",
        ),
        (
            vec!["add", "--kind", "router", "--id", &other],
            2,
            "--netns",
        ),
    ] {
        let arguments = [&["tenants"][..], &arguments].concat();
        let (out, error) = assert_exit(&stage.agent, &arguments, code);
        assert!(error.contains(says), "{arguments:?}: {out}{error}");
    }
    // The agent's own namespace is declared, and can never be served.
    let add = [
        "tenants", "add", "--kind", "router", "--id", &other, "--path", &own,
    ];
    let (out, error) = {
        let output = cli(&stage.agent, &add);
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert!(
        format!("{out}{error}").contains("agent's own namespace"),
        "{out}{error}"
    );
    assert_served(&tenant);
}

#[test]
fn without_an_agent_the_command_line_says_so() {
    let mut stage = Stage::new();
    stage.agent.stop().unwrap();
    for arguments in [&["status"][..], &["tenants", "list"]] {
        let (_, error) = assert_exit(&stage.agent, arguments, 4);
        assert!(error.contains("admin.sock"), "{error}");
    }
}

#[test]
fn the_admin_socket_is_for_root_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let stage = Stage::new();
    for socket in ["admin.sock", "register.sock"] {
        let path = stage.node.directory().join(socket);
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{socket}");
    }
}

#[test]
fn health_and_readiness_are_told() {
    let stage = Stage::new();
    assert_eq!(stage.agent.admin("/healthz").unwrap().0, 200);
    assert_eq!(stage.agent.admin("/readyz").unwrap().0, 200);
    assert_eq!(stage.agent.admin("/nowhere").unwrap().0, 404);
}
