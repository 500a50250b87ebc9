//! Does to namespaces, devices, tenants and the agent whatever a seed says, while every guest asks.
//!
//! All tenants have the same addresses, so nothing but the namespace tells them apart. Each request
//! names who sends it in its path, and each answer names who was said to have asked: both must be the
//! guest's tenant, at the guest and at the upstream.

use std::{
    fs,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_proxy_tests::{
    Agent, Footprint, Kind, MetadataAgent, Node, TenantFixture,
    agent::{Builder, bpffs_dir},
    metadata_agent::{Answer, Request},
    raw_http::{Connection, Read},
    stage, tenant_map,
    tenant_map::Entry,
    wait_for,
};
use uuid::Uuid;

use super::{process::Use, random::Random};
use crate::{figures::Figures, plan::Plan};

/// How many tenants there are at most.
const MOST: usize = 12;
/// How long a guest waits for a connection, and for an answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long what must happen may take, on slow and busy machines.
const SOON: Duration = Duration::from_secs(20);
/// Rounds between two looks at what the agent holds.
const ROUNDS_TO_CALM: usize = 12;
/// What the agent's memory may grow from the first calm to the last, bytes: the allocator's arenas
/// are warm by the first, and differ by this much from one look to the next.
const MEMORY_NOISE: u64 = 4 << 20;

/// What is done in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A tenant comes.
    Come,
    /// A tenant goes, in the midst of its guest's connections.
    Go,
    /// A namespace is deleted and made again under its name.
    Renew,
    /// Another device is plugged.
    Plug,
    /// A device is deleted and made again under its name.
    Replug,
    /// A device is renamed, and back.
    Rename,
    /// The local route is deleted.
    Route,
    /// A filter's pin is removed.
    Filter,
    /// The entry in `TENANTS` is deleted.
    Forget,
    /// The entry in `TENANTS` names another tenant that is there.
    Mistake,
    /// The agent is killed and started again.
    Kill,
    /// The agent is stopped in order and started again.
    Restart,
    /// Another process takes over from the agent.
    Upgrade,
}

const STEPS: &[Step] = &[
    Step::Come,
    Step::Come,
    Step::Go,
    Step::Renew,
    Step::Plug,
    Step::Replug,
    Step::Rename,
    Step::Route,
    Step::Filter,
    Step::Forget,
    Step::Mistake,
    Step::Mistake,
];

/// What becomes of the agent itself.
const ENDS: &[Step] = &[Step::Kill, Step::Restart, Step::Upgrade];

/// What became of all requests, at guests and at the upstream.
#[derive(Default)]
struct Count {
    served: AtomicUsize,
    unserved: AtomicUsize,
    /// Answers to a guest that name another tenant.
    wrong: AtomicUsize,
    /// Requests at the upstream whose path and tag differ.
    crossed: Arc<AtomicUsize>,
}

struct Scene {
    /// `None` only while it is started again.
    agent: Option<Agent>,
    tenants: Vec<TenantFixture>,
    count: Count,
    upstream: MetadataAgent,
    node: Node,
}

/// Tells who was said to have asked, and counts those who say of themselves to be another.
fn answering(crossed: Arc<AtomicUsize>) -> impl Fn(&Request) -> Answer + Send + Sync + 'static {
    move |request| {
        let tags = Kind::ALL
            .iter()
            .filter_map(|kind| request.header(kind.tag_name()));
        let tags: Vec<_> = tags.collect();
        let claimed = request.target.trim_start_matches('/');
        if tags != [claimed] {
            crossed.fetch_add(1, Ordering::Relaxed);
        }
        Answer::ok(tags.join(" "))
    }
}

impl Scene {
    fn new() -> Result<Self> {
        let node = Node::new()?;
        let count = Count::default();
        let upstream = MetadataAgent::builder()
            .workers(4)
            .forgetful()
            .respond(answering(Arc::clone(&count.crossed)))
            .start(&node.directory().join("agent"))?;
        Ok(Self {
            agent: None,
            tenants: Vec::new(),
            count,
            upstream,
            node,
        })
    }

