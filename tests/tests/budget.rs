//! What a tenant and a request may cost, so that a change that makes them dearer is noticed.
//!
//! Nothing here is timed: the numbers hold on a busy machine too. Those of a request are of the
//! build that the tests are run with, optimised or not. Who makes one of them smaller lowers its
//! budget.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use metadata_proxy_tests::{
    Agent, Kind, METADATA_V4, MetadataAgent, Node, TenantFixture, agent, wait_for,
};

/// Bytes of memory that is no file's: what the agents of several tests share of their program depends on how
/// many of them there are.
const MEMORY_PER_TENANT: u64 = 12 * 1024;
/// The listener, the netlink subscription, and the link of `steer` or of the lookup program.
const FILES_PER_TENANT: usize = 3;
/// Instructions and allocations of a request on a connection of its own, access line included.
const PER_REQUEST: Cost = if cfg!(debug_assertions) {
    Cost {
        instructions: 480_000,
        allocations: 33,
    }
} else {
    Cost {
        instructions: 55_000,
        allocations: 33,
    }
};

const FEW: usize = 20;
const MANY: usize = 120;
const SOON: Duration = Duration::from_secs(30);
/// Memory is given back within a second where the machine is not busy.
const SETTLES_WITHIN: Duration = Duration::from_secs(8);
/// Under valgrind everything takes its time.
const LATE: Duration = Duration::from_mins(4);

#[derive(Clone, Copy, Debug)]
struct Cost {
    instructions: u64,
    allocations: u64,
}

fn memory(agent: &Agent) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", agent.pid()))?;
    let kib: u64 = rollup
        .lines()
        .find_map(|line| {
            let line = line.strip_prefix("Pss_Anon:")?.trim();
            line.strip_suffix(" kB")?.trim().parse().ok()
        })
        .context("no Pss_Anon")?;
    Ok(kib * 1024)
}

fn files(agent: &Agent) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count())
}

/// Memory and files when what work took has been given back, and the connections of the test's own
/// questions are closed: the least of several looks, since on a busy machine that takes its time.
fn settled(agent: &Agent) -> Result<(u64, usize)> {
    let until = Instant::now() + SETTLES_WITHIN;
    let mut least = (u64::MAX, usize::MAX);
    while Instant::now() < until {
        least = (least.0.min(memory(agent)?), least.1.min(files(agent)?));
        thread::sleep(Duration::from_millis(100));
    }
    Ok(least)
}

#[test]
fn a_tenant_costs_no_more_memory_and_files_than_budgeted() {
    tenants_are_within_budget("auto").unwrap();
}

#[test]
fn a_tenant_of_the_lookup_engine_costs_no_more_memory_either() {
    tenants_are_within_budget("sk-lookup").unwrap();
}

fn tenants_are_within_budget(engine: &str) -> Result<()> {
    let node = Node::new()?;
    let upstream = MetadataAgent::builder().start(&node.directory().join("agent"))?;
    let agent = Agent::builder(&node)
        .set("steering.engine", agent::quoted(engine))
        .upstream_agent(upstream.socket())
        .start()?;
    let mut tenants = Vec::new();
    let mut serve = |count: usize| -> Result<_> {
        while tenants.len() < count {
            tenants.push(TenantFixture::new(&node, Kind::Router)?);
        }
        wait_for("service of all", SOON, || {
            let status = agent.admin_json("/v1/status")?;
            Ok((status["tenants"]["serving"] == count).then_some(()))
        })?;
        settled(&agent)
    };
    let (few, many) = (serve(FEW)?, serve(MANY)?);
    let memory = many.0.saturating_sub(few.0) / (MANY - FEW) as u64;
    let files = many.1 - few.1;
    println!("a tenant: {memory} bytes, {} files", files / (MANY - FEW));
    assert!(memory <= MEMORY_PER_TENANT, "{memory} bytes a tenant");
    assert!(
        files <= FILES_PER_TENANT * (MANY - FEW),
        "{files} files for {}",
        MANY - FEW
    );
    Ok(())
}

