//! Messages to whoever started us, and to syslog.

use std::{
    fmt::{self, Display},
    io::{self, Write},
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process,
};

use metadata_proxy::neutron::{LogLevel, haproxy_cfg::ProxyConfig};

/// Facility local0, the one that Neutron's configurations name.
const FACILITY: u8 = 16;

/// Why the work cannot be done, for a person.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: impl Display) -> Self {
        Self(text.to_string())
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where messages go.
#[derive(Debug)]
pub(crate) struct Report {
    syslog: PathBuf,
    tag: String,
    level: LogLevel,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            syslog: PathBuf::from("/dev/log"),
            tag: "haproxy".to_owned(),
            level: LogLevel::Info,
        }
    }
}

impl Report {
    /// Logs from now on as the configuration says.
    pub(crate) fn adopt(&mut self, config: &ProxyConfig) {
        if let Some(address) = &config.log_address
            && address.starts_with('/')
        {
            self.syslog = PathBuf::from(address);
        }
        if let Some(tag) = &config.log_tag {
            self.tag.clone_from(tag);
        }
        self.level = config.settings.log_level;
    }

    /// Tells of something that keeps the tenant from being served.
    pub(crate) fn alert(&self, text: &dyn Display) {
        self.tell("[ALERT] ", LogLevel::Alert, text);
    }

    /// Tells of something worth knowing.
    pub(crate) fn notice(&self, text: &dyn Display) {
        self.tell("[NOTICE]", LogLevel::Notice, text);
    }

    fn tell(&self, mark: &str, level: LogLevel, text: &dyn Display) {
        let pid = process::id();
        // Whoever does not want to hear it has closed it.
        let _ = io::stderr().write_all(format!("{mark}   ({pid}) : {text}\n").as_bytes());
        if level > self.level {
            return;
        }
        // Without a time: the receiver has a clock, and the form without one is understood
        // everywhere (RFC 3164, 4.3.3).
        let priority = FACILITY * 8 + level as u8;
        let message = format!("<{priority}>{}[{pid}]: {text}", self.tag);
        // Without a syslog there is nobody to tell that there is none.
        let _ = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.send_to(message.as_bytes(), &self.syslog)
        });
    }
}
