//! Takes away whatever the agent has put somewhere, one thing after the other, while guests ask.

mod damage;

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use metadata_proxy_tests::{
    Agent, Kind, MetadataAgent, Node, TenantFixture, agent::bpffs_dir, stage, tenant_map, wait_for,
};
use nix::mount::{MntFlags, umount2};
use uuid::Uuid;

use self::damage::{DAMAGE, Damage, Notice, ip};
use super::{
    asking::{Asking, Seen},
    process::processor_time,
};
use crate::{figures::Figures, plan::Plan};

/// What netlink or inotify tells is put right within this, on slow and busy machines.
const AT_ONCE: Duration = Duration::from_secs(2);
/// How long it may take until a thousand namespaces that were deleted are let go.
const ALL_LEAVE_WITHIN: Duration = Duration::from_mins(2);
/// More tenants than are there besides the crowd.
const LEFT: u64 = 10;
/// How long the counters are watched after a repair, for one that is counted twice.
const SETTLED: Duration = Duration::from_millis(500);

/// A node with an agent that must repair.
struct Scene {
    agent: Agent,
    /// Held until the agent has ended.
    _upstream: MetadataAgent,
    /// What the agent mounted after the node's own was gone.
    _mounted: Mounted,
    node: Node,
    interval: Duration,
}

/// Unmounts what the agent mounted; the node would not know of it.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // Not there, unless the drill came so far.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

impl Scene {
    fn new(interval: Duration) -> Result<Self> {
        let node = Node::new()?;
        let upstream = MetadataAgent::builder()
            .workers(4)
            .forgetful()
            .start(&node.directory().join("agent"))?;
        let agent = stage::builder(&node, &upstream)
            .set("audit.interval", format!("\"{}s\"", interval.as_secs()))
            .set(
                "audit.connect_interval",
                format!("\"{}s\"", 6 * interval.as_secs()),
            )
            // The scan must not come to the audit's help.
            .set("discovery.scan_interval", "\"1h\"")
            .set("log.level", "\"info\"")
            .set("log.access", "false")
            .start()?;
        Ok(Self {
            agent,
            _upstream: upstream,
            _mounted: Mounted(bpffs_dir(&node)),
            node,
            interval,
        })
    }

    fn repairs(&self, what: &str) -> Result<u64> {
        let status = self.agent.admin_json("/v1/status")?;
        status["audit"]["repairs"][what]
            .as_u64()
            .with_context(|| format!("no count of {what}"))
    }

    fn steer_pin(&self, tenant: &TenantFixture) -> Result<String> {
        let cookie = tenant_map::cookie(&tenant.netns)?;
        let device = tenant.subnets[0].device.clone();
        let index = tenant
            .netns
            .run(|| Ok(nix::net::if_::if_nametoindex(device.as_str())?))?;
        let pin = bpffs_dir(&self.node).join(format!("steer-{cookie}-{index}"));
        Ok(pin.display().to_string())
    }

    /// How many lines of the log tell of a repair.
    fn told(&self) -> usize {
        let log = self.agent.log();
        log.lines()
            .filter(|line| line.contains("somebody took away"))
            .count()
    }

    fn within(&self, notice: Notice) -> Duration {
        match notice {
            Notice::Event => AT_ONCE,
            // Within the period, and then a moment for the work itself on a busy machine.
            Notice::Audit => self.interval + AT_ONCE,
        }
    }
}

/// Runs the drill.
pub(crate) fn run(plan: &Plan) -> Result<Figures> {
    let mut figures = Figures::default();
    let interval = plan.choose(Duration::from_secs(2), Duration::from_secs(10));
    let scene = Scene::new(interval)?;
    let tenants: Vec<_> = (0..plan.choose(3, 6))
        // All routers: those have everything that can be taken away.
        .map(|_| TenantFixture::new(&scene.node, Kind::Router))
        .collect::<Result<_>>()?;
    for tenant in &tenants {
        scene.agent.wait_served(tenant)?;
    }
    for damage in DAMAGE {
        repair(&scene, &tenants, damage, &mut figures).with_context(|| damage.what.to_owned())?;
    }
    flush(&scene, &mut figures)?;
    namespace_made_anew(&scene, &mut figures)?;
    idle(&scene, plan, &mut figures)?;
    Ok(figures)
}

