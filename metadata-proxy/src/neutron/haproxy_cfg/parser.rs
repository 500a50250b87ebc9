//! The configuration's lines, section by section.

use std::{path::PathBuf, str::SplitAsciiWhitespace};

use metadata_proxy_common::TenantKind;
use uuid::Uuid;

use super::{
    Ignored, ParseError, Problem, ProxyConfig,
    error::shortened,
    limits::{Limits, Table},
    words,
};
use crate::{
    identity::Tenant,
    neutron::{Bind, LogLevel, TenantSettings, Timeouts},
};

/// Reads a configuration that may be spread over several files.
#[derive(Debug, Default)]
pub struct Parser {
    section: Option<Section>,
    listens: bool,
    tenant: Option<Tenant>,
    binds: Vec<Bind>,
    agent_socket: Option<PathBuf>,
    timeouts: Timeouts,
    limits: Limits,
    log_level: Option<LogLevel>,
    max_connections: Option<u32>,
    daemon: bool,
    pidfile: Option<String>,
    user: Option<String>,
    group: Option<String>,
    log_address: Option<String>,
    log_tag: Option<String>,
    ignored: Vec<Ignored>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Global,
    Defaults,
    Backend(Table),
    Listen,
}

impl Section {
    const fn name(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::Defaults => "defaults",
            Self::Backend(_) => "backend",
            Self::Listen => "listen",
        }
    }
}

/// How a directive was taken, if it was understood.
enum Taken {
    Used,
    Ignored,
    Unknown,
}

impl From<Option<()>> for Taken {
    fn from(understood: Option<()>) -> Self {
        understood.map_or(Self::Unknown, |()| Self::Used)
    }
}

