//! The command line: reads it, asks the running agent or the node, and prints.
//!
//! Running the agent itself is not here: [`dispatch`] is given a function for it. Every command
//! ends with an [`Exit`] that its help documents.

mod arguments;
pub mod check;
mod exit;
mod print;
pub mod privileges;
mod status;
mod tenants;
#[cfg(test)]
mod tests;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _};

pub use self::exit::{Exit, Failure};
use self::{
    arguments::{Arguments, Output, Settings, Socket, TenantsVerb, Verb},
    privileges::Capabilities,
};
use crate::{
    admin::{AdminClient, api::AddTenant},
    config::{Config, ConfigSources, Loaded},
};

/// How the agent is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// As the only one; it refuses while another runs.
    Afresh,
    /// In the place of the one that runs, if one does.
    TakeOver,
}

/// A command line that makes sense.
#[derive(Debug)]
pub struct Invocation(Arguments);

/// Reads the command line of this process; ends it with the help, the version, or what is wrong.
#[must_use]
pub fn parse() -> Invocation {
    Invocation(Arguments::parse())
}

impl Invocation {
    /// Reads a command line, the program's name first.
    ///
    /// # Errors
    /// What is wrong with it, or the help that it asks for.
    pub fn try_from_args<I, T>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        Arguments::try_parse_from(arguments).map(Self)
    }
}

/// Does what the command line asks for. The agent is run by `run`, once the configuration is valid
/// and the privileges are there; an error from it that holds a [`Failure`] decides the exit code.
pub fn dispatch(
    invocation: Invocation,
    run: impl FnOnce(Config, ConfigSources, Start) -> anyhow::Result<()>,
) -> ExitCode {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr());
    let output = invocation.0.output;
    execute(invocation, Capabilities::effective, run, &mut out, &mut err)
        .and_then(|exit| out.flush().map(|()| exit).map_err(anyhow::Error::from))
        .unwrap_or_else(|error| report(&error, output, &mut err))
        .into()
}

/// Tells an error, and how the command ends because of it.
fn report(error: &anyhow::Error, output: Output, err: &mut impl Write) -> Exit {
    if error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    {
        // Whoever read the output has seen enough.
        return Exit::Ok;
    }
    let exit = error
        .downcast_ref::<Failure>()
        .map_or(Exit::Failure, |failure| failure.exit);
    let written = match output {
        Output::Table => writeln!(err, "metadata-proxy: {error:#}"),
        Output::Json => {
            let body = serde_json::json!({ "error": format!("{error:#}"), "exit": exit.code() });
            writeln!(err, "{body}")
        }
    };
    // Nobody is left to tell that telling failed.
    drop(written);
    exit
}

fn execute(
    invocation: Invocation,
    capabilities: impl FnOnce() -> io::Result<Capabilities>,
    run: impl FnOnce(Config, ConfigSources, Start) -> anyhow::Result<()>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> anyhow::Result<Exit> {
    let Arguments {
        config: file,
        output,
        command,
    } = invocation.0;
    match command {
        Verb::Run { takeover, settings } => {
            let sources = sources(file, settings);
            let loaded = load(&sources, err)?;
            refuse_unprivileged(capabilities()?, &loaded.config)?;
            let start = if takeover {
                Start::TakeOver
            } else {
                Start::Afresh
            };
            run(loaded.config, sources, start)?;
            Ok(Exit::Ok)
        }
        Verb::Check(settings) => {
            let report = check::check(&sources(file, settings));
            match output {
                Output::Table => report.print(out)?,
                Output::Json => print::json(out, &report)?,
            }
            Ok(report.exit())
        }
        Verb::PrintConfig(settings) => {
            let loaded = load(&sources(file, settings), err)?;
            match output {
                Output::Table => out.write_all(toml::to_string(&loaded.config)?.as_bytes())?,
                Output::Json => print::json(out, &loaded.config)?,
            }
            Ok(Exit::Ok)
        }
        Verb::Tenants(TenantsVerb::List(socket)) => {
            let client = client(file, socket, err)?;
            tenants::list(&ask(client.tenants())?, output, out)?;
            Ok(Exit::Ok)
        }
        Verb::Tenants(TenantsVerb::Add {
            tenant,
            namespace,
            socket,
        }) => {
            let request = AddTenant {
                kind: tenant.kind,
                id: tenant.id,
                namespace: namespace.reference(),
            };
            request
                .namespace
                .validate()
                .map_err(|reason| Failure::new(Exit::Usage, reason))?;
            let client = client(file, socket, err)?;
            tenants::added(&ask(client.add(&request))?, output, out)?;
            Ok(Exit::Ok)
        }
        Verb::Tenants(TenantsVerb::Remove { tenant, socket }) => {
            let client = client(file, socket, err)?;
            tenants::removed(&ask(client.remove(tenant.kind, tenant.id))?, output, out)?;
            Ok(Exit::Ok)
        }
        Verb::Status(socket) => {
            let client = client(file, socket, err)?;
            let answers = ask(async { Ok((client.status().await?, client.tenants().await?)) });
            let (node, tenants) = answers?;
            status::show(&node, tenants, output, out)?;
            Ok(Exit::Ok)
        }
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(
                shell,
                &mut Arguments::command(),
                "metadata-proxy",
                &mut script,
            );
            out.write_all(&script)?;
            Ok(Exit::Ok)
        }
    }
}

/// Where the configuration comes from, as the command line says.
fn sources(file: Option<OsString>, settings: Settings) -> ConfigSources {
    let sources = match file.filter(|file| !file.is_empty()) {
        Some(file) => ConfigSources::named(PathBuf::from(file)),
        None => ConfigSources::default(),
    };
    let names = std::env::vars_os().map(|(name, _)| name);
    settings
        .0
        .into_iter()
        .fold(sources.with_environment(names), |sources, given| {
            sources.with_override(given.key, given.value, given.origin)
        })
}

fn load(sources: &ConfigSources, err: &mut impl Write) -> anyhow::Result<Loaded> {
    let loaded = Config::load(sources).map_err(Failure::from)?;
    for warning in &loaded.warnings {
        writeln!(err, "metadata-proxy: warning: {warning}")?;
    }
    Ok(loaded)
}

/// A client of the agent that the command line or the configuration names.
fn client(
    file: Option<OsString>,
    socket: Socket,
    err: &mut impl Write,
) -> anyhow::Result<AdminClient> {
    // A configuration that is broken must not keep anybody from looking at the agent that runs.
    if let Some(socket) = socket.named() {
        return Ok(AdminClient::new(socket));
    }
    let loaded = load(&sources(file, Settings::default()), err)?;
    Ok(AdminClient::new(loaded.config.admin.socket))
}

/// Waits for the agent's answer.
fn ask<T>(
    question: impl Future<Output = Result<T, crate::admin::ClientError>>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(question).map_err(Failure::from)?)
}

/// Says which capability is missing before anything fails half way.
fn refuse_unprivileged(capabilities: Capabilities, config: &Config) -> anyhow::Result<()> {
    let lacking = capabilities.lacking(config);
    if lacking.is_empty() {
        return Ok(());
    }
    let message = format!(
        "the agent cannot run without {}: run it as root, or give it these capabilities",
        privileges::list(&lacking)
    );
    Err(Failure::new(Exit::Privilege, message).into())
}
