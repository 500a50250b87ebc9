//! What is told, with its place, of what may not be declared.

use std::fs;

use super::{TestFile, one_instance};
use crate::upstream::embedded::{Embedded, EmbeddedError};

/// Line of the first key that [`one_instance`] adds.
const FIRST: u64 = 6;

/// Asserts the one problem of an instance with `keys`.
fn assert_problem(keys: &[&str], line: u64, column: u64, message: &str) {
    let problems = TestFile::yaml(&one_instance(keys)).problems();
    assert_eq!(
        problems,
        [format!("{line}:{column}: {message}")],
        "{keys:?}"
    );
}

#[test]
fn toml_problems_have_their_place() {
    let file = TestFile::named("instances.toml", "[[tenants]]\nrouter = \"é\"  \nx = 1\n");
    assert_eq!(
        file.problems(),
        [
            "1:1: a tenant needs `instances`",
            "2:10: `router` must be a UUID like 6c3f1c9e-0d6b-4a57-9d0c-3f0f6d0c5a11, not `é`",
            "3:1: unknown key `x`; a tenant may have: router, network, ovn-network, instances",
        ]
    );
    let file = TestFile::named("instances.toml", "tenants = [\n  { é = 1, = }\n]\nb = \n");
    let problems = file.problems();
    assert!(problems.len() >= 2, "{problems:?}");
    assert!(
        problems[0].starts_with("2:5: not valid TOML: "),
        "{problems:?}"
    );
    assert!(problems.last().unwrap().starts_with("4:"), "{problems:?}");
}

#[test]
fn yaml_that_cannot_be_parsed_has_its_place() {
    for (text, place) in [
        ("tenants:\n  - router: [\n", "2:13: not valid YAML: "),
        ("tenants:\n\t- x\n", "2:2: not valid YAML: "),
        ("tenants: *nowhere\n", "1:10: not valid YAML: "),
        (
            "tenants: []\n---\ntenants: []\n",
            "3:1: there is a second document; a file holds one, so remove `---`",
        ),
        ("tenants: !secret []\n", "1:18: not valid YAML: "),
    ] {
        let problems = TestFile::yaml(text).problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(place), "{text:?}: {problems:?}");
    }
}

#[test]
fn a_file_that_is_not_there_or_not_text_is_told() {
    let file = TestFile::yaml("");
    let missing = file.directory.path().join("none.yaml");
    let error = Embedded::open(&missing).err().unwrap();
    let expected = format!(
        "cannot read {}: No such file or directory",
        missing.display()
    );
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert!(matches!(
        Embedded::open(file.directory.path()),
        Err(EmbeddedError::Unreadable { .. })
    ));
    fs::write(&file.path, b"tenants:\n  - \xff\n").unwrap();
    assert_eq!(file.problems(), ["2:1: this line is not UTF-8"]);
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let text = r#"tenants:
  - router: not-a-uuid
    instances: []
  - instances: []
  - subnet: 6c3f1c9e-0d6b-4a57-9d0c-3f0f6d0c5a11
    instances: []
  - network: 6c3f1c9e-0d6b-4a57-9d0c-3f0f6d0c5a11
    router: 6c3f1c9e-0d6b-4a57-9d0c-3f0f6d0c5a11
    instances: []
  - network: 6c3f1c9e-0d6b-4a57-9d0c-3f0f6d0c5a11
    instances:
      - addresses: [10.0.0.5, 10.0.0.0/24, fe80::1%eth0, "::ffff:10.0.0.5"]
        name: 10
      - addresses: [10.0.0.5]
        name: b
        uuid: b65cee2f-8c69-4aeb-be2f-f79742548fc2
        hostnam: b
      - addresses: []
        name: c
        uuid: B65CEE2F8C694AEBBE2FF79742548FC2
      - web
      - name:
  - network: 6c3f1c9e-0d6b-4a57-9d0c-3f0f6d0c5a11
    instances: {}
tenant: []
"#;
    let network = "network/6c3f1c9e-0d6b-4a57-9d0c-3f0f6d0c5a11";
    let keys = "addresses, uuid, name, hostname, vendor_data, vendor_data2, project_id, \
                availability_zone, launch_index, public_keys, meta, devices, dedicated_cpus, \
                user_data, user_data_file, user_data_base64, network_data, flavor, ec2_id, ami_id, \
                kernel_id, ramdisk_id, reservation_id, security_groups, block_device_mapping, \
                public_ipv4";
    let expected = [
        "2:13: `router` must be a UUID like 6c3f1c9e-0d6b-4a57-9d0c-3f0f6d0c5a11, not `not-a-uuid`"
            .to_owned(),
        "4:5: a tenant needs one of `router`, `network`, `ovn-network`".to_owned(),
        "5:5: a tenant needs one of `router`, `network`, `ovn-network`".to_owned(),
        "5:5: unknown key `subnet`; a tenant may have: router, network, ovn-network, instances"
            .to_owned(),
        "7:5: a tenant needs one of `router`, `network`, `ovn-network`".to_owned(),
        "12:31: an address must be IPv4 or IPv6, without prefix length or zone, not `10.0.0.0/24`"
            .to_owned(),
        "12:44: an address must be IPv4 or IPv6, without prefix length or zone, not `fe80::1%eth0`"
            .to_owned(),
        "12:58: 10.0.0.5 is declared twice in one tenant, first at 12:21".to_owned(),
        "13:15: `name` must be text, not a number; put it in quotes".to_owned(),
        "14:21: 10.0.0.5 is declared twice in one tenant, first at 12:58".to_owned(),
        format!("17:9: unknown key `hostnam`; an instance may have: {keys}"),
        "18:9: an instance needs at least one of `addresses`".to_owned(),
        "18:9: instance b65cee2f-8c69-4aeb-be2f-f79742548fc2 is declared twice in one tenant, \
         first at 14:9; list all its addresses in one place"
            .to_owned(),
        "21:9: an instance must be a table of keys, not text".to_owned(),
        "22:9: `name` has no value; give it one or remove the key".to_owned(),
        "22:9: an instance needs `addresses`".to_owned(),
        format!("23:5: {network} is declared twice, first at 10:5"),
        "24:16: `instances` must be a list, not a table".to_owned(),
        "25:1: unknown key `tenant`; the file may have: tenants".to_owned(),
    ];
    let mut problems = TestFile::yaml(text).problems();
    problems.sort_by_key(|problem| {
        let mut parts = problem.split([':', ' ']);
        let mut number = || parts.next().unwrap().parse::<u32>().unwrap();
        (number(), number(), problem.clone())
    });
    assert_eq!(problems, expected);
}