#[test]
fn a_request_costs_no_more_instructions_and_allocations_than_budgeted() {
    const FEW: u64 = 50;
    const MANY: u64 = 150;
    let (few, many) = (cost_of(FEW).unwrap(), cost_of(MANY).unwrap());
    let each = |of: fn(&Cost) -> u64| of(&many).saturating_sub(of(&few)) / (MANY - FEW);
    let (instructions, allocations) = (each(|it| it.instructions), each(|it| it.allocations));
    println!("a request: {instructions} instructions, {allocations} allocations");
    assert!(instructions > 0 && allocations > 0, "nothing was counted");
    assert!(
        instructions <= PER_REQUEST.instructions,
        "{instructions} instructions a request"
    );
    assert!(
        allocations <= PER_REQUEST.allocations,
        "{allocations} allocations a request"
    );
}

/// What the whole life of an agent costs that answers so many requests.
fn cost_of(requests: u64) -> Result<Cost> {
    let node = Node::new()?;
    let upstream = MetadataAgent::builder().start(&node.directory().join("agent"))?;
    let tenant = TenantFixture::new(&node, Kind::Network)?;
    let counts = node.directory().join("callgrind");
    let mut agent = Agent::builder(&node)
        .under(&[
            "valgrind",
            "--tool=callgrind",
            &format!("--callgrind-out-file={}", counts.display()),
        ])
        // valgrind knows nothing of kernel programs; the way of a request is the same.
        .set("steering.engine", agent::quoted("bind"))
        .set("steering.connect_hooks", false)
        .set("workers", 1)
        // What the agent has no use for valgrind has; and an audit would be counted with the requests.
        .set("security.seccomp", agent::quoted("off"))
        .set("audit.interval", agent::quoted("1h"))
        .set("log.level", agent::quoted("info"))
        .upstream_agent(upstream.socket())
        .start_unready()?;
    wait_for("service of the tenant", LATE, || {
        Ok(tenant
            .guest()
            .curl(METADATA_V4, &[])?
            .status
            .eq(&200)
            .then_some(()))
    })?;
    for _ in 0..requests {
        let reply = tenant.guest().curl(METADATA_V4, &[])?;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    agent.stop()?;
    read(&counts)
}

/// Reads what callgrind counted: all instructions, and calls of functions that allocate.
fn read(counts: &Path) -> Result<Cost> {
    let text = fs::read_to_string(counts)?;
    let instructions = text
        .lines()
        .find_map(|line| {
            line.strip_prefix("totals:")
                .or(line.strip_prefix("summary:"))
        })
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .context("callgrind has no totals")?;
    // `fn=(17) name` names number 17 for the rest of the file; `cfn=(17)` is followed by
    // `calls=COUNT TARGET`.
    let mut allocators = std::collections::HashSet::new();
    let mut allocations = 0;
    let mut callee = "";
    for line in text.lines() {
        let named = line.strip_prefix("cfn=").or(line.strip_prefix("fn="));
        if let Some(named) = named {
            let (number, name) = named.split_once(' ').unwrap_or((named, ""));
            if is_allocator(name) {
                allocators.insert(number);
            }
            callee = if line.starts_with('c') { number } else { "" };
        } else if let Some(calls) = line.strip_prefix("calls=")
            && allocators.contains(callee)
        {
            allocations += calls
                .split(' ')
                .next()
                .and_then(|n| n.parse::<u64>().ok())
                .context("callgrind counts no calls")?;
        }
    }
    Ok(Cost {
        instructions,
        allocations,
    })
}

/// jemalloc's own functions: each call is one allocation, or one that grows.
fn is_allocator(name: &str) -> bool {
    [
        "_rjem_malloc",
        "_rjem_mallocx",
        "_rjem_calloc",
        "_rjem_realloc",
        "_rjem_rallocx",
    ]
    .contains(&name)
}
