//! Valid values that plain types do not express.

use std::{fmt, path::PathBuf, str::FromStr};

use regex::Regex;
use serde::{Serialize, Serializer};

use super::settings::SOCKET_PATH_MAX;

/// A simple glob over interface names: `*` is any run of characters, `?` any one.
#[derive(Clone, Debug)]
pub struct InterfaceGlob {
    pattern: String,
    regex: Regex,
}

impl InterfaceGlob {
    /// Whether an interface of this name is meant.
    #[must_use]
    pub fn matches(&self, interface: &str) -> bool {
        self.regex.is_match(interface)
    }

    /// The glob as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.pattern
    }
}

/// Why something is no interface glob.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// Nothing is there.
    #[error("an empty name matches no interface")]
    Empty,
    /// No interface may have such a name (source: `dev_valid_name` in net/core/dev.c).
    #[error("{0:?} can match no interface: interface names have no spaces, `/` or `:`")]
    Impossible(String),
}

impl FromStr for InterfaceGlob {
    type Err = GlobError;

    fn from_str(pattern: &str) -> Result<Self, GlobError> {
        if pattern.is_empty() {
            return Err(GlobError::Empty);
        }
        if pattern.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':') {
            return Err(GlobError::Impossible(pattern.to_owned()));
        }
        let mut regex = String::from(r"\A");
        for c in pattern.chars() {
            match c {
                '*' => regex.push_str(".*"),
                '?' => regex.push('.'),
                c => regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
            }
        }
        regex.push_str(r"\z");
        match Regex::new(&regex) {
            Ok(regex) => Ok(Self {
                pattern: pattern.to_owned(),
                regex,
            }),
            // Only a size limit can be hit, far beyond what names an interface.
            Err(_) => Err(GlobError::Impossible(pattern.to_owned())),
        }
    }
}

impl PartialEq for InterfaceGlob {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern
    }
}

impl Eq for InterfaceGlob {}

impl fmt::Display for InterfaceGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pattern)
    }
}

impl Serialize for InterfaceGlob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.pattern)
    }
}

/// Where an HTTP server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HttpAddress {
    /// A TCP endpoint.
    Tcp {
        /// A host name, or an address without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

/// Why something is no [`HttpAddress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Another scheme than http.
    #[error("only http:// is spoken to an upstream")]
    Scheme,
    /// Something follows the port.
    #[error("a path, query or user name has no place in it: guests choose the path")]
    MoreThanAddress,
    /// The port is missing or no port.
    #[error("the port is missing or not a number from 1 to 65535")]
    Port,
    /// The host is missing, or an IPv6 address is not in brackets.
    #[error("the host is missing or malformed (an IPv6 address stands in brackets)")]
    Host,
    /// What follows `unix:` is no path of a socket.
    #[error("after unix: stands an absolute path of at most {SOCKET_PATH_MAX} bytes")]
    Socket,
}

impl FromStr for HttpAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let fits = path.starts_with('/') && path.len() <= SOCKET_PATH_MAX;
            return if fits && !path.contains('\0') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(AddressError::Socket)
            };
        }
        let authority = match text.split_once("://") {
            Some(("http", rest)) => rest.strip_suffix('/').unwrap_or(rest),
            Some(_) => return Err(AddressError::Scheme),
            None => text,
        };
        if authority.contains(['/', '?', '#', '@']) {
            return Err(AddressError::MoreThanAddress);
        }
        let (host, port) = authority.rsplit_once(':').ok_or(AddressError::Port)?;
        let port = match port.parse() {
            // `parse` takes a sign.
            Ok(port) if port != 0 && !authority.contains('+') => port,
            _ => return Err(AddressError::Port),
        };
        let host = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(v6) => {
                v6.parse::<std::net::Ipv6Addr>()
                    .map_err(|_| AddressError::Host)?;
                v6
            }
            None => host,
        };
        let bracketed = authority.starts_with('[');
        let valid = |c: char| {
            c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') || (bracketed && c == ':')
        };
        if host.is_empty() || !host.chars().all(valid) {
            return Err(AddressError::Host);
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Serialize for HttpAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The IP versions something applies to; written as a list of 4 and 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpVersions {
    /// It applies to IPv4.
    pub v4: bool,
    /// It applies to IPv6.
    pub v6: bool,
}

impl IpVersions {
    /// Whether it applies to an address.
    #[must_use]
    pub const fn include(self, address: std::net::IpAddr) -> bool {
        match address {
            std::net::IpAddr::V4(_) => self.v4,
            std::net::IpAddr::V6(_) => self.v6,
        }
    }
}

impl Serialize for IpVersions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let versions = [(self.v4, 4_u8), (self.v6, 6)];
        serializer.collect_seq(
            versions
                .iter()
                .filter(|(on, _)| *on)
                .map(|(_, version)| version),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_matches_whole_names_only() {
        let glob: InterfaceGlob = "qr-*".parse().unwrap();
        assert!(glob.matches("qr-1234") && glob.matches("qr-"));
        assert!(!glob.matches("xqr-1") && !glob.matches("qr"));
        let one: InterfaceGlob = "tap?.1".parse().unwrap();
        assert!(one.matches("tapx.1") && !one.matches("tapxy1") && !one.matches("tap.1"));
    }

    #[test]
    fn a_glob_takes_everything_but_star_and_question_mark_literally() {
        let glob: InterfaceGlob = "a[b]+(c)".parse().unwrap();
        assert!(glob.matches("a[b]+(c)"));
        assert!(!glob.matches("abc") && !glob.matches("abbc"));
    }

    #[test]
    fn globs_that_can_match_nothing_are_refused() {
        for bad in ["", "a b", "a/b", "a:b", "a\nb"] {
            assert!(bad.parse::<InterfaceGlob>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_are_read_with_and_without_scheme() {
        for (text, shown) in [
            ("nova:8775", "nova:8775"),
            ("http://nova.example:8775/", "nova.example:8775"),
            ("http://127.0.0.1:80", "127.0.0.1:80"),
            ("[::1]:8775", "[::1]:8775"),
            ("http://[fd00::1]:8775", "[fd00::1]:8775"),
            (
                "unix:/run/nova/metadata.sock",
                "unix:/run/nova/metadata.sock",
            ),
        ] {
            assert_eq!(
                text.parse::<HttpAddress>().map(|a| a.to_string()),
                Ok(shown.to_owned())
            );
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (text, error) in [
            ("https://nova:8775", AddressError::Scheme),
            ("nova", AddressError::Port),
            ("nova:0", AddressError::Port),
            ("nova:+80", AddressError::Port),
            ("nova:70000", AddressError::Port),
            ("http://nova:80/path", AddressError::MoreThanAddress),
            ("http://me@nova:80", AddressError::MoreThanAddress),
            (":80", AddressError::Host),
            ("::1:80", AddressError::Host),
            ("[nova]:80", AddressError::Host),
            ("no va:80", AddressError::Host),
            ("unix:nova.sock", AddressError::Socket),
            ("unix:/nova\0.sock", AddressError::Socket),
        ] {
            assert_eq!(text.parse::<HttpAddress>(), Err(error), "{text:?}");
        }
    }
}
