//! What may be declared.

use std::{fs, path::Path};

use super::{TestFile, body, one_instance, request, seen};
use crate::upstream::embedded::Embedded;

#[test]
fn the_example_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/instances.yaml");
    let embedded = Embedded::open(&path).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(embedded.instances(), 4);
}

#[test]
fn every_key_of_an_instance_is_in_the_example() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/instances.yaml");
    let example = fs::read_to_string(path).unwrap();
    let problems = TestFile::yaml(&one_instance(&["unknown: 1"])).problems();
    let (_, keys) = problems[0].split_once("may have: ").unwrap();
    for key in keys.split(", ") {
        assert!(
            [" ", "`"]
                .iter()
                .any(|before| example.contains(&format!("{before}{key}:"))),
            "{key}"
        );
    }
}

#[test]
fn toml_says_the_same() {
    let text = r#"
        [[tenants]]
        router = "6c3f1c9e-0d6b-4a57-9d0c-3f0f6d0c5a11"

        [[tenants.instances]]
        addresses = ["10.0.0.5"]
        name = "web-1"
        meta = { z = "1", a = "2" }
        vendor_data = { when = 1979-05-27, ratio = 0.5 }
    "#;
    let embedded = TestFile::named("instances.toml", text).open();
    let meta_data = body(&embedded, "/openstack/latest/meta_data.json");
    assert!(
        meta_data.contains(r#""meta": {"z": "1", "a": "2"}"#),
        "{meta_data}"
    );
    let vendor_data = body(&embedded, "/openstack/latest/vendor_data.json");
    assert_eq!(vendor_data, r#"{"when": "1979-05-27", "ratio": 0.5}"#);
}

#[test]
fn anchors_and_merge_keys_spare_repetition() {
    let text = "tenants:
  - router: 6c3f1c9e-0d6b-4a57-9d0c-3f0f6d0c5a11
    instances:
      - &web
        addresses: [10.0.0.5]
        name: web-1
        availability_zone: east
      - <<: *web
        addresses: [10.0.0.6]
        name: web-2
";
    let embedded = TestFile::yaml(text).open();
    let ask = request(
        super::ROUTER,
        "10.0.0.6",
        http::Method::GET,
        "/latest/meta-data/placement/availability-zone",
    );
    assert_eq!(seen(embedded.answer(&ask)).body, "east");
    assert_eq!(embedded.instances(), 2);
}

#[test]
fn words_that_only_look_like_something_else_stay_words() {
    let embedded = TestFile::yaml(&one_instance(&[
        "meta: {a: yes, b: 0755, c: 1_000, d: off}",
    ]))
    .open();
    let meta_data = body(&embedded, "/openstack/latest/meta_data.json");
    let meta = r#""meta": {"a": "yes", "b": "0755", "c": "1_000", "d": "off"}"#;
    assert!(meta_data.contains(meta), "{meta_data}");
}

#[test]
fn a_host_name_is_made_of_the_name() {
    for (name, hostname) in [
        ("Web Server_1.example", "web-server-1-example.novalocal"),
        ("-été!-", "t.novalocal"),
        (
            "日本",
            "server-3867dd42-11c4-5ca9-812a-80e5108ccf42.novalocal",
        ),
    ] {
        let text = one_instance(&[]).replace("name: web-1", &format!("name: \"{name}\""));
        assert_eq!(
            body(&TestFile::yaml(&text).open(), "/latest/meta-data/hostname"),
            hostname
        );
    }
}
