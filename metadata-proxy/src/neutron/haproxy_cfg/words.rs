//! Single values of a configuration: numbers, durations, addresses, identifiers.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    str::SplitAsciiWhitespace,
    time::Duration,
};

use uuid::Uuid;

use super::error::Problem;
use crate::neutron::Bind;

/// Room for a path in `sockaddr_un`, without its final NUL (unix(7)).
const SOCKET_PATH_LIMIT: usize = 107;

/// Room for a device name, without its final NUL (`IFNAMSIZ`).
const INTERFACE_NAME_LIMIT: usize = 15;

/// Takes exactly `N` words; `None` if there are fewer or more.
pub(super) fn exactly<const N: usize>(mut words: SplitAsciiWhitespace<'_>) -> Option<[&str; N]> {
    let mut taken = [""; N];
    for slot in &mut taken {
        *slot = words.next()?;
    }
    words.next().is_none().then_some(taken)
}

pub(super) fn number(what: &'static str, word: &str) -> Result<u32, Problem> {
    // `u32::from_str` would take a sign.
    if !word.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Problem::value(what, word, "not a number"));
    }
    word.parse()
        .map_err(|_| Problem::value(what, word, "not a number below 2^32"))
}

/// Reads a duration with haproxy's units; without one it counts milliseconds.
pub(super) fn duration(what: &'static str, word: &str) -> Result<Duration, Problem> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = word.split_at(digits);
    if count.is_empty() {
        return Err(Problem::value(what, word, "not a duration"));
    }
    let count = u64::from(number(what, count)?);
    let duration = match unit {
        "us" => Duration::from_millis(count / 1000),
        "" | "ms" => Duration::from_millis(count),
        "s" => Duration::from_secs(count),
        "m" => Duration::from_secs(count * 60),
        "h" => Duration::from_secs(count * 60 * 60),
        "d" => Duration::from_secs(count * 24 * 60 * 60),
        _ => return Err(Problem::value(what, word, "not a duration")),
    };
    // The registration protocol counts in milliseconds, and nothing here may take no time at all.
    if duration < Duration::from_millis(1) {
        return Err(Problem::value(what, word, "must be a millisecond or more"));
    }
    Ok(duration)
}

/// Reads a UUID in the only form in which Neutron writes one: 36 characters, hyphenated.
pub(super) fn uuid(what: &'static str, word: &str) -> Result<Uuid, Problem> {
    const HYPHENATED: usize = 36;
    if word.len() != HYPHENATED {
        return Err(Problem::value(what, word, "not a UUID"));
    }
    Uuid::try_parse(word).map_err(|_| Problem::value(what, word, "not a UUID"))
}

/// Reads `address:port`; the port follows the last colon, brackets or not.
pub(super) fn bind(address: &str, interface: Option<&str>) -> Result<Bind, Problem> {
    const WHAT: &str = "bind address";
    let (host, port) = address
        .rsplit_once(':')
        .ok_or_else(|| Problem::value(WHAT, address, "no port"))?;
    let port = number("port", port)?;
    let port = u16::try_from(port).unwrap_or(0);
    if port == 0 {
        return Err(Problem::value(WHAT, address, "not a port from 1 to 65535"));
    }
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = match bracketed {
        Some(host) => host.parse::<Ipv6Addr>().map(IpAddr::V6),
        // haproxy's two words for every IPv4 address.
        None if host.is_empty() || host == "*" => Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        None => host.parse::<IpAddr>(),
    };
    let address = host.map_err(|_| Problem::value(WHAT, address, "not an IP address"))?;
    if let Some(name) = interface
        && (name.len() > INTERFACE_NAME_LIMIT || name.contains('/'))
    {
        return Err(Problem::value("interface", name, "not a device name"));
    }
    Ok(Bind {
        address,
        port,
        interface: interface.map(str::to_owned),
    })
}

pub(super) fn socket_path(word: &str) -> Result<PathBuf, Problem> {
    const WHAT: &str = "agent socket";
    let path = word.strip_prefix("unix@").unwrap_or(word);
    if !path.starts_with('/') {
        return Err(Problem::value(WHAT, word, "not an absolute path"));
    }
    if path.len() > SOCKET_PATH_LIMIT {
        return Err(Problem::value(
            WHAT,
            word,
            "longer than the 107 bytes that the path of a unix socket may have",
        ));
    }
    Ok(PathBuf::from(path))
}