    fn start(&mut self) -> Result<()> {
        self.agent = Some(builder(&self.node, &self.upstream).start()?);
        Ok(())
    }

    fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("no agent runs")
    }

    fn wait_all_served(&mut self) -> Result<()> {
        let agent = self.agent.as_ref().context("no agent runs")?;
        self.tenants
            .iter()
            .try_for_each(|tenant| agent.wait_served(tenant))
    }
}

/// Runs the drill.
pub(crate) fn run(plan: &Plan) -> Result<Figures> {
    let mut figures = Figures::default();
    let mut random = Random::new(plan.seed);
    let mut scene = Scene::new()?;
    let length = plan.length(Duration::from_secs(20), Duration::from_mins(3));
    // One who is there all the time shows what is left behind in a namespace.
    let witness = TenantFixture::new(&scene.node, Kind::Router)?;
    let before = Footprint::of_netns(&witness.netns)?;
    scene.start()?;
    let start = Instant::now();
    let mut steps = 0;
    // First the agent ends every now and then; then one agent lives on, and must not grow.
    while start.elapsed() < length / 2 {
        steps += round(&mut scene, &mut random, true)?;
    }
    let mut uses = Vec::new();
    while start.elapsed() < length || uses.len() < 3 {
        for _ in 0..ROUNDS_TO_CALM {
            steps += round(&mut scene, &mut random, false)?;
        }
        uses.push(calm(&mut scene, &mut figures)?);
    }
    note(&mut figures, &scene.count, steps, &uses);
    scene.agent()?.stop()?;
    scene.agent = None;
    let returned =
        Footprint::wait_for_return(&before, SOON, || Footprint::of_netns(&witness.netns));
    if let Err(error) = returned {
        figures.demand(false, format!("in the namespace of a tenant: {error:#}"));
    }
    let traces = stage::traces_on_node(&scene.node);
    figures.demand(traces.is_empty(), format!("left on the node: {traces:?}"));
    Ok(figures)
}

fn note(figures: &mut Figures, count: &Count, steps: usize, uses: &[Use]) {
    let of = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let (served, wrong, crossed) = (of(&count.served), of(&count.wrong), of(&count.crossed));
    figures.note("steps", steps);
    figures.note("requests served", served);
    figures.note("requests not served, during a step", of(&count.unserved));
    figures.note("answers that name another tenant", wrong);
    figures.note("requests that reached the upstream as another's", crossed);
    figures.demand(served > steps, "guests are served at all");
    figures.demand(wrong == 0, format!("{wrong} answers name another tenant"));
    figures.demand(
        crossed == 0,
        format!("{crossed} requests reached the upstream as another's"),
    );
    if let ([first, ..], Some(last)) = (uses, uses.last()) {
        figures.note("the agent at the first calm", first);
        figures.note("the agent at the last calm", last);
        figures.demand(last.files <= first.files, "files of the agent grow");
        figures.demand(last.threads <= first.threads, "threads of the agent grow");
        figures.demand(
            last.memory <= first.memory + MEMORY_NOISE,
            "memory of the agent grows",
        );
    }
}

/// One to three steps, while the guests of everybody else ask.
fn round(scene: &mut Scene, random: &mut Random, may_end: bool) -> Result<usize> {
    let steps: Vec<Step> = if may_end && random.below(8) == 0 {
        vec![ENDS[random.below(ENDS.len())]]
    } else {
        (0..=random.below(3))
            .map(|_| STEPS[random.below(STEPS.len())])
            .collect()
    };
    for step in &steps {
        do_while_asking(scene, random, *step).with_context(|| format!("{step:?}"))?;
    }
    Ok(steps.len())
}

