//! Judges facts. Pure, but for the last one, which asks whether an agent runs already.

use std::{io, path::Path};

use super::{Item, facts::NodeFacts};
use crate::{
    admin::connect_now,
    cli::{exit::Exit, privileges},
    config::{Config, EngineChoice},
    kernel::{AttachType, Engine, Probe, Refusal, choose_engine},
};

/// What holds whatever the configuration says, except where it says what is needed.
pub(super) fn of_node(facts: &NodeFacts, config: &Config) -> Vec<Item> {
    vec![
        capabilities(facts, config),
        engine(facts, config),
        ipv6(facts),
        inotify(facts),
    ]
}

/// What depends on the configuration.
pub(super) fn of_configuration(facts: &NodeFacts, config: &Config) -> Vec<Item> {
    vec![
        connect_hooks(facts, config),
        bpffs(facts, config),
        grace_periods(facts, config),
        open_files(facts, config),
    ]
}

fn capabilities(facts: &NodeFacts, config: &Config) -> Item {
    let lacking = facts.capabilities.lacking(config);
    if lacking.is_empty() {
        return Item::ok("capabilities", "all that are needed are effective");
    }
    Item::failure(
        "capabilities",
        format!("missing: {}", privileges::list(&lacking)),
        "the agent cannot do its work without them, and some of this check neither",
        "run it as root, or give it these capabilities",
    )
    .exits(Exit::Privilege)
}

fn engine(facts: &NodeFacts, config: &Config) -> Item {
    const CHECK: &str = "engine";
    let decision = match choose_engine(&facts.engine, &config.steering) {
        Ok(decision) => decision,
        Err(refusal) => {
            let remedy = match refusal {
                Refusal::NoNamespaceCookie { .. } => "run a later kernel",
                Refusal::NotHere { .. } => {
                    "set steering.engine to \"auto\", or give the node what is missing"
                }
            };
            let item = Item::failure(CHECK, "none", refusal.to_string(), remedy);
            // What could not be asked for lack of privileges says nothing about the node.
            return if wants_unknown(facts, config) {
                item.exits(Exit::Privilege)
            } else {
                item
            };
        }
    };
    let kernel = &facts.engine.kernel;
    let found = match decision.attach {
        Some(attach) => format!("{} by {attach} on Linux {kernel}", decision.engine),
        None => format!("{} on Linux {kernel}", decision.engine),
    };
    if wants_unknown(facts, config) && decision.engine != Engine::Tc {
        return Item::failure(
            CHECK,
            "cannot be told",
            decision.reason,
            "check as root, as the agent will run",
        )
        .exits(Exit::Privilege);
    }
    match (decision.engine, decision.attach, &facts.engine.clsact) {
        (Engine::Tc, Some(AttachType::Clsact), Probe::Unknown(why)) => Item::warning(
            CHECK,
            found,
            format!("{why}; without them tenants will fail"),
            "if they do, load the modules sch_ingress and cls_bpf, or set steering.engine",
        ),
        (Engine::Bind, ..) if config.steering.engine == EngineChoice::Auto => Item::warning(
            CHECK,
            found,
            format!(
                "{}; guests are served only where the metadata address is local or is redirected \
                 by Neutron's rules",
                decision.reason
            ),
            "give the node what is missing, or set steering.engine to \"bind\" if that is meant",
        ),
        _ => Item::ok(CHECK, format!("{found}: {}", decision.reason)),
    }
}

/// Whether the engine that is wished for could not be asked about.
fn wants_unknown(facts: &NodeFacts, config: &Config) -> bool {
    let unknown = |probe: &Probe| matches!(probe, Probe::Unknown(_));
    match config.steering.engine {
        EngineChoice::Auto | EngineChoice::Tc => unknown(&facts.engine.bpf_tc),
        EngineChoice::SkLookup => unknown(&facts.engine.bpf_sk_lookup),
        EngineChoice::Bind => false,
    }
}

fn ipv6(facts: &NodeFacts) -> Item {
    if facts.ipv6 {
        return Item::ok("IPv6", "there");
    }
    Item::warning(
        "IPv6",
        "not in this kernel",
        "guests are served over IPv4 only",
        "nothing, if no guest asks over IPv6; else boot without ipv6.disable=1",
    )
}

fn inotify(facts: &NodeFacts) -> Item {
    match &facts.inotify {
        Probe::Yes => Item::ok("inotify", "there"),
        Probe::No(why) | Probe::Unknown(why) => Item::warning(
            "inotify",
            format!("cannot be used: {why}"),
            "new tenants are found by the periodic scan only",
            "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches",
        ),
    }
}

