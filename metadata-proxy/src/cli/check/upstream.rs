//! Whether the upstream is there.

use std::{
    fs, io,
    net::{TcpStream, ToSocketAddrs as _},
    os::unix::fs::FileTypeExt as _,
    path::Path,
    time::Duration,
};

use super::Item;
use crate::{
    admin::connect_now,
    cli::exit::Exit,
    config::{Config, HttpAddress, UpstreamConfig},
};

const CHECK: &str = "upstream";
/// How long an endpoint is given to accept.
const PATIENCE: Duration = Duration::from_secs(2);

/// Looks whether the upstream is there: connects to it and lets go, asks nothing.
#[must_use]
pub fn check_upstream(config: &Config) -> Item {
    match &config.upstream {
        UpstreamConfig::Agent(agent) => unix(
            "agent",
            &agent.socket,
            "start Neutron's metadata agent, or set upstream.agent.socket to its socket",
        ),
        UpstreamConfig::Http(http) => match &http.address {
            HttpAddress::Unix(path) => unix(
                "http",
                path,
                "start the server, or set upstream.http.address to its socket",
            ),
            HttpAddress::Tcp { host, port } => tcp(&http.address, host, *port),
        },
        UpstreamConfig::Embedded(embedded) => file(&embedded.file),
    }
}

fn unix(kind: &str, path: &Path, remedy: &'static str) -> Item {
    let shown = path.display();
    let absent = |found: String| Item::warning(CHECK, found, "guests get 503 until it is", remedy);
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return absent(format!("{kind}: {shown} is not there"));
        }
        Err(error) => return unreachable(&format!("{kind}: {shown}"), &error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Item::failure(
                CHECK,
                format!("{kind}: {shown} is no socket"),
                "guests would always get 503",
                remedy,
            );
        }
        Ok(_) => {}
    }
    match connect_now(path) {
        Ok(_) => Item::ok(CHECK, format!("{kind}: {shown} accepts connections")),
        // Somebody listens, and that is what was asked.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Item::ok(CHECK, format!("{kind}: {shown} is there, and busy"))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            absent(format!("{kind}: nobody listens on {shown}"))
        }
        Err(error) => unreachable(&format!("{kind}: {shown}"), &error),
    }
}

fn tcp(address: &HttpAddress, host: &str, port: u16) -> Item {
    let found = format!("http: {address}");
    let resolved = match (host, port).to_socket_addrs() {
        Ok(resolved) => resolved,
        Err(error) => return unreachable(&found, &error),
    };
    let mut last = io::Error::other("the name has no address");
    for address in resolved {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(_) => return Item::ok(CHECK, format!("{found} accepts connections")),
            Err(error) => last = error,
        }
    }
    unreachable(&found, &last)
}

fn file(path: &Path) -> Item {
    match fs::read_to_string(path) {
        Ok(_) => Item::ok(CHECK, format!("embedded: {} can be read", path.display())),
        Err(error) => Item::failure(
            CHECK,
            format!("embedded: {} cannot be read: {error}", path.display()),
            "there would be nothing to answer with",
            "write it, or set upstream.embedded.file to the one that is meant",
        )
        .exits(exit_for(&error)),
    }
}

fn unreachable(found: &str, error: &io::Error) -> Item {
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    let found = format!("{found} cannot be reached: {error}");
    if denied {
        let remedy = "run as the socket's owner or as root (CAP_DAC_OVERRIDE)";
        Item::failure(CHECK, found, "guests would get 503", remedy).exits(Exit::Privilege)
    } else {
        Item::warning(
            CHECK,
            found,
            "guests get 503 until it can be",
            "start it, or see to the way",
        )
    }
}

fn exit_for(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Exit::Privilege,
        _ => Exit::Node,
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::net::UnixListener};

    use socket2::{Domain, SockAddr, Socket, Type};

    use super::*;
    use crate::{
        cli::check::Verdict,
        config::{AgentConfig, EmbeddedConfig, HttpConfig},
    };

    fn verdict(upstream: UpstreamConfig) -> Verdict {
        check_upstream(&Config {
            upstream,
            ..Config::default()
        })
        .verdict
    }

    fn agent(socket: &Path) -> Verdict {
        verdict(UpstreamConfig::Agent(AgentConfig {
            socket: socket.to_owned(),
            ..AgentConfig::default()
        }))
    }

    #[test]
    fn an_agents_socket_is_tried() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        assert_eq!(agent(&path), Verdict::Warning);
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(agent(&path), Verdict::Ok);
        drop(listener);
        assert_eq!(
            agent(&path),
            Verdict::Warning,
            "left behind by an agent that is no more"
        );
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(agent(&path), Verdict::Failure);
    }

    #[test]
    fn a_full_backlog_does_not_hold_the_check_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        socket.listen(0).unwrap();
        let waiting = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        waiting.connect(&SockAddr::unix(&path).unwrap()).unwrap();
        assert_eq!(agent(&path), Verdict::Ok);
    }

    #[test]
    fn an_endpoint_is_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address: HttpAddress = listener.local_addr().unwrap().to_string().parse().unwrap();
        let config = UpstreamConfig::Http(HttpConfig {
            address,
            pool_size: 1,
        });
        assert_eq!(verdict(config.clone()), Verdict::Ok);
        drop(listener);
        assert_eq!(verdict(config), Verdict::Warning);
    }

    #[test]
    fn an_endpoint_may_be_a_unix_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("http.sock");
        let config = UpstreamConfig::Http(HttpConfig {
            address: HttpAddress::Unix(path.clone()),
            pool_size: 1,
        });
        let item = check_upstream(&Config {
            upstream: config.clone(),
            ..Config::default()
        });
        assert_eq!(item.verdict, Verdict::Warning);
        assert!(item.found.starts_with("http: /"), "{}", item.found);
        let _listener = UnixListener::bind(&path).unwrap();
        assert_eq!(verdict(config), Verdict::Ok);
    }

    #[test]
    fn a_file_of_instances_must_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("instances.yaml");
        let config = UpstreamConfig::Embedded(EmbeddedConfig { file: file.clone() });
        assert_eq!(verdict(config.clone()), Verdict::Failure);
        fs::write(&file, "").unwrap();
        assert_eq!(verdict(config), Verdict::Ok);
    }
}
