//! The `TENANTS` map, seen and written as anybody else would: with bpftool, by its documented
//! layout.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use uuid::Uuid;

use crate::{agent::bpffs_dir, netns::Netns, node::Node, process::run, tenant::Kind};

/// An entry of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What the tenant is.
    pub kind: Kind,
    /// Its UUID.
    pub id: Uuid,
    /// Whether the agent wrote it.
    pub is_of_agent: bool,
}

/// Where the map is pinned.
#[must_use]
pub fn path(node: &Node) -> PathBuf {
    bpffs_dir(node).join("TENANTS")
}

/// All there is in the map, by the cookies of the namespaces.
///
/// # Errors
/// It is not there, or an entry is not as documented.
pub fn read(node: &Node) -> Result<BTreeMap<u64, Entry>> {
    let mut bpftool = Command::new("bpftool");
    bpftool
        .args(["--json", "map", "dump", "pinned"])
        .arg(path(node));
    let text = run(&mut bpftool)?;
    let dump: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    let entries = dump
        .as_array()
        .with_context(|| format!("no list: {text}"))?;
    entries.iter().map(entry).collect()
}

fn entry(entry: &Value) -> Result<(u64, Entry)> {
    let (key, value) = (bytes(&entry["key"])?, bytes(&entry["value"])?);
    let key: [u8; 8] = key.as_slice().try_into().context("a key of another size")?;
    ensure!(value.len() == 24, "a value of another size: {value:?}");
    ensure!(value[18..] == [0; 6], "padding that is not zero: {value:?}");
    let entry = Entry {
        kind: match value[16] {
            1 => Kind::Router,
            2 => Kind::Network,
            3 => Kind::OvnNetwork,
            other => anyhow::bail!("no kind: {other}"),
        },
        id: Uuid::from_slice(&value[..16]).context("no UUID")?,
        is_of_agent: value[17] == 1,
    };
    Ok((u64::from_ne_bytes(key), entry))
}

/// `["0x01","0x02"]`, as bpftool prints bytes.
fn bytes(value: &Value) -> Result<Vec<u8>> {
    let list = value.as_array().context("no bytes")?;
    list.iter()
        .map(|byte| {
            let text = byte.as_str().context("a byte that is no text")?;
            u8::from_str_radix(text.trim_start_matches("0x"), 16).context("a byte that is none")
        })
        .collect()
}

/// Writes an entry, in place of what was there.
///
/// # Errors
/// The kernel refused.
pub fn write(node: &Node, cookie: u64, entry: Entry) -> Result<()> {
    let kind = match entry.kind {
        Kind::Router => 1,
        Kind::Network => 2,
        Kind::OvnNetwork => 3,
    };
    let mut value = entry.id.as_bytes().to_vec();
    value.extend([kind, u8::from(entry.is_of_agent), 0, 0, 0, 0, 0, 0]);
    update(node, "update", cookie, &["value", "hex", &hex(&value)])
}

/// Deletes an entry.
///
/// # Errors
/// There is none.
pub fn delete(node: &Node, cookie: u64) -> Result<()> {
    update(node, "delete", cookie, &[])
}

fn update(node: &Node, verb: &str, cookie: u64, more: &[&str]) -> Result<()> {
    let mut bpftool = Command::new("bpftool");
    bpftool.args(["map", verb, "pinned"]).arg(path(node));
    bpftool.args(["key", "hex"]);
    for word in [&*hex(&cookie.to_ne_bytes())].iter().chain(more) {
        bpftool.args(word.split(' '));
    }
    run(&mut bpftool).map(drop)
}

fn hex(bytes: &[u8]) -> String {
    let words: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    words.join(" ")
}

/// The cookie the kernel gave a namespace.
///
/// # Errors
/// The kernel is older than 5.14.
pub fn cookie(netns: &Netns) -> Result<u64> {
    netns.run(|| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").context("no socket")?;
        let mut cookie = 0_u64;
        let mut length = libc::socklen_t::try_from(size_of::<u64>()).context("eight")?;
        // SAFETY: the buffer is eight bytes and `length` says so.
        let result = unsafe {
            libc::getsockopt(
                std::os::fd::AsRawFd::as_raw_fd(&socket),
                libc::SOL_SOCKET,
                libc::SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        ensure!(result == 0, "{}", std::io::Error::last_os_error());
        Ok(cookie)
    })
}