/// Does one thing, and waits until it is put right.
fn repair(
    scene: &Scene,
    tenants: &[TenantFixture],
    damage: &Damage,
    figures: &mut Figures,
) -> Result<()> {
    let victim = &tenants[0];
    let before: Vec<u64> = damage
        .repairs
        .iter()
        .map(|what| scene.repairs(what))
        .collect::<Result<_>>()?;
    let told_before = scene.told();
    thread::scope(|scope| {
        let asking: Vec<_> = tenants
            .iter()
            .map(|tenant| Asking::start(scope, tenant))
            .collect();
        let start = Instant::now();
        (damage.do_it)(scene, victim)?;
        let within = scene.within(damage.notice);
        let repaired = wait_for(damage.what, within, || {
            for (what, before) in damage.repairs.iter().zip(&before) {
                if scene.repairs(what)? <= *before {
                    return Ok(None);
                }
            }
            Ok(Some(start.elapsed()))
        });
        figures.demand(
            repaired.is_ok(),
            format!("{}: put back within {within:?}", damage.what),
        );
        let took = repaired.unwrap_or(within);
        let done = Instant::now();
        let served = wait_for("service", AT_ONCE + AT_ONCE, || {
            Ok(asking
                .iter()
                .all(|asking| asking.served_since(done))
                .then_some(()))
        });
        figures.demand(
            served.is_ok(),
            format!("{}: everybody is served again", damage.what),
        );
        thread::sleep(SETTLED);
        let seen: Vec<Seen> = asking.into_iter().map(Asking::stop).collect();
        judge(damage, &seen, took, figures);
        for (what, before) in damage.repairs.iter().zip(&before) {
            let count = scene.repairs(what)? - before;
            let expected = match (*what, damage.is_of_one_tenant) {
                ("pin", false) => tenants.len() as u64,
                // TENANTS and OUTCOMES.
                ("map", false) if damage.repairs.len() > 1 => 2,
                _ => 1,
            };
            figures.demand(
                count == expected,
                format!(
                    "{}: {what} is counted {expected} times, not {count}",
                    damage.what
                ),
            );
        }
        let told = scene.told() - told_before;
        let expected = match (damage.repairs, damage.is_of_one_tenant) {
            // Nothing was taken away, unless the kernel took the device's addresses meanwhile.
            ([], _) => told,
            // What all share, and then all pins.
            (repairs, false) if repairs.contains(&"pin") => 2,
            _ => 1,
        };
        figures.demand(
            told == expected,
            format!(
                "{}: told in {expected} lines of the log, not {told}",
                damage.what
            ),
        );
        Ok(())
    })
}

fn judge(damage: &Damage, seen: &[Seen], took: Duration, figures: &mut Figures) {
    let wrong: usize = seen.iter().map(|seen| seen.wrong).sum();
    figures.demand(
        wrong == 0,
        format!("{}: {wrong} answers of another tenant", damage.what),
    );
    if damage.is_of_one_tenant {
        let others: usize = seen[1..].iter().map(|seen| seen.unserved).sum();
        figures.demand(
            others == 0,
            format!("{}: {others} requests of other tenants failed", damage.what),
        );
    }
    if damage.repairs.contains(&"pin") {
        let unserved: usize = seen.iter().map(|seen| seen.unserved).sum();
        figures.demand(
            unserved == 0,
            format!(
                "{}: {unserved} requests failed though nothing is detached",
                damage.what
            ),
        );
    }
    figures.note(
        damage.what,
        format!(
            "repaired in {:.2} s; of its guest's requests {} served, {} not, {} wrong",
            took.as_secs_f64(),
            seen[0].served,
            seen[0].unserved,
            seen[0].wrong
        ),
    );
}

