//! With the mounts and capabilities that docs/container.md names, and nothing else, the agent works.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::process::Command;

use metadata_proxy_tests::{
    Kind, MetadataAgent, Node,
    process::run,
    stage::{assert_served_twice, builder, traces_on_node, upstream},
};
use nix::mount::{MntFlags, umount2};

/// Makes a root in a mount namespace of its own, and starts there what the arguments say: the node's
/// directory, then the agent's binary and its arguments. The node's directory stands for /run/netns,
/// /sys/fs/bpf, /run/metadata-proxy, /var/lib/neutron and /etc/metadata-proxy, all of which are in it.
const CONTAINER: &str = r#"
set -e
node=$1; binary=$2; shift 2
root=$node/root
mkdir -p "$root"
mount -t tmpfs none "$root"
mkdir -p "$root/sys/fs/cgroup" "$root/proc" "$root$node"
for directory in /lib /lib64 /usr/lib; do
    [ -d "$directory" ] || continue
    mkdir -p "$root$directory"
    mount --rbind -o ro "$directory" "$root$directory"
done
mount --rbind /proc "$root/proc"
mount --rbind -o ro /sys/fs/cgroup "$root/sys/fs/cgroup"
mount --rbind "$node" "$root$node"
touch "$root/metadata-proxy"
mount --bind "$binary" "$root/metadata-proxy"
exec setpriv --bounding-set=-all,+sys_admin,+net_admin,+bpf,+net_bind_service,+dac_override,+sys_ptrace,+sys_chroot \
    chroot "$root" /metadata-proxy "$@"
"#;

/// The directory of namespaces as a mount of its own that others follow: `ip netns add` makes
/// /run/netns one.
struct Shared(String);

impl Shared {
    fn new(node: &Node) -> Self {
        let path = node.netns_dir().display().to_string();
        run(Command::new("mount").args(["--bind", &path, &path])).unwrap();
        run(Command::new("mount").args(["--make-shared", &path])).unwrap();
        Self(path)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0.as_str(), MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0);
        }
    }
}

fn node_of(node: &Node) -> String {
    node.directory().display().to_string()
}

#[test]
fn in_a_container_tenants_that_come_later_are_served_and_nothing_is_left() {
    let node = Node::new().unwrap();
    let _shared = Shared::new(&node);
    let upstream: MetadataAgent = upstream(&node);
    let directory = node_of(&node);
    let container = [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        CONTAINER,
        "sh",
    ];
    let mut agent = builder(&node, &upstream)
        .under(&[&container[..], &[&directory]].concat())
        .start()
        .unwrap();
    for kind in Kind::ALL {
        let tenant = metadata_proxy_tests::TenantFixture::new(&node, kind).unwrap();
        agent.wait_served(&tenant).unwrap();
        assert_served_twice(&tenant);
    }
    assert!(agent.stop().unwrap().success());
    assert_eq!(traces_on_node(&node), Vec::<String>::new());
}
