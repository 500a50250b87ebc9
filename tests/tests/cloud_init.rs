//! Guests set themselves up with real cloud-init, which finds its data source through the agent.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::{fs, path::PathBuf, thread};

use metadata_proxy_tests::{
    Agent, Kind, METADATA_V4, Node, TenantFixture,
    cloud_init::{Booted, Source, TOLD, boot},
};
use serde_json::{Value, json};

const KEY: &str = "ssh-ed25519 \
     AAAAC3NzaC1lZDI1NTE5AAAAIJXmhw+Qzk0vG3PqkG6WyW9kVxVhSDT2qkzPSy3Pm1Mv";

/// What is declared for the guest of a tenant, and looked for in it afterwards.
struct Instance {
    name: String,
    uuid: String,
    ec2_id: String,
    key: String,
    told: String,
}

impl Instance {
    fn of(number: usize) -> Self {
        Self {
            name: format!("vm-{number}"),
            uuid: format!("b65cee2f-8c69-4aeb-be2f-{number:012}"),
            ec2_id: format!("i-{number:08x}"),
            key: format!("{KEY} owner-{number}"),
            told: format!("this is for tenant {number}"),
        }
    }

    fn user_data(&self) -> String {
        let files = json!([{ "path": TOLD, "content": self.told }]);
        format!("#cloud-config\nwrite_files: {files}\n")
    }

    fn declared(&self, tenant: &TenantFixture) -> Value {
        let guest = tenant.guest();
        json!({
            tenant.kind.word(): tenant.id,
            "instances": [{
                "addresses": [guest.v4, guest.link_local],
                "name": self.name,
                "hostname": format!("{}.example.org", self.name),
                "uuid": self.uuid,
                "ec2_id": self.ec2_id,
                "public_keys": { "owner": self.key },
                "user_data": self.user_data(),
            }],
        })
    }

    fn assert_is(&self, booted: &Booted, source: Source) {
        let (name, cloud, id) = match source {
            Source::OpenStack | Source::OpenStackV6 => ("OpenStack", "openstack", &self.uuid),
            Source::Ec2 => ("Ec2", "ec2", &self.ec2_id),
        };
        let url = match source {
            Source::OpenStack | Source::Ec2 => METADATA_V4,
            Source::OpenStackV6 => "http://[fe80::a9fe:a9fe%eth0]",
        };
        // The last resort, which knows nothing, is always in the list of those to try.
        let sources = json!([name, "None"]);
        assert_eq!(
            booted.instance_data["merged_cfg"]["datasource_list"],
            sources
        );
        assert_eq!(booted.word("instance_id"), id);
        assert_eq!(booted.word("cloud_id"), cloud);
        assert_eq!(booted.word("subplatform"), format!("metadata ({url})"));
        assert_eq!(booted.hostname, self.name);
        assert_eq!(booted.authorized_keys.trim_end(), self.key);
        assert_eq!(booted.user_data, self.user_data());
        assert_eq!(booted.told, self.told);
    }
}

/// A node whose agent answers by itself, with one instance for each tenant.
struct Fixture {
    // Dropped in this order: the agent lets go of the tenants before they are removed.
    _agent: Agent,
    tenants: Vec<(TenantFixture, Instance)>,
    node: Node,
}

impl Fixture {
    fn new(kinds: &[Kind]) -> Self {
        let node = Node::new().unwrap();
        let tenants: Vec<_> = kinds
            .iter()
            .enumerate()
            .map(|(number, kind)| {
                let tenant = TenantFixture::new(&node, *kind).unwrap();
                (tenant, Instance::of(number))
            })
            .collect();
        let agent = Agent::builder(&node)
            .upstream_embedded(&declare(&node, &tenants))
            .start()
            .unwrap();
        for (tenant, _) in &tenants {
            agent.wait_served(tenant).unwrap();
        }
        Self {
            _agent: agent,
            tenants,
            node,
        }
    }

    /// Boots every guest, all at once, and looks at what became of each.
    fn boot_all(&self, source: Source) {
        thread::scope(|scope| {
            for (tenant, instance) in &self.tenants {
                scope.spawn(move || {
                    let booted = boot(&self.node, tenant.guest(), source).unwrap();
                    instance.assert_is(&booted, source);
                });
            }
        });
    }
}

fn declare(node: &Node, tenants: &[(TenantFixture, Instance)]) -> PathBuf {
    let declared: Vec<_> = tenants
        .iter()
        .map(|(tenant, instance)| instance.declared(tenant))
        .collect();
    let path = node.directory().join("instances.yaml");
    // JSON is YAML.
    fs::write(&path, json!({ "tenants": declared }).to_string()).unwrap();
    path
}

#[test]
fn a_guest_finds_out_that_it_is_on_openstack_and_which_instance_it_is() {
    Fixture::new(&[Kind::Router]).boot_all(Source::OpenStack);
}

#[test]
fn the_openstack_source_works_over_ipv6() {
    Fixture::new(&[Kind::Router]).boot_all(Source::OpenStackV6);
}

#[test]
fn the_ec2_source_works_too() {
    Fixture::new(&[Kind::Router]).boot_all(Source::Ec2);
}

#[test]
fn guests_with_the_same_addresses_each_find_their_own_instance() {
    let fixture = Fixture::new(&[Kind::Router, Kind::Router, Kind::Network, Kind::OvnNetwork]);
    let addresses = |(tenant, _): &(TenantFixture, Instance)| tenant.guest().v4;
    let first = addresses(&fixture.tenants[0]);
    assert!(fixture.tenants.iter().all(|its| addresses(its) == first));
    fixture.boot_all(Source::OpenStack);
    fixture.boot_all(Source::Ec2);
}

#[test]
fn nothing_that_a_guest_does_to_itself_reaches_this_machine() {
    let contents = || {
        [
            "/proc/sys/kernel/hostname",
            "/etc/hostname",
            "/etc/passwd",
            "/etc/resolv.conf",
        ]
        .map(|path| fs::read(path).ok())
    };
    let changed = || {
        ["/run/cloud-init", "/var/lib/cloud", "/home/guest", TOLD]
            .map(|path| fs::metadata(path).and_then(|its| its.modified()).ok())
    };
    let fixture = Fixture::new(&[Kind::Router]);
    let before = (contents(), changed());
    fixture.boot_all(Source::OpenStack);
    assert_eq!((contents(), changed()), before);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of_guest = fixture.tenants[0].0.guest().netns.name() + "-";
    assert!(!mounts.contains(&of_guest), "{mounts}");
}
