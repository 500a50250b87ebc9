//! What an operator has set for this program: a file, then the environment on top of it.
//!
//! The file is what counts in practice, for Neutron's privilege helpers clear the environment:
//!
//! ```text
//! # /etc/metadata-proxy/standin.conf
//! register_socket=/run/metadata-proxy/register.sock
//! fallback=/usr/sbin/haproxy
//! wait_seconds=30
//! ```

use std::{
    env,
    ffi::OsString,
    fs,
    io::ErrorKind,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::PathBuf,
    time::Duration,
};

use metadata_proxy::register::DEFAULT_SOCKET;

use crate::report::Report;

const DEFAULT_FILE: &str = "/etc/metadata-proxy/standin.conf";

/// How long a tenant may take to be served.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);

/// What an operator has set.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Where the agent takes registrations.
    pub(crate) register_socket: PathBuf,
    /// The program to run where this one cannot do its work.
    pub(crate) fallback: Option<PathBuf>,
    /// How long a tenant may take to be served.
    pub(crate) wait: Duration,
}

impl Surroundings {
    /// Looks at the file and the environment. What is wrong there is told but does not stop
    /// anything: a tenant without metadata would be worse.
    pub(crate) fn look(report: &Report) -> Self {
        let mut found = Self {
            register_socket: PathBuf::from(DEFAULT_SOCKET),
            fallback: None,
            wait: DEFAULT_WAIT,
        };
        let file = env::var_os("METADATA_PROXY_STANDIN_CONFIG")
            .map_or_else(|| PathBuf::from(DEFAULT_FILE), PathBuf::from);
        match fs::read_to_string(&file) {
            Ok(text) => found.read(&text, |line, problem| {
                report.notice(&format_args!(
                    "{}, line {line}: {problem}; the line is left out",
                    file.display()
                ));
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => report.notice(&format_args!("cannot read {}: {error}", file.display())),
        }
        for (name, key) in [
            ("METADATA_PROXY_REGISTER_SOCKET", "register_socket"),
            ("METADATA_PROXY_FALLBACK", "fallback"),
            ("METADATA_PROXY_WAIT_SECONDS", "wait_seconds"),
        ] {
            if let Some(value) = env::var_os(name)
                && let Err(problem) = found.set(key, value)
            {
                report.notice(&format_args!("{name}: {problem}; it is left out"));
            }
        }
        found
    }

    fn read(&mut self, text: &str, mut tell: impl FnMut(usize, &'static str)) {
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let set = line
                .split_once('=')
                .ok_or("not of the form key=value")
                .and_then(|(key, value)| self.set(key.trim(), value.trim().into()));
            if let Err(problem) = set {
                tell(index + 1, problem);
            }
        }
    }

    fn set(&mut self, key: &str, value: OsString) -> Result<(), &'static str> {
        match key {
            "register_socket" if value.is_empty() => return Err("the path is empty"),
            "register_socket" => self.register_socket = value.into(),
            "fallback" => self.fallback = (!value.is_empty()).then(|| value.into()),
            "wait_seconds" => {
                let seconds = value.to_str().and_then(|value| value.parse::<u16>().ok());
                self.wait = seconds
                    .map(|seconds| Duration::from_secs(seconds.into()))
                    .ok_or("not a number of seconds up to 65535")?;
            }
            _ => return Err("not one of register_socket, fallback, wait_seconds"),
        }
        Ok(())
    }
}

/// Tells systemd that the tenant is served, if it is systemd that asks (`sd_notify(3)`).
pub(crate) fn notify_ready() {
    let Some(name) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    // A supervisor that cannot be told will say so itself.
    let _ =
        address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1\n", &address));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_sets_what_it_names_and_its_faults_are_told_with_their_lines() {
        let mut found = Surroundings {
            register_socket: PathBuf::from(DEFAULT_SOCKET),
            fallback: None,
            wait: DEFAULT_WAIT,
        };
        let mut told = Vec::new();
        found.read(
            "# ours\n\nregister_socket = /run/r.sock\nfallback=/usr/sbin/haproxy\nwait_seconds=soon\nx\ny=1\n",
            |line, _| told.push(line),
        );
        assert_eq!(found.register_socket, PathBuf::from("/run/r.sock"));
        assert_eq!(found.fallback, Some(PathBuf::from("/usr/sbin/haproxy")));
        assert_eq!(found.wait, DEFAULT_WAIT);
        assert_eq!(told, [5, 6, 7]);
    }
}