#[test]
fn each_value_has_its_own_demands() {
    for (key, column, message) in [
        (
            "launch_index: -1",
            23,
            "`launch_index` must be a whole number from 0 to 4294967295",
        ),
        (
            "launch_index: one",
            23,
            "`launch_index` must be a whole number from 0 to 4294967295",
        ),
        (
            "hostname: a b",
            19,
            "`hostname` must be a name of letters, digits, `-`, `_` and `.`, at most 255 of them, not `a b`",
        ),
        ("flavor: \"\"", 17, "`flavor` must not be empty"),
        (
            "flavor: \"a\\nb\"",
            17,
            "`flavor` must be one line without control characters",
        ),
        (
            "project_id: 1e9",
            21,
            "`project_id` must be text, not a number; put it in quotes",
        ),
        (
            "meta: {a: true}",
            19,
            "`a` in `meta` must be text, not a boolean; put it in quotes",
        ),
        (
            "meta: [a]",
            15,
            "`meta` must be a table of keys, not a list",
        ),
        (
            "ec2_id: i-1",
            17,
            "`ec2_id` must be `i-` and 8 to 17 hexadecimal digits, not `i-1`",
        ),
        (
            "ami_id: i-00000001",
            17,
            "`ami_id` must be `ami-` and 8 to 17 hexadecimal digits, not `i-00000001`",
        ),
        (
            "public_ipv4: fe80::1",
            22,
            "`public_ipv4` must be an IPv4 address, not `fe80::1`",
        ),
        (
            "security_groups: default",
            26,
            "`security_groups` must be a list, not text",
        ),
        (
            "dedicated_cpus: [a]",
            26,
            "a CPU must be a whole number from 0 to 65535",
        ),
        (
            "public_keys: {\"a\\n\": b}",
            23,
            "the name of a key must be one line that is not empty",
        ),
        (
            "vendor_data: []",
            22,
            "`vendor_data` must be a table, not a list",
        ),
        (
            "vendor_data2: {static: 1}",
            24,
            "`static` is the place of what `vendor_data` gives",
        ),
        (
            "network_data: {link: []}",
            24,
            "unknown key `link`; network data may have: links, networks, services",
        ),
        (
            "network_data: {links: {}}",
            31,
            "`links` must be a list, not a table",
        ),
    ] {
        assert_problem(&[key], FIRST, column, message);
    }
}

#[test]
fn user_data_is_given_once_and_can_be_read() {
    let twice = "user data is given more than once; keep one of `user_data`, `user_data_file`, `user_data_base64`";
    assert_problem(&["user_data: a", "user_data_base64: YQ=="], 4, 9, twice);
    let text = one_instance(&["user_data_file: none.sh"]);
    let problems = TestFile::yaml(&text).problems();
    assert_eq!(
        problems,
        [
            "6:25: cannot read `none.sh`: No such file or directory (os error 2); \
          a relative path counts from the directory of this file"
        ]
    );
    assert_problem(
        &["user_data_base64: \"!\""],
        FIRST,
        27,
        "`user_data_base64` must be base64: Invalid symbol 33, offset 0.",
    );
    let long = "x".repeat((1 << 20) + 1);
    assert_problem(
        &[&format!("user_data: {long}")],
        4,
        9,
        "user data may have 1048576 bytes, and has 1048577",
    );
}

#[test]
fn devices_have_their_own_demands() {
    for (key, column, message) in [
        ("devices: [{}]", 19, "a device needs `type`"),
        (
            "devices: [{type: gpu}]",
            19,
            "`gpu` is no type; a device is nic, disk or share",
        ),
        ("devices: [{type: nic}]", 19, "a device needs `mac`"),
        (
            "devices: [{type: nic, mac: x}]",
            36,
            "`mac` must be a MAC address like fa:16:3e:00:00:01, not `x`",
        ),
        (
            "devices: [{type: disk, bus: nvme}]",
            37,
            "`bus` must be one of pci, usb, scsi, ide, xen, none, not `nvme`",
        ),
        (
            "devices: [{type: disk, mac: x}]",
            32,
            "unknown key `mac`; a device may have: type, serial, path, bus, address, tags",
        ),
    ] {
        assert_problem(&[key], FIRST, column, message);
    }
}

#[test]
fn keys_written_twice_are_told_at_any_depth() {
    for (key, column, message) in [
        ("name: again", 9, "`name` is written twice, first at 5:9"),
        (
            "meta: {a: b, a: c}",
            22,
            "`a` is written twice, first at 6:16",
        ),
        (
            "vendor_data: {a: [{b: 1, b: 2}]}",
            34,
            "`b` is written twice, first at 6:28",
        ),
    ] {
        assert_problem(&[key], FIRST, column, message);
    }
}
