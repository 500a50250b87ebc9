//! What operators see: metrics and the access log; what they must not see: secrets.

use metadata_proxy_tests::{Kind, METADATA_V4, wait_until};

use metadata_proxy_tests::stage::{SOON, Stage, assert_served, assert_served_twice};

#[test]
fn metrics_count_by_tenant_and_by_outcome() {
    let stage = Stage::new();
    let tenants = Kind::ALL.map(|kind| stage.tenant(kind));
    for (times, tenant) in (1..).zip(&tenants) {
        for _ in 0..times {
            assert_served(tenant);
        }
    }
    let metric = |name: &str, labels: &[(&str, &str)]| stage.agent.metric(name, labels).unwrap();
    for (times, tenant) in (1_u8..).zip(&tenants) {
        let id = tenant.id.to_string();
        let labels = [("kind", tenant.kind.word()), ("id", &*id)];
        let requests = metric("metadata_proxy_tenant_requests", &labels)
            + metric("metadata_proxy_tenant_requests_total", &labels);
        assert!(
            (requests - f64::from(times)).abs() < 0.1,
            "{id}: {requests}"
        );
        let answered = metric(
            "metadata_proxy_requests_total",
            &[("kind", tenant.kind.word()), ("code", "200")],
        );
        assert!(
            (answered - f64::from(times)).abs() < 0.1,
            "{id}: {answered}"
        );
    }
    let (status, text) = stage.agent.admin("/metrics").unwrap();
    assert_eq!(status, 200);
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert_eq!(text.matches("# EOF").count(), 1);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(series.starts_with("metadata_proxy_"), "{line}");
        value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
    }
}

#[test]
fn each_request_is_one_event_and_says_who_asked() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::OvnNetwork);
    assert_served_twice(&tenant);
    let id = tenant.id.to_string();
    let events = || -> Vec<String> {
        let log = stage.agent.log();
        let of_tenant = log
            .lines()
            .filter(|line| line.contains(&id) && line.contains("status=200"));
        of_tenant.map(str::to_owned).collect()
    };
    wait_until("two events", SOON, || events().len() == 2).unwrap();
    for (event, from) in events().iter().zip([
        tenant.guest().v4.to_string(),
        tenant.guest().link_local.to_string(),
    ]) {
        for word in [
            "ovn-network",
            &from,
            "GET",
            "path=\"/\"",
            "total_us=",
            "bytes=",
        ] {
            assert!(event.contains(word), "{word}: {event}");
        }
    }
}

#[test]
fn logs_as_json_are_json() {
    let stage = Stage::with(|agent| agent.set("log.format", "\"json\""));
    let tenant = stage.tenant(Kind::Router);
    assert_served(&tenant);
    wait_until("an access event", SOON, || {
        stage.agent.log().contains("\"access\"")
    })
    .unwrap();
    let log = stage.agent.log();
    // The last line may be half written.
    let whole = &log[..log.rfind('\n').unwrap()];
    for line in whole.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("{line}"));
    }
}

#[test]
fn no_secret_of_a_guest_is_logged() {
    let stage = Stage::with(|agent| agent.set("log.level", "\"trace\""));
    let tenant = stage.tenant(Kind::Router);
    let secrets = [
        "secret-in-query",
        "secret-in-header",
        "secret-in-body",
        "secret-in-answer",
    ];
    let url = format!("{METADATA_V4}/openstack?token={}", secrets[0]);
    let header = format!("X-aws-ec2-metadata-token: {}", secrets[1]);
    let arguments = ["-H", &header, "--data", secrets[2]];
    assert_eq!(tenant.guest().curl(&url, &arguments).unwrap().status, 200);
    // Broken ones too, which are logged for another reason.
    let broken = format!("GET /?{} HTTP/1.1\r\n{}\r\n\r\n", secrets[0], secrets[1]);
    assert_eq!(
        metadata_proxy_tests::stage::exchange(tenant.guest(), broken).status,
        400
    );
    wait_until("an access event", SOON, || {
        stage.agent.log().contains("/openstack")
    })
    .unwrap();
    let log = stage.agent.log();
    for secret in secrets {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}

#[test]
fn the_access_log_can_be_switched_off() {
    let stage = Stage::with(|agent| agent.set("log.access", "false"));
    let tenant = stage.tenant(Kind::Router);
    assert_served(&tenant);
    wait_until("a count", SOON, || {
        stage
            .agent
            .metric("metadata_proxy_requests_total", &[])
            .unwrap()
            >= 1.0
    })
    .unwrap();
    assert!(
        !stage.agent.log().contains("access"),
        "{}",
        stage.agent.log()
    );
}