fn connect_hooks(facts: &NodeFacts, config: &Config) -> Item {
    const CHECK: &str = "connect hooks";
    let steering = &config.steering;
    if !steering.connect_hooks {
        return Item::ok(CHECK, "off by steering.connect_hooks");
    }
    if let Probe::No(why) = &facts.engine.bpf_connect {
        return Item::warning(
            CHECK,
            "not to be had",
            format!("{why}; processes inside tenant namespaces are not served through them"),
            "set steering.connect_hooks = false, or run a kernel with CONFIG_CGROUP_BPF",
        );
    }
    let on_cgroup2 =
        |path: &Path| path.is_dir() && facts.mounts.file_system_of(path) == Some("cgroup2");
    match (&steering.cgroup, facts.mounts.cgroup2()) {
        (Some(cgroup), _) if on_cgroup2(cgroup) => {
            Item::ok(CHECK, format!("would be attached to {}", cgroup.display()))
        }
        (Some(cgroup), _) => Item::failure(
            CHECK,
            format!("{} is no cgroup of cgroup2", cgroup.display()),
            "the hooks have nothing to be attached to",
            "make it, or set steering.cgroup to one that is there",
        ),
        (None, Some(root)) => Item::ok(
            CHECK,
            format!(
                "would be attached to the root of cgroup2 at {}",
                root.display()
            ),
        ),
        (None, None) => Item::warning(
            CHECK,
            "cgroup2 is not mounted",
            "processes inside tenant namespaces are not served through them",
            "mount cgroup2, or set steering.connect_hooks = false",
        ),
    }
}

fn bpffs(facts: &NodeFacts, config: &Config) -> Item {
    let steering = &config.steering;
    let directory = steering.bpffs_dir.display();
    if steering.engine == EngineChoice::Bind && !steering.connect_hooks {
        return Item::ok("bpffs", "not needed");
    }
    match facts.mounts.bpffs_missing_for(&steering.bpffs_dir) {
        None => Item::ok(
            "bpffs",
            format!("mounted; maps and links would be pinned in {directory}"),
        ),
        Some(point) => Item::ok(
            "bpffs",
            format!("would be mounted at {}, for {directory}", point.display()),
        ),
    }
}

fn grace_periods(facts: &NodeFacts, config: &Config) -> Item {
    const CHECK: &str = "grace periods";
    let decision = choose_engine(&facts.engine, &config.steering);
    if !decision.is_ok_and(|decision| decision.attach == Some(AttachType::Tcx)) {
        return Item::ok(CHECK, "nothing waits for them");
    }
    if !config.steering.rcu_expedited {
        return Item::ok(CHECK, "as they are, by steering.rcu_expedited");
    }
    match &facts.short_grace_periods {
        Probe::Yes => Item::ok(CHECK, "would be short while a device is attached to"),
        Probe::No(why) | Probe::Unknown(why) => Item::warning(
            CHECK,
            format!("cannot be made short: {why}"),
            "attaching to a device takes some 20 ms, and all other changes of devices wait meanwhile",
            "let the agent write /sys/kernel/rcu_expedited, or set steering.rcu_expedited = false \
             if ordinary grace periods are meant",
        ),
    }
}

fn open_files(facts: &NodeFacts, config: &Config) -> Item {
    const CHECK: &str = "open files";
    // A listener, a netlink socket and a handle to the namespace for each tenant, and one more listener
    // where its configuration asks for one; a socket for each connection and one to the upstream for
    // those in flight; the rest is the agent's own.
    const PER_TENANT: u64 = 4;
    const OWN: u64 = 1024;
    let connections = u64::try_from(config.limits.connections).unwrap_or(u64::MAX);
    let tenants = u64::from(config.steering.max_tenants);
    let needed = (PER_TENANT * tenants)
        .saturating_add(connections)
        .saturating_add(OWN);
    let limit = facts.open_files;
    if limit >= needed {
        return Item::ok(CHECK, format!("at most {limit}; {needed} may be needed"));
    }
    let bearable = limit.saturating_sub(connections.saturating_add(OWN)) / PER_TENANT;
    Item::warning(
        CHECK,
        format!("at most {limit}; {needed} may be needed"),
        format!(
            "with all limits.connections taken, files are left for about {bearable} of {tenants} \
             steering.max_tenants"
        ),
        format!("set LimitNOFILE={needed} in the unit, or lower these two"),
    )
}