impl Parser {
    /// Reads one file's text; lines are counted anew.
    ///
    /// # Errors
    ///
    /// If a line is not one that Neutron writes.
    pub fn read(&mut self, text: &str) -> Result<(), ParseError> {
        self.section = None;
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            self.directive(index + 1, line)
                .map_err(|problem| ParseError {
                    line: Some(index + 1),
                    problem,
                })?;
        }
        Ok(())
    }

    /// Concludes what the texts said together.
    ///
    /// # Errors
    ///
    /// If something is missing without which no tenant can be served.
    pub fn finish(self) -> Result<ProxyConfig, ParseError> {
        let whole = |problem| ParseError {
            line: None,
            problem,
        };
        let missing = |what| whole(Problem::Missing(what));
        if self.binds.is_empty() {
            return Err(missing("bind line"));
        }
        Ok(ProxyConfig {
            tenant: self.tenant.ok_or_else(|| {
                missing("http-request line that sets the header of a router or a network")
            })?,
            settings: TenantSettings {
                binds: self.binds,
                agent_socket: self
                    .agent_socket
                    .ok_or_else(|| missing("server line with the agent's socket"))?,
                timeouts: self.timeouts,
                rate_limit: self.limits.finish().map_err(whole)?,
                log_level: self.log_level.unwrap_or_default(),
                max_connections: self.max_connections,
            },
            daemon: self.daemon,
            pidfile: self.pidfile.map(PathBuf::from),
            user: self.user,
            group: self.group,
            log_address: self.log_address,
            log_tag: self.log_tag,
            ignored: self.ignored,
        })
    }

    fn directive(&mut self, number: usize, line: &str) -> Result<(), Problem> {
        if line.contains(['"', '\'', '\\']) {
            return Err(Problem::Quoting);
        }
        let mut words = line.split_ascii_whitespace();
        let keyword = words.next().unwrap_or_default();
        if let Some(section) = self.section(keyword, words.clone())? {
            self.section = Some(section);
            return Ok(());
        }
        let Some(section) = self.section else {
            return Err(if is_section(keyword) {
                Problem::UnknownSection(shortened(keyword))
            } else {
                Problem::OutsideSections
            });
        };
        let taken = match section {
            Section::Global => self.global(keyword, words)?,
            Section::Defaults => self.proxy(keyword, words)?,
            Section::Backend(table) if keyword == "stick-table" => {
                self.limits.stick_table(table, words)?.into()
            }
            Section::Backend(_) => Taken::Unknown,
            Section::Listen => self.listen(keyword, words)?,
        };
        match taken {
            Taken::Used => Ok(()),
            Taken::Ignored => {
                self.ignored.push(Ignored {
                    line: number,
                    directive: shortened(line),
                });
                Ok(())
            }
            Taken::Unknown if is_section(keyword) => {
                Err(Problem::UnknownSection(shortened(keyword)))
            }
            Taken::Unknown => Err(Problem::Unknown {
                section: section.name(),
                directive: shortened(line),
            }),
        }
    }

    /// Which section a line opens; `None` if it opens none.
    fn section(
        &mut self,
        keyword: &str,
        mut words: SplitAsciiWhitespace<'_>,
    ) -> Result<Option<Section>, Problem> {
        let section = match keyword {
            "global" => Section::Global,
            "defaults" => Section::Defaults,
            "backend" => Section::Backend(self.limits.declare(words.next().unwrap_or_default())?),
            // Other releases, other names; there is one, and its name means nothing.
            "listen" => {
                if std::mem::replace(&mut self.listens, true) {
                    return Err(Problem::Second("listen section"));
                }
                Section::Listen
            }
            _ => return Ok(None),
        };
        Ok(Some(section))
    }

    fn global(&mut self, keyword: &str, words: SplitAsciiWhitespace<'_>) -> Result<Taken, Problem> {
        Ok(match keyword {
            "log" => self.log(words)?,
            "log-tag" => set("log-tag", &mut self.log_tag, words)?,
            "user" => set("user", &mut self.user, words)?,
            "group" => set("group", &mut self.group, words)?,
            "pidfile" => set("pidfile", &mut self.pidfile, words)?,
            "maxconn" => self.maxconn(words)?,
            "daemon" => {
                self.daemon = true;
                Taken::Used
            }
            // Threads and processes of haproxy's own.
            "nbthread" | "nbproc" | "cpu-map" | "stats" | "chroot" | "ulimit-n" | "node"
            | "description" | "hard-stop-after" | "log-send-hostname" | "master-worker"
            | "set-dumpable" | "spread-checks" => Taken::Ignored,
            _ if keyword.starts_with("tune.") || keyword.starts_with("ssl-") => Taken::Ignored,
            _ => Taken::Unknown,
        })
    }

    fn log(&mut self, mut words: SplitAsciiWhitespace<'_>) -> Result<Taken, Problem> {
        let (Some(address), Some(_facility)) = (words.next(), words.next()) else {
            return Ok(Taken::Unknown);
        };
        // Without a level haproxy sends everything.
        let level = match words.next() {
            None => LogLevel::Debug,
            Some(word) => word.parse().map_err(|_| {
                Problem::value(
                    "log level",
                    word,
                    "not a syslog level, such as info or debug",
                )
            })?,
        };
        if self.log_address.is_some() {
            return Err(Problem::Second("log line"));
        }
        self.log_address = Some(address.to_owned());
        self.log_level = Some(level);
        Ok(Taken::Used)
    }

    fn maxconn(&mut self, words: SplitAsciiWhitespace<'_>) -> Result<Taken, Problem> {
        let Some([count]) = words::exactly(words) else {
            return Ok(Taken::Unknown);
        };
        let count = words::number("maxconn", count)?;
        if count == 0 {
            return Err(Problem::value("maxconn", "0", "nobody could be served"));
        }
        // Of the process's and the proxy's own, the smaller one binds.
        self.max_connections = Some(self.max_connections.map_or(count, |other| other.min(count)));
        Ok(Taken::Used)
    }

    /// Directives that `defaults` and `listen` have in common.
    fn proxy(
        &mut self,
        keyword: &str,
        mut words: SplitAsciiWhitespace<'_>,
    ) -> Result<Taken, Problem> {
        Ok(match keyword {
            "mode" => Taken::from(
                words::exactly(words)
                    .filter(|mode| mode == &["http"])
                    .map(drop),
            ),
            "option" => match words.next() {
                Some(
                    "httplog" | "dontlognull" | "http-server-close" | "forwardfor"
                    | "http-keep-alive",
                ) if words.next().is_none() => Taken::Used,
                Some(
                    "redispatch" | "tcplog" | "tcpka" | "clitcpka" | "srvtcpka" | "contstats"
                    | "logasap" | "socket-stats" | "splice-auto",
                ) => Taken::Ignored,
                _ => Taken::Unknown,
            },
            "timeout" => self.timeout(words)?,
            "maxconn" => self.maxconn(words)?,
            // Where to and how often is the agent's affair.
            "retries" => Taken::Used,
            "log" if words.next() == Some("global") => Taken::Used,
            "log" | "balance" | "backlog" | "fullconn" | "log-format" => Taken::Ignored,
            _ => Taken::Unknown,
        })
    }

    fn timeout(&mut self, words: SplitAsciiWhitespace<'_>) -> Result<Taken, Problem> {
        let Some([step, word]) = words::exactly(words) else {
            return Ok(Taken::Unknown);
        };
        let timeout = match step {
            "http-request" => &mut self.timeouts.request_head,
            "connect" => &mut self.timeouts.connect,
            "client" => &mut self.timeouts.client,
            "server" => &mut self.timeouts.server,
            "http-keep-alive" => &mut self.timeouts.keep_alive,
            "queue" | "check" | "tunnel" | "client-fin" | "server-fin" | "tarpit" => {
                return Ok(Taken::Ignored);
            }
            _ => return Ok(Taken::Unknown),
        };
        *timeout = words::duration("timeout", word)?;
        Ok(Taken::Used)
    }

    fn listen(&mut self, keyword: &str, words: SplitAsciiWhitespace<'_>) -> Result<Taken, Problem> {
        Ok(match keyword {
            "bind" => self.bind(words)?.into(),
            "server" => match words::exactly(words) {
                Some([_name, _path]) if self.agent_socket.is_some() => {
                    return Err(Problem::Second("server line"));
                }
                Some([_name, path]) => {
                    self.agent_socket = Some(words::socket_path(path)?);
                    Taken::Used
                }
                None => Taken::Unknown,
            },
            "http-request" => self.http_request(words)?.into(),
            _ => self.proxy(keyword, words)?,
        })
    }

    fn bind(&mut self, mut words: SplitAsciiWhitespace<'_>) -> Result<Option<()>, Problem> {
        let Some(address) = words.next() else {
            return Ok(None);
        };
        let interface = match words.next() {
            None => None,
            Some("interface") => match words::exactly(words) {
                Some([name]) => Some(name),
                None => return Ok(None),
            },
            Some(_) => return Ok(None),
        };
        self.binds.push(words::bind(address, interface)?);
        Ok(Some(()))
    }

    fn http_request(&mut self, mut words: SplitAsciiWhitespace<'_>) -> Result<Option<()>, Problem> {
        Ok(match words.next() {
            Some("set-header" | "add-header") => match words::exactly(words) {
                Some([header, id]) => {
                    let Some(kind) = kind_of_header(header) else {
                        return Ok(None);
                    };
                    let id = words::uuid(kind_id(kind), id)?;
                    if self.tenant.replace(Tenant { kind, id }).is_some() {
                        return Err(Problem::Second("header of a router or a network"));
                    }
                    Some(())
                }
                None => None,
            },
            // The guest's own is never let through, whichever it is.
            Some("del-header") => words::exactly(words)
                .and_then(|[header]| kind_of_header(header))
                .map(drop),
            Some("track-sc0" | "track-sc1") => self.limits.track(words),
            Some("deny") => self.limits.deny(words)?,
            _ => None,
        })
    }
}

