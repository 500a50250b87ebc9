//! Answers are those that nova's own code gave, byte for byte; see `record_nova.py`.

use http::{Method, StatusCode};
use serde::Deserialize;

use super::{ROUTER, Seen, TestFile, accept, body, get, one_instance, request, seen};
use crate::upstream::embedded::Embedded;

#[derive(Deserialize)]
struct Recorded {
    instance: String,
    path: String,
    status: u16,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    body: String,
}

/// The instances that were recorded.
fn recorded_instance(name: &str) -> Embedded {
    let mut keys = vec![
        "uuid: b65cee2f-8c69-4aeb-be2f-f79742548fc2",
        r#"project_id: "0123456789abcdef0123456789abcdef""#,
        "reservation_id: r-4x9z1k2m",
        "flavor: m1.small",
        "ec2_id: i-0000002a",
        "ami_id: ami-00000001",
        "network_data: {links: [], networks: [], services: []}",
    ];
    if name == "full" {
        keys.extend([
            "launch_index: 3",
            "public_keys: {mykey: ssh-ed25519 AAAAC3Nz user@host}",
            "kernel_id: aki-00000002",
            "ramdisk_id: ari-00000003",
            "security_groups: [default, web]",
            r#"meta: {role: web, owner: "Zo\u00eb \x7f"}"#,
            r##"user_data: "#cloud-config\n{}\n""##,
            "vendor_data: {motd: hello, n: [1, 2.5, null]}",
            "devices:",
            r#"- {type: nic, mac: "fa:16:3e:00:00:01", vlan: 1000, vf_trusted: true, bus: pci, address: "0000:00:02.0", tags: [foo]}"#,
            r#"- {type: nic, mac: "fa:16:3e:00:00:02", vlan: 7, bus: pci, address: "0000:00:03.0"}"#,
            r#"- {type: nic, mac: "fa:16:3e:00:00:03", bus: pci, address: "0000:00:05.0"}"#,
            r#"- {type: disk, serial: disk-vol-227, path: /dev/sda, bus: scsi, address: "0:0:0:1", tags: [baz]}"#,
            "- {type: disk, bus: usb}",
            "- {type: share, share_id: e4c9c7b4-7bb7-4d0a-9d7d-1c7f3a4a3b11, tag: data}",
        ]);
    }
    TestFile::yaml(&one_instance(&keys)).open()
}

/// Replaces a random seed by the word that was recorded for it, and checks its length.
fn without_seed(body: &str) -> String {
    const BEFORE: &str = r#""random_seed": ""#;
    let Some((before, rest)) = body.split_once(BEFORE) else {
        return body.to_owned();
    };
    let (seed, after) = rest.split_once('"').unwrap();
    assert_eq!(seed.len(), 684, "512 bytes in base64");
    format!("{before}{BEFORE}SEED\"{after}")
}

#[test]
fn every_answer_is_the_one_recorded_from_nova() {
    let (full, least) = (recorded_instance("full"), recorded_instance("least"));
    let mut compared = 0;
    for line in include_str!("nova-34.0.0.jsonl").lines() {
        let recorded: Recorded = serde_json::from_str(line).unwrap();
        let embedded = if recorded.instance == "full" {
            &full
        } else {
            &least
        };
        let context = format!("{} {}", recorded.instance, recorded.path);
        let got = get(embedded, &recorded.path);
        if recorded.status == 500 {
            // Where nova fails by its own fault, there is nothing.
            assert_eq!(got.status, StatusCode::NOT_FOUND, "{context}");
        } else {
            assert_eq!(got.status, recorded.status, "{context}");
            assert_eq!(got.kind, recorded.kind, "{context}");
            assert_eq!(got.len, got.body.len(), "{context}");
            assert_eq!(without_seed(&got.body), recorded.body, "{context}");
        }
        compared += 1;
    }
    assert_eq!(compared, 436);
}