/// Whether an agent runs already.
pub(super) fn admin_socket(config: &Config) -> Item {
    const CHECK: &str = "admin socket";
    let socket = &config.admin.socket;
    let answers = || {
        Item::warning(
            CHECK,
            format!("an agent answers on {}", socket.display()),
            "a second one would not start",
            "nothing, if it is the one that is meant",
        )
    };
    match connect_now(socket) {
        Ok(_) => answers(),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => answers(),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Item::failure(
            CHECK,
            format!("{} may not be used by this user", socket.display()),
            "it cannot be told whether an agent runs",
            "check as root",
        )
        .exits(Exit::Privilege),
        Err(_) => Item::ok(
            CHECK,
            format!("free; would be made at {}", socket.display()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::{check::Verdict, privileges::Capabilities},
        kernel::{EngineFacts, Mounts},
    };

    /// A node that lacks nothing.
    fn node() -> NodeFacts {
        NodeFacts {
            engine: EngineFacts {
                kernel: "6.18.0".parse().unwrap(),
                netns_cookie: Probe::Yes,
                bpf_tc: Probe::Yes,
                bpf_sk_lookup: Probe::Yes,
                bpf_connect: Probe::Yes,
                clsact: Probe::Yes,
            },
            capabilities: Capabilities::from_status("CapEff:\tffffffffffffffff").unwrap(),
            mounts: Mounts::parse(
                b"1 1 0:1 / / rw - ext4 x rw\n2 1 0:2 / /sys/fs/cgroup rw - cgroup2 x rw\n\
                  3 1 0:3 / /sys/fs/bpf rw - bpf x rw\n",
            ),
            ipv6: true,
            open_files: 1 << 20,
            inotify: Probe::Yes,
            short_grace_periods: Probe::Yes,
        }
    }

    fn all(facts: &NodeFacts, config: &Config) -> Vec<Item> {
        [of_node(facts, config), of_configuration(facts, config)].concat()
    }

    /// What is not as it should be: check, verdict, exit code of a failure.
    fn wrong(facts: &NodeFacts, config: &Config) -> Vec<(&'static str, Verdict, Exit)> {
        all(facts, config)
            .into_iter()
            .filter(|item| item.verdict != Verdict::Ok)
            .map(|item| {
                assert!(item.why.is_some() && item.remedy.is_some(), "{item:?}");
                (item.check, item.verdict, item.exit)
            })
            .collect()
    }

    #[test]
    fn a_node_that_lacks_nothing_is_told_what_would_be_done() {
        let items = all(&node(), &Config::default());
        let found = |check| {
            items
                .iter()
                .find(|item| item.check == check)
                .unwrap()
                .found
                .as_str()
        };
        assert_eq!(wrong(&node(), &Config::default()), []);
        assert_eq!(
            found("engine"),
            "tc by tcx on Linux 6.18.0: this kernel has all it needs"
        );
        assert!(found("connect hooks").contains("root of cgroup2 at /sys/fs/cgroup"));
        assert!(found("bpffs").contains("pinned in /sys/fs/bpf/metadata-proxy"));
    }

    #[test]
    fn an_old_kernel_is_a_node_that_cannot_run_the_agent() {
        let mut facts = node();
        facts.engine.netns_cookie = Probe::No("Protocol not available".into());
        assert_eq!(
            wrong(&facts, &Config::default()),
            [("engine", Verdict::Failure, Exit::Node)]
        );
    }

    #[test]
    fn missing_privileges_are_not_blamed_on_the_node() {
        let mut facts = node();
        facts.capabilities = Capabilities::from_status("CapEff:\t0").unwrap();
        for probe in [
            &mut facts.engine.bpf_tc,
            &mut facts.engine.bpf_sk_lookup,
            &mut facts.engine.bpf_connect,
        ] {
            *probe = Probe::Unknown("not permitted".into());
        }
        let mut config = Config::default();
        let expected = [
            ("capabilities", Verdict::Failure, Exit::Privilege),
            ("engine", Verdict::Failure, Exit::Privilege),
        ];
        for engine in [EngineChoice::Auto, EngineChoice::Tc, EngineChoice::SkLookup] {
            config.steering.engine = engine;
            assert_eq!(wrong(&facts, &config), expected);
        }
    }

    #[test]
    fn what_limits_service_is_a_warning() {
        let facts = NodeFacts {
            mounts: Mounts::default(),
            ipv6: false,
            open_files: 22_000,
            inotify: Probe::No("Too many open files".into()),
            short_grace_periods: Probe::No("/sys/kernel/rcu_normal is on".into()),
            ..node()
        };
        let warned: Vec<_> = wrong(&facts, &Config::default())
            .into_iter()
            .map(|(check, verdict, _)| {
                assert_eq!(verdict, Verdict::Warning);
                check
            })
            .collect();
        let expected = [
            "IPv6",
            "inotify",
            "connect hooks",
            "grace periods",
            "open files",
        ];
        assert_eq!(warned, expected);
    }

    #[test]
    fn a_cgroup_that_is_none_is_a_failure() {
        let mut config = Config::default();
        config.steering.cgroup = Some("/sys/fs/cgroup/nonexistent".into());
        let expected = [("connect hooks", Verdict::Failure, Exit::Node)];
        assert_eq!(wrong(&node(), &config), expected);
        config.steering.cgroup = Some("/".into());
        assert_eq!(wrong(&node(), &config), expected);
    }

    #[test]
    fn only_an_engine_that_was_not_wished_for_is_a_warning() {
        let mut facts = node();
        facts.engine.bpf_tc = Probe::No("none".into());
        facts.engine.bpf_sk_lookup = Probe::No("none".into());
        let mut config = Config::default();
        assert_eq!(
            wrong(&facts, &config),
            [("engine", Verdict::Warning, Exit::Ok)]
        );
        config.steering.engine = EngineChoice::Bind;
        assert_eq!(wrong(&facts, &config), []);
    }
}