/// Does one step to one tenant, taken out of the others, whose guests ask meanwhile.
fn do_while_asking(scene: &mut Scene, random: &mut Random, step: Step) -> Result<()> {
    let kind = Kind::ALL[random.below(3)];
    let chosen = (!scene.tenants.is_empty()).then(|| random.below(scene.tenants.len()));
    let victim = match step {
        Step::Come | Step::Kill | Step::Restart | Step::Upgrade => None,
        _ => match chosen {
            Some(index) => Some(scene.tenants.swap_remove(index)),
            None => return Ok(()),
        },
    };
    let other = scene.tenants.first().map(|tenant| (tenant.kind, tenant.id));
    let ended = AtomicBool::new(false);
    let kept = thread::scope(|scope| {
        let Scene {
            agent,
            tenants,
            count,
            node,
            upstream,
        } = &mut *scene;
        for tenant in tenants.iter() {
            let (count, ended) = (&*count, &ended);
            scope.spawn(move || ask_until(tenant, count, ended));
        }
        let done = match (step, victim) {
            (Step::Kill | Step::Restart | Step::Upgrade, _) => {
                end(agent, node, upstream, step).map(|()| None)
            }
            (Step::Come, _) if tenants.len() < MOST => TenantFixture::new(node, kind).map(Some),
            (_, Some(victim)) => hurt(victim, step, node, other, count),
            _ => Ok(None),
        };
        // Everybody asks at least once after the step.
        thread::sleep(Duration::from_millis(60));
        ended.store(true, Ordering::Relaxed);
        done
    })?;
    scene.tenants.extend(kept);
    Ok(())
}

/// An agent that looks often and says little.
fn builder(node: &Node, upstream: &MetadataAgent) -> Builder {
    stage::builder(node, upstream)
        .set("audit.interval", "\"1s\"")
        .set("log.level", "\"warn\"")
        .set("log.access", "false")
}

fn end(agent: &mut Option<Agent>, node: &Node, upstream: &MetadataAgent, step: Step) -> Result<()> {
    let Some(mut running) = agent.take() else {
        return Ok(());
    };
    let next = builder(node, upstream);
    *agent = Some(if step == Step::Upgrade {
        let next = next.taking_over().start()?;
        let status = running.wait(SOON)?;
        ensure!(status.success(), "the old agent ended with {status}");
        next
    } else {
        match step {
            Step::Kill => running.crash()?,
            _ => drop(running.stop()?),
        }
        drop(running);
        next.start()?
    });
    Ok(())
}

/// Does a step to a tenant whose guest asks before and after; gives back what is left of it.
fn hurt(
    mut victim: TenantFixture,
    step: Step,
    node: &Node,
    other: Option<(Kind, Uuid)>,
    count: &Count,
) -> Result<Option<TenantFixture>> {
    // Connected before, asked after: such a connection must be its own tenant's, or dead.
    let mut earlier = connect(&victim);
    let device = victim
        .subnets
        .first()
        .map(|subnet| subnet.device.clone())
        .unwrap_or_default();
    match step {
        Step::Go | Step::Renew => {
            let (kind, id) = (victim.kind, victim.id);
            drop(victim);
            if let Some(connection) = &mut earlier {
                ask_over(connection, id, count);
            }
            return (step == Step::Renew)
                .then(|| TenantFixture::builder(kind).id(id).build(node))
                .transpose();
        }
        Step::Plug => {
            if victim.subnets.len() < 3 {
                victim.plug(1)?;
            }
        }
        Step::Replug => {
            for subnet in std::mem::take(&mut victim.subnets) {
                victim.netns.ip(&format!("link del {}", subnet.device))?;
            }
            victim.plug(1)?;
        }
        Step::Rename => {
            for line in [
                format!("link set {device} down"),
                format!("link set {device} name stray"),
                "link set stray up".to_owned(),
                "link set stray down".to_owned(),
                format!("link set stray name {device}"),
                format!("link set {device} up"),
            ] {
                victim.netns.ip(&line)?;
            }
        }
        Step::Route => {
            // A network has an address instead.
            let _ = victim
                .netns
                .ip("route del local 169.254.169.254 dev lo table local");
        }
        Step::Filter => {
            let cookie = tenant_map::cookie(&victim.netns)?;
            let prefix = format!("steer-{cookie}-");
            for pin in fs::read_dir(bpffs_dir(node)).context("no pins")?.flatten() {
                if pin.file_name().to_string_lossy().starts_with(&prefix) {
                    // Held by the agent, it stays attached without its pin.
                    let _ = Command::new("bpftool")
                        .args(["link", "detach", "pinned"])
                        .arg(pin.path())
                        .output();
                    fs::remove_file(pin.path()).context("cannot remove a pin")?;
                }
            }
        }
        Step::Forget => {
            // It may not be served yet.
            let _ = tenant_map::delete(node, tenant_map::cookie(&victim.netns)?);
        }
        Step::Mistake => {
            if let Some((kind, id)) = other {
                let entry = Entry {
                    kind,
                    id,
                    is_of_agent: true,
                };
                tenant_map::write(node, tenant_map::cookie(&victim.netns)?, entry)?;
            }
        }
        Step::Come | Step::Kill | Step::Restart | Step::Upgrade => {}
    }
    if let Some(connection) = &mut earlier {
        ask_over(connection, victim.id, count);
    }
    ask_until(&victim, count, &AtomicBool::new(true));
    Ok(Some(victim))
}