#[test]
fn an_answer_to_head_has_the_headers_of_get_and_no_body() {
    let embedded = recorded_instance("full");
    for target in [
        "/openstack/latest/meta_data.json",
        "/latest/meta-data/",
        "/nothing",
    ] {
        let got = get(&embedded, target);
        let head = seen(embedded.answer(&request(ROUTER, "10.0.0.5", Method::HEAD, target)));
        assert_eq!(
            head,
            Seen {
                body: String::new(),
                ..got
            },
            "{target}"
        );
    }
}

#[test]
fn methods_make_no_difference_as_with_nova() {
    let embedded = recorded_instance("full");
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let target = "/openstack/latest/user_data";
        let answer = seen(embedded.answer(&request(ROUTER, "10.0.0.5", method, target)));
        assert_eq!(answer, get(&embedded, target));
    }
}

#[test]
fn an_error_page_is_in_the_form_that_is_accepted() {
    let embedded = recorded_instance("least");
    let mut ask = request(ROUTER, "10.0.0.5", Method::GET, "/nothing");
    let html = "<html>\n <head>\n  <title>404 Not Found</title>\n </head>\n <body>\n  \
                <h1>404 Not Found</h1>\n  The resource could not be found.<br /><br />\n\n\n\n \
                </body>\n</html>";
    let json = "{\"message\": \"The resource could not be found.<br /><br />\\n\\n\\n\", \
                \"code\": \"404 Not Found\", \"title\": \"Not Found\"}";
    let text = "404 Not Found\n\nThe resource could not be found.\n\n   ";
    for (accepted, kind, body) in [
        (Some("*/*"), "text/html; charset=UTF-8", html),
        (Some("text/html"), "text/html; charset=UTF-8", html),
        (Some("application/json"), "application/json", json),
        (Some("image/png"), "text/plain; charset=UTF-8", text),
        (None, "text/plain; charset=UTF-8", text),
    ] {
        ask.headers = accepted.map(accept).into_iter().collect();
        let got = seen(embedded.answer(&ask));
        assert_eq!(
            (got.status.as_u16(), &*got.kind, &*got.body),
            (404, kind, body)
        );
    }
}

#[test]
fn a_random_seed_is_never_told_twice() {
    let embedded = recorded_instance("least");
    let first = body(&embedded, "/openstack/latest/meta_data.json");
    let second = body(&embedded, "/openstack/latest/meta_data.json");
    assert_ne!(first, second);
    assert_eq!(without_seed(&first), without_seed(&second));
}

#[test]
fn what_is_not_declared_has_a_stable_default() {
    let file = TestFile::yaml(&one_instance(&[]));
    let embedded = file.open();
    assert_eq!(
        without_seed(&body(&embedded, "/openstack/latest/meta_data.json")),
        r#"{"uuid": "3867dd42-11c4-5ca9-812a-80e5108ccf42", "hostname": "web-1.novalocal", "name": "web-1", "launch_index": 0, "availability_zone": "nova", "random_seed": "SEED", "project_id": null, "devices": [], "dedicated_cpus": []}"#
    );
    assert_eq!(
        body(&embedded, "/latest/meta-data/instance-id"),
        "i-3867dd42"
    );
    assert_eq!(body(&embedded, "/latest/meta-data/ami-id"), "ami-00000000");
    assert_eq!(
        body(&embedded, "/latest/meta-data/security-groups"),
        "default"
    );
    assert_eq!(
        body(&embedded, "/latest/meta-data/block-device-mapping/root"),
        "/dev/vda"
    );
    assert_eq!(
        get(&embedded, "/latest/meta-data/instance-type").status,
        StatusCode::NOT_FOUND
    );
    // cloud-init takes an empty network_data.json for "configure no network", an absent one for
    // "use DHCP"; so there is none unless it is declared, and the listing does not name it.
    assert_eq!(
        get(&embedded, "/openstack/latest/network_data.json").status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        body(&embedded, "/openstack/latest"),
        "meta_data.json\npassword\nvendor_data.json\nvendor_data2.json"
    );
}

