//! `unsafe` is where it is known to be, and nowhere else.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Result, bail};

use super::tracked;
use crate::workspace;

/// The agent's files that may have `unsafe`, with how many places each has. Tests, benches and
/// development commands stand on their own feet.
const ALLOWED: &[(&str, usize)] = &[
    ("metadata-proxy-ebpf/src/connect.rs", 3),
    ("metadata-proxy-ebpf/src/globals.rs", 5),
    ("metadata-proxy-ebpf/src/main.rs", 2),
    ("metadata-proxy-ebpf/src/maps.rs", 1),
    ("metadata-proxy-ebpf/src/raw/contexts.rs", 12),
    ("metadata-proxy-ebpf/src/raw/frame.rs", 6),
    ("metadata-proxy-ebpf/src/raw/socket.rs", 16),
    ("metadata-proxy/src/bin/haproxy/detach.rs", 2),
    ("metadata-proxy/src/bin/haproxy/privileges.rs", 1),
    ("metadata-proxy/src/bin/haproxy/registration.rs", 1),
    ("metadata-proxy/src/discovery/watch.rs", 1),
    ("metadata-proxy/src/kernel/commands.rs", 10),
    ("metadata-proxy/src/kernel/ebpf/tenant_map.rs", 2),
    ("metadata-proxy/src/kernel/logger.rs", 1),
    ("metadata-proxy/src/listener.rs", 6),
    ("metadata-proxy/src/main.rs", 2),
    ("metadata-proxy/src/netlink/events.rs", 4),
    ("metadata-proxy/src/netns.rs", 4),
    ("metadata-proxy/src/node/confine/mod.rs", 1),
    ("metadata-proxy/src/node/control.rs", 3),
    ("metadata-proxy/src/node/successor.rs", 1),
    ("metadata-proxy/src/packet.rs", 9),
    ("metadata-proxy/src/register/lease.rs", 1),
    ("metadata-proxy/src/register/listener.rs", 1),
    ("metadata-proxy/src/register/server.rs", 2),
    ("metadata-proxy/src/serve/guest_io.rs", 2),
    ("metadata-proxy/src/serve/leaving.rs", 1),
    ("metadata-proxy/src/service_manager.rs", 1),
    ("metadata-proxy/src/socket.rs", 3),
    ("metadata-proxy/src/upstream/embedded/watch.rs", 1),
];

/// Fails where the count of a file is another than is written here: one more is to be looked at, and
/// one fewer is to be written down.
pub(super) fn check() -> Result<()> {
    let mut found = BTreeMap::new();
    for name in tracked()? {
        let is_agents = name.starts_with("metadata-proxy") && name.contains("/src/");
        let is_rust = Path::new(&name).extension().is_some_and(|its| its == "rs");
        if !is_agents || !is_rust || name.ends_with("/tests.rs") {
            continue;
        }
        let text = fs::read_to_string(workspace::root().join(&name)).unwrap_or_default();
        let count = count(&text);
        if count > 0 {
            found.insert(name, count);
        }
    }
    let allowed: BTreeMap<_, _> = ALLOWED
        .iter()
        .map(|(name, count)| ((*name).to_owned(), *count))
        .collect();
    let differing: Vec<_> = found
        .keys()
        .chain(allowed.keys())
        .filter(|name| found.get(*name) != allowed.get(*name))
        .map(|name| {
            let of = |counts: &BTreeMap<String, usize>| counts.get(name).copied().unwrap_or(0);
            format!("{name}: {} places, {} allowed", of(&found), of(&allowed))
        })
        .collect();
    if !differing.is_empty() {
        bail!(
            "`unsafe` is elsewhere than allowed:\n  {}",
            differing.join("\n  ")
        );
    }
    let total: usize = found.values().sum();
    println!("    {total} places in {} files", found.len());
    Ok(())
}

/// Places in the code that say `unsafe`: blocks, functions, implementations, attributes.
fn count(text: &str) -> usize {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .map(|code| {
            code.match_indices("unsafe")
                .filter(|(at, word)| {
                    let before = code[..*at].chars().next_back();
                    let after = code[at + word.len()..].chars().next();
                    let is_word = |c: char| c.is_alphanumeric() || c == '_';
                    !before.is_some_and(is_word) && !after.is_some_and(is_word)
                })
                .count()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn only_the_word_in_code_counts() {
        let text = "// unsafe\nlet unsafe_code = unsafe { unsafe_fn() }; // unsafe\n\
                    #[unsafe(no_mangle)]\nunsafe impl Pod for Key {}\n";
        assert_eq!(count(text), 3);
    }
}
