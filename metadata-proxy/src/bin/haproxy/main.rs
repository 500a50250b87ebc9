//! Stands in for haproxy where Neutron starts one for each tenant.
//!
//! It reads the configuration that Neutron wrote, registers the tenant with the node's agent
//! together with the network namespace it was started in, and stays, doing nothing, for as long as
//! Neutron wants that tenant served: its connection to the agent is the tenant's lease. There is
//! one such process per tenant, so it must cost next to nothing: one thread, no runtime, no work
//! while nothing happens. It serves no request itself, and where it cannot register it runs the
//! real haproxy, if one was named.

mod arguments;
mod config_file;
mod detach;
mod fallback;
mod pidfile;
mod privileges;
mod registration;
mod report;
mod signals;
mod surroundings;

use std::{
    io::{self, Write},
    process::{self, ExitCode},
};

use metadata_proxy::{
    neutron::haproxy_cfg::ProxyConfig,
    register::{Client, Request, client::Lease},
};

use self::{
    arguments::{Action, Arguments, Mode},
    detach::Side,
    registration::Registrar,
    report::{Failure, Report},
    signals::Signals,
    surroundings::Surroundings,
};

/// The release of haproxy that this program behaves like.
const HAPROXY: &str = "2.6.12";

/// This program's own version.
const OWN: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let mut report = Report::default();
    let arguments = Arguments::parse(std::env::args_os().skip(1));
    let surroundings = Surroundings::look(&report);
    match run(&arguments, &surroundings, &mut report) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => report.alert(&failure),
    }
    let fallback = arguments.fallback.or(surroundings.fallback);
    if let Some(program) = fallback {
        report.notice(&format_args!("running {} instead", program.display()));
        report.alert(&fallback::execute(&program, &arguments.for_haproxy));
    }
    ExitCode::FAILURE
}

/// Does what the arguments ask; comes back when that is done.
fn run(
    arguments: &Arguments,
    surroundings: &Surroundings,
    report: &mut Report,
) -> Result<(), Failure> {
    match &arguments.action {
        Err(refusal) => Err(Failure::new(refusal)),
        Ok(Action::Version) => {
            say(&format!(
                "HAProxy version {HAPROXY}-metadata-proxy-{OWN} - not HAProxy itself, but \
                 metadata-proxy's stand-in for it\n\
                 Status: registers tenants with the metadata-proxy of this node.\n"
            ));
            Ok(())
        }
        Ok(Action::Check) => {
            config_file::load(&arguments.configs)?;
            if !arguments.quiet {
                say("Configuration file is valid\n");
            }
            Ok(())
        }
        Ok(Action::Serve(mode)) => {
            let mut config = config_file::load(&arguments.configs)?;
            report.adopt(&config);
            let pidfile = arguments.pidfile.as_ref().or(config.pidfile.as_ref());
            // The process that stays changes its directory.
            config.pidfile = pidfile.and_then(|path| std::path::absolute(path).ok());
            if mode.leaves_foreground(config.daemon) {
                serve_in_background(config, surroundings, report)
            } else {
                if !mode.supervised {
                    config.pidfile = None;
                }
                serve_in_foreground(config, *mode, surroundings, report)
            }
        }
    }
}

/// Serves until a signal.
fn serve_in_foreground(
    config: ProxyConfig,
    mode: Mode,
    surroundings: &Surroundings,
    report: &Report,
) -> Result<(), Failure> {
    let signals = Signals::block()?;
    if let Some((registrar, lease)) = register(config, surroundings, &signals)? {
        if mode.notifies {
            surroundings::notify_ready();
        }
        registrar.hold(lease, &signals, report);
    }
    Ok(())
}

/// Comes back in the first process once another one serves, or could not.
fn serve_in_background(
    config: ProxyConfig,
    surroundings: &Surroundings,
    report: &Report,
) -> Result<(), Failure> {
    let detached = match detach::fork()? {
        Side::Parent(outcome) => return outcome.wait(),
        Side::Child(detached) => detached,
    };
    let registered = Signals::block()
        .and_then(|signals| Ok((register(config, surroundings, &signals)?, signals)));
    match registered {
        Ok((Some((registrar, lease)), signals)) => {
            detached.served();
            registrar.hold(lease, &signals, report);
        }
        Ok((None, _)) => {}
        Err(failure) => detached.failed(&failure),
    }
    process::exit(0)
}

/// Has the tenant served and leaves this process's pid; `None` if a signal came first.
fn register(
    config: ProxyConfig,
    surroundings: &Surroundings,
    signals: &Signals,
) -> Result<Option<(Registrar, Lease)>, Failure> {
    let pidfile = config.pidfile;
    let request = Request {
        tenant: config.tenant,
        settings: config.settings,
        client: Client {
            pid: process::id(),
            version: OWN.to_owned(),
        },
    };
    let mut registrar = Registrar::new(&surroundings.register_socket, request.encode());
    let Some(lease) = registrar.first(surroundings.wait, signals)? else {
        return Ok(None);
    };
    if let Some(pidfile) = pidfile {
        pidfile::write(&pidfile, process::id())?;
    }
    privileges::give_up(&surroundings.register_socket);
    Ok(Some((registrar, lease)))
}

/// Prints to standard output; a closed one is no reason to fail.
fn say(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}
