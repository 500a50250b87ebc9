//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Arg, ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand, ValueEnum,
    parser::ValueSource,
};
use metadata_proxy_common::TenantKind;
use uuid::Uuid;

use super::exit::EXIT_CODES;
use crate::{
    admin::api::NamespaceRef,
    config::{
        Config, FILE_VARIABLE, Origin, Override,
        settings::{SETTINGS, Setting, Shape},
    },
    identity::{kind_from_name, kind_name},
};

/// One process per node that answers every tenant's metadata requests.
#[derive(Debug, Parser)]
#[command(name = "metadata-proxy", version, after_help = EXIT_CODES)]
pub(super) struct Arguments {
    /// Configuration file [default: /etc/metadata-proxy/metadata-proxy.toml, if it is there]
    #[arg(short, long, global = true, env = FILE_VARIABLE, value_name = "FILE")]
    #[arg(value_parser = clap::value_parser!(OsString), hide_env_values = true)]
    pub(super) config: Option<OsString>,

    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,

    #[command(subcommand)]
    pub(super) command: Verb,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run the agent in the foreground until SIGTERM
    Run {
        /// Take over from the agent that runs, if one does: it drains and ends, and no connection
        /// is reset
        #[arg(long)]
        takeover: bool,

        #[command(flatten)]
        settings: Settings,
    },
    /// Check the configuration and this node, change nothing
    Check(Settings),
    /// Print the configuration that file, environment and flags add up to
    PrintConfig(Settings),
    /// List, add and remove tenants of the running agent
    #[command(subcommand)]
    Tenants(TenantsVerb),
    /// Show how the running agent is doing
    Status(Socket),
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum TenantsVerb {
    /// List tenants
    List(Socket),
    /// Serve a tenant until it is removed or the agent ends
    Add {
        #[command(flatten)]
        tenant: TenantArgs,
        #[command(flatten)]
        namespace: NamespaceArgs,
        #[command(flatten)]
        socket: Socket,
    },
    /// Cease to serve a tenant that was added
    Remove {
        #[command(flatten)]
        tenant: TenantArgs,
        #[command(flatten)]
        socket: Socket,
    },
}

#[derive(Debug, Args)]
pub(super) struct TenantArgs {
    /// What the tenant is to Neutron
    #[arg(long, value_parser = parse_kind, value_name = "KIND")]
    #[arg(help = "What the tenant is to Neutron [possible values: router, network, ovn-network]")]
    pub(super) kind: TenantKind,