/// Takes the one word that follows a keyword.
fn set<T>(
    what: &'static str,
    slot: &mut Option<T>,
    words: SplitAsciiWhitespace<'_>,
) -> Result<Taken, Problem>
where
    T: for<'a> From<&'a str>,
{
    let Some([word]) = words::exactly(words) else {
        return Ok(Taken::Unknown);
    };
    if slot.replace(T::from(word)).is_some() {
        return Err(Problem::Second(what));
    }
    Ok(Taken::Used)
}

fn kind_of_header(header: &str) -> Option<TenantKind> {
    [
        TenantKind::Router,
        TenantKind::Network,
        TenantKind::OvnNetwork,
    ]
    .into_iter()
    .find(|&kind| {
        let tag = Tenant {
            kind,
            id: Uuid::nil(),
        }
        .tag_name();
        header.eq_ignore_ascii_case(tag.as_str())
    })
}

const fn kind_id(kind: TenantKind) -> &'static str {
    match kind {
        TenantKind::Router => "router id",
        TenantKind::Network | TenantKind::OvnNetwork => "network id",
    }
}

/// Whether haproxy knows a section of that name that Neutron does not use.
fn is_section(keyword: &str) -> bool {
    matches!(
        keyword,
        "frontend"
            | "peers"
            | "resolvers"
            | "userlist"
            | "mailers"
            | "program"
            | "ring"
            | "cache"
            | "http-errors"
            | "log-forward"
            | "fcgi-app"
            | "crt-store"
            | "traces"
            | "log-profile"
    )
}