/// The whole local table is flushed: what is ours comes back, whatever becomes of the rest.
fn flush(scene: &Scene, figures: &mut Figures) -> Result<()> {
    const WHAT: &str = "the local table is flushed";
    let tenant = TenantFixture::new(&scene.node, Kind::Router)?;
    scene.agent.wait_served(&tenant)?;
    let before = scene.repairs("route")?;
    let start = Instant::now();
    ip(&tenant, "route flush table local")?;
    let back = wait_for(WHAT, AT_ONCE, || {
        let routes = tenant.netns.ip("route show table local")?;
        Ok(routes.contains("169.254.169.254").then(|| start.elapsed()))
    });
    figures.demand(back.is_ok(), format!("{WHAT}: the route is back"));
    figures.demand(scene.repairs("route")? > before, format!("{WHAT}: counted"));
    figures.note(
        WHAT,
        format!("repaired in {:.2} s", back.unwrap_or(AT_ONCE).as_secs_f64()),
    );
    Ok(())
}

/// A namespace is deleted and made again under its name.
fn namespace_made_anew(scene: &Scene, figures: &mut Figures) -> Result<()> {
    const WHAT: &str = "the namespace is deleted and made anew";
    let id = Uuid::new_v4();
    let make = || {
        TenantFixture::builder(Kind::Router)
            .id(id)
            .build(&scene.node)
    };
    let first = make()?;
    scene.agent.wait_served(&first)?;
    drop(first);
    let start = Instant::now();
    let second = make()?;
    scene.agent.wait_served(&second)?;
    let took = start.elapsed();
    let reply = second
        .guest()
        .curl(metadata_proxy_tests::METADATA_V4, &[])?;
    figures.demand(
        reply.text() == stage::told(&second, second.guest().v4),
        format!("{WHAT}: served as itself"),
    );
    figures.note(
        WHAT,
        format!("served {:.2} s after it was begun", took.as_secs_f64()),
    );
    Ok(())
}

/// What the audit costs a node on which nothing happens.
fn idle(scene: &Scene, plan: &Plan, figures: &mut Figures) -> Result<()> {
    let count = plan.choose(100, 1000);
    let crowd: Vec<_> = (0..count)
        .map(|_| {
            let tenant = TenantFixture::builder(Kind::Router)
                .guests(0)
                .build(&scene.node)?;
            let device = format!("qr-{}", &tenant.id.simple().to_string()[..11]);
            let lines = [
                format!("link add {device} type veth peer name other"),
                format!("link set {device} up"),
                format!("addr add 10.0.0.1/24 dev {device}"),
            ];
            tenant.netns.ip_batch(&lines.join("\n"))?;
            Ok(tenant)
        })
        .collect::<Result<Vec<_>>>()?;
    let all = |key: &str| -> Result<bool> {
        let status = scene.agent.admin_json("/v1/status")?;
        Ok(status["audit"][key].as_u64() >= Some(count))
    };
    wait_for("proof of all tenants", scene.interval * 8, || {
        Ok(all("proved")?.then_some(()))
    })?;
    let faulty = scene.agent.admin_json("/v1/status")?["audit"]["faulty"].as_u64();
    figures.demand(faulty == Some(0), format!("{faulty:?} tenants are faulty"));
    let length = scene.interval * 3;
    let before = processor_time(scene.agent.pid())?;
    thread::sleep(length);
    let used = processor_time(scene.agent.pid())?.saturating_sub(before);
    let share = 100.0 * used.as_secs_f64() / length.as_secs_f64();
    figures.note(
        "idle with the audit",
        format!(
            "{share:.2} % of a core with {count} tenants, each audited every {:?}",
            scene.interval
        ),
    );
    drop(crowd);
    // Each of a thousand is detached with care, one after the other.
    wait_for("the end of the crowd", ALL_LEAVE_WITHIN, || {
        let serving = scene.agent.admin_json("/v1/status")?["tenants"]["serving"].as_u64();
        Ok((serving <= Some(LEFT)).then_some(()))
    })
}