#[test]
fn several_keys_are_told_by_number() {
    let keys = "public_keys: {one: ssh-rsa A, cert: \"-----BEGIN CERTIFICATE-----\\nB\\n\"}";
    let embedded = TestFile::yaml(&one_instance(&[keys])).open();
    assert_eq!(
        body(&embedded, "/latest/meta-data/public-keys/"),
        "0=one\n1=cert"
    );
    assert_eq!(
        body(&embedded, "/latest/meta-data/public-keys/0/"),
        "openssh-key"
    );
    assert_eq!(
        body(&embedded, "/latest/meta-data/public-keys/1/openssh-key"),
        "-----BEGIN CERTIFICATE-----\nB"
    );
    let meta_data = body(&embedded, "/openstack/2012-08-10/meta_data.json");
    assert!(meta_data.contains(
        r#""keys": [{"name": "one", "type": "ssh", "data": "ssh-rsa A"}, {"name": "cert", "type": "x509", "#
    ));
}

#[test]
fn a_guest_without_an_ipv4_address_is_told_the_one_it_asked_from() {
    let text = one_instance(&[]).replace("10.0.0.5", "fe80::5, 2001:db8::5");
    let embedded = TestFile::yaml(&text).open();
    let target = "/latest/meta-data/local-ipv4";
    for guest in ["fe80::5", "2001:db8::5"] {
        let got = seen(embedded.answer(&request(ROUTER, guest, Method::GET, target)));
        assert_eq!(got.body, guest);
    }
}

#[test]
fn vendor_data_is_told_in_both_files() {
    let keys = [
        "vendor_data: {a: [1, true]}",
        "vendor_data2: {cloud: {b: é}}",
    ];
    let embedded = TestFile::yaml(&one_instance(&keys)).open();
    assert_eq!(
        body(&embedded, "/openstack/latest/vendor_data.json"),
        r#"{"a": [1, true]}"#
    );
    assert_eq!(
        body(&embedded, "/openstack/latest/vendor_data2.json"),
        r#"{"static": {"a": [1, true]}, "cloud": {"b": "\u00e9"}}"#
    );
}

#[test]
fn user_data_is_taken_from_text_base64_or_a_file() {
    for (key, expected) in [
        (
            "user_data: |\n          #!/bin/sh\n          true",
            "#!/bin/sh\ntrue\n",
        ),
        ("user_data: \"\"", ""),
        ("user_data_base64: \"IyEvYmlu\\nL3No\"", "#!/bin/sh"),
        ("user_data_file: boot.sh", "#!/bin/sh\nexit\n"),
    ] {
        let file = TestFile::yaml(&one_instance(&[key]));
        file.write_beside("boot.sh", "#!/bin/sh\nexit\n");
        let embedded = file.open();
        assert_eq!(body(&embedded, "/latest/user-data"), expected, "{key}");
        assert_eq!(
            body(&embedded, "/openstack/latest/user_data"),
            expected,
            "{key}"
        );
    }
}

/// Follows the listings as cloud-init's EC2 data source does, and counts the pages.
fn crawl(embedded: &Embedded, directory: &str) -> usize {
    body(embedded, directory)
        .lines()
        .map(
            |line| match (line.strip_suffix('/'), line.split_once('=')) {
                (Some(below), _) => crawl(embedded, &format!("{directory}{below}/")),
                (None, Some((number, _))) => {
                    assert!(
                        !body(embedded, &format!("{directory}{number}/openssh-key")).is_empty()
                    );
                    1
                }
                (None, None) => {
                    body(embedded, &format!("{directory}{line}"));
                    1
                }
            },
        )
        .sum()
}

#[test]
fn every_listed_page_is_there() {
    for (name, pages) in [("full", 19), ("least", 16)] {
        let embedded = recorded_instance(name);
        assert_eq!(crawl(&embedded, "/2009-04-04/meta-data/"), pages, "{name}");
        for version in body(&embedded, "/openstack").lines() {
            for file in body(&embedded, &format!("/openstack/{version}")).lines() {
                body(&embedded, &format!("/openstack/{version}/{file}"));
            }
        }
    }
}