fn connect(tenant: &TenantFixture) -> Option<Connection> {
    let guest = tenant.guests().next()?;
    guest
        .netns
        .run(|| Ok(Connection::open(None, PATIENCE)?))
        .ok()
}

/// Asks as a tenant's guests, at least once each, until the round is over.
fn ask_until(tenant: &TenantFixture, count: &Count, ended: &AtomicBool) {
    let Some(guest) = tenant.guests().next() else {
        return;
    };
    let asked = guest.netns.run(|| {
        loop {
            if let Ok(mut connection) = Connection::open(None, PATIENCE) {
                // Several over one connection, as clients do.
                while ask_over(&mut connection, tenant.id, count) && !ended.load(Ordering::Relaxed)
                {
                }
            } else {
                count.unserved.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
            if ended.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    });
    if let Err(error) = asked {
        eprintln!("a guest cannot ask: {error:#}");
    }
}

/// Asks once; false if the connection is of no more use.
fn ask_over(connection: &mut Connection, id: Uuid, count: &Count) -> bool {
    let request = format!("GET /{id} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
    // Who is refused while writing is told so when reading.
    let _ = connection.send(request.as_bytes());
    match connection.answer("GET", Instant::now() + PATIENCE) {
        Ok(Read::Answer(answer)) if answer.status == 200 => {
            let is_own = answer.body == id.to_string().as_bytes();
            let counter = if is_own { &count.served } else { &count.wrong };
            counter.fetch_add(1, Ordering::Relaxed);
            answer.keeps()
        }
        Ok(_) | Err(_) => {
            count.unserved.fetch_add(1, Ordering::Relaxed);
            false
        }
    }
}

/// Waits until all is served, lets every tenant go, and looks at what the agent holds then.
fn calm(scene: &mut Scene, figures: &mut Figures) -> Result<Use> {
    // Every mistake is put right, every namespace served again.
    scene.wait_all_served().context("after the steps")?;
    scene.tenants.clear();
    let agent = scene.agent.as_ref().context("no agent runs")?;
    wait_for("an agent with one tenant", SOON, || {
        let serving = agent.admin_json("/v1/status")?["tenants"].clone();
        let total: u64 = ["serving", "pending", "failing"]
            .iter()
            .filter_map(|state| serving[state].as_u64())
            .sum();
        Ok((total == 1 && serving["serving"] == 1).then_some(()))
    })?;
    let entries = tenant_map::read(&scene.node)?.len();
    figures.demand(
        entries == 1,
        format!("{entries} entries in TENANTS for one tenant"),
    );
    let pins = fs::read_dir(bpffs_dir(&scene.node))
        .context("no pins")?
        .flatten();
    let links = pins
        .filter(|pin| pin.file_name().to_string_lossy().starts_with("steer-"))
        .count();
    figures.demand(links == 1, format!("{links} links for one device"));
    let pid = agent.pid();
    // The allocator gives memory back within a second.
    let mut least = Use::of(pid)?;
    wait_for("quiet", Duration::from_secs(3), || {
        let now = Use::of(pid)?;
        least.memory = least.memory.min(now.memory);
        least.files = least.files.min(now.files);
        thread::sleep(Duration::from_millis(300));
        Ok(None::<()>)
    })
    .err();
    Ok(least)
}