    /// UUID of the router or network
    #[arg(long, value_name = "UUID")]
    pub(super) id: Uuid,
}

fn parse_kind(word: &str) -> Result<TenantKind, String> {
    kind_from_name(word).ok_or_else(|| {
        let kinds = [
            TenantKind::Router,
            TenantKind::Network,
            TenantKind::OvnNetwork,
        ];
        format!("there are {}", kinds.map(kind_name).join(", "))
    })
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct NamespaceArgs {
    /// Name of its namespace, as in `ip netns`
    #[arg(long, value_name = "NAME")]
    netns: Option<String>,

    /// Path of its namespace
    #[arg(long, value_name = "PATH")]
    path: Option<PathBuf>,

    /// A process in its namespace, by the pid the agent sees
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

impl NamespaceArgs {
    pub(super) fn reference(self) -> NamespaceRef {
        match (self.netns, self.path, self.pid) {
            (Some(name), ..) => NamespaceRef::Name(name),
            (_, Some(path), _) => NamespaceRef::Path(path),
            // Exactly one is given; clap sees to it.
            (.., pid) => NamespaceRef::Pid(pid.unwrap_or_default()),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Socket {
    /// Admin socket of the running agent [default: admin.socket of the configuration]
    #[arg(
        long,
        env = "METADATA_PROXY_ADMIN_SOCKET",
        value_name = "PATH",
        hide_env_values = true
    )]
    #[arg(value_parser = clap::value_parser!(OsString))]
    admin_socket: Option<OsString>,
}

impl Socket {
    /// The socket, if one is named here.
    pub(super) fn named(self) -> Option<PathBuf> {
        self.admin_socket
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    }
}

/// Every key of the configuration as a flag and as an environment variable.
#[derive(Debug, Default)]
pub(super) struct Settings(pub(super) Vec<Override>);

impl Args for Settings {
    fn augment_args(command: Command) -> Command {
        let defaults = toml::Table::try_from(Config::default()).unwrap_or_default();
        SETTINGS.iter().fold(command, |command, setting| {
            command.arg(flag(setting, &defaults))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let overrides = SETTINGS.iter().filter_map(|setting| {
            let value: &String = matches.get_one(setting.key)?;
            let from_environment =
                matches.value_source(setting.key) == Some(ValueSource::EnvVariable);
            if from_environment && value.is_empty() {
                return None;
            }
            let origin = if from_environment {
                Origin::Environment(setting.variable.clone())
            } else {
                Origin::Flag(format!("--{}", setting.flag))
            };
            Some(Override {
                key: setting.key.to_owned(),
                value: value.clone(),
                origin,
            })
        });
        Ok(Self(overrides.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Values are taken as text: they are checked together with the file, so that all problems are
/// told at once.
fn flag(setting: &'static Setting, defaults: &toml::Table) -> Arg {
    let default = default_of(setting.key, defaults)
        .map(|value| format!(" [default: {}]", shown(value)))
        .unwrap_or_default();
    let value_name = match setting.shape {
        Shape::Bool => "BOOL",
        Shape::Integer { .. } => "NUMBER",
        Shape::Duration(_) => "DURATION",
        Shape::Word(_) => "WORD",
        Shape::Path | Shape::SocketPath => "PATH",
        Shape::Globs => "GLOBS",
        Shape::IpVersions => "VERSIONS",
        Shape::Address => "ADDRESS",
        Shape::LogLevel => "LEVEL",
    };
    Arg::new(setting.key)
        .long(setting.flag.as_str())
        .env(setting.variable.as_str())
        .hide_env_values(true)
        .value_name(value_name)
        // Out of range, and told so together with everything else.
        .allow_negative_numbers(true)
        .help(format!("{}{default}", setting.help))
        .long_help(format!(
            "{}{default}\nAllowed: {}",
            setting.help,
            setting.shape.allowed()
        ))
        .help_heading("Settings (each overrides the key of the same name in the file)")
        .hide_short_help(!setting.common)
}

fn default_of<'a>(key: &str, defaults: &'a toml::Table) -> Option<&'a toml::Value> {
    let mut names = key.split('.');
    let first = defaults.get(names.next()?)?;
    names.try_fold(first, |value, name| value.get(name))
}

fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_setting_is_a_flag_of_the_commands_that_read_the_configuration() {
        for verb in ["run", "check", "print-config"] {
            for setting in SETTINGS.iter() {
                let flag = format!("--{}=x", setting.flag);
                let arguments = Arguments::try_parse_from(["metadata-proxy", verb, &flag]).unwrap();
                let (Verb::Run { settings, .. }
                | Verb::Check(settings)
                | Verb::PrintConfig(settings)) = arguments.command
                else {
                    panic!("another command");
                };
                let given: Vec<_> = settings
                    .0
                    .iter()
                    .filter(|given| matches!(given.origin, Origin::Flag(_)))
                    .collect();
                assert_eq!(given.len(), 1);
                assert_eq!(
                    (given[0].key.as_str(), given[0].value.as_str()),
                    (setting.key, "x")
                );
            }
        }
    }

    #[test]
    fn help_shows_defaults_and_what_is_allowed() {
        let mut command = Arguments::command();
        let run = command.find_subcommand_mut("run").unwrap();
        let short = run.render_help().to_string();
        assert!(short.contains("--listener-port <NUMBER>"), "{short}");
        assert!(
            short.contains("[default: 9697]") && !short.contains("--limits-"),
            "{short}"
        );
        let long = run.render_long_help().to_string();
        for text in [
            "[default: tap*,ns-*]",
            "--limits-head-bytes",
            "Allowed: an integer from 1 to 65535",
        ] {
            assert!(long.contains(text), "{text}");
        }
    }

    #[test]
    fn a_namespace_is_given_in_exactly_one_way() {
        let parse = |more: &[&str]| {
            let id = "a2e4cf6e-3a1c-4f2b-9d7e-0c8b5a697f10";
            let fixed = [
                "metadata-proxy",
                "tenants",
                "add",
                "--kind",
                "router",
                "--id",
                id,
            ];
            Arguments::try_parse_from(fixed.iter().chain(more)).map(|arguments| {
                match arguments.command {
                    Verb::Tenants(TenantsVerb::Add { namespace, .. }) => namespace.reference(),
                    other => panic!("another command: {other:?}"),
                }
            })
        };
        assert_eq!(
            parse(&["--netns", "a"]).unwrap(),
            NamespaceRef::Name("a".into())
        );
        assert_eq!(
            parse(&["--path", "/a"]).unwrap(),
            NamespaceRef::Path("/a".into())
        );
        assert_eq!(parse(&["--pid", "7"]).unwrap(), NamespaceRef::Pid(7));
        assert!(parse(&[]).is_err());
        assert!(parse(&["--netns", "a", "--pid", "7"]).is_err());
    }
}
