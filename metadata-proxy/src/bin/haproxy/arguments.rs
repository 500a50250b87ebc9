//! The command line, as haproxy understands it.

use std::{ffi::OsString, path::PathBuf};

/// What the command line asks for.
#[derive(Debug)]
pub(crate) struct Arguments {
    /// What is to be done, or why that cannot be said.
    pub(crate) action: Result<Action, String>,
    /// Configuration files, in their order.
    pub(crate) configs: Vec<PathBuf>,
    /// `-p`: takes precedence over the configuration's.
    pub(crate) pidfile: Option<PathBuf>,
    /// `-q`.
    pub(crate) quiet: bool,
    /// `--fallback`: the program to run where this one cannot do its work.
    pub(crate) fallback: Option<PathBuf>,
    /// Everything but what is ours alone.
    pub(crate) for_haproxy: Vec<OsString>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// `-v`, `-vv`.
    Version,
    /// `-c`.
    Check,
    /// Register the tenant and stay.
    Serve(Mode),
}

/// How the process is to stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mode {
    /// Where.
    pub(crate) place: Place,
    /// `-W`, `-Ws`, `-Ds`: with a pidfile even in the foreground.
    pub(crate) supervised: bool,
    /// `-Ws`: tells systemd when it is ready.
    pub(crate) notifies: bool,
}

/// Where the process is to stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the background if the configuration says `daemon`.
    #[default]
    Configured,
    /// `-D`: in the background.
    Background,
    /// `-db`, `-Ws`, and `-Ds` of haproxy 1.5 to 1.7: in the foreground, whatever else says
    /// otherwise.
    Foreground,
}

impl Mode {
    /// Whether the process is to leave the foreground, for a configuration that says `daemon` or
    /// does not.
    pub(crate) const fn leaves_foreground(self, daemon: bool) -> bool {
        match self.place {
            Place::Configured => daemon,
            Place::Background => true,
            Place::Foreground => false,
        }
    }
}

impl Arguments {
    /// Reads a command line without the program's name.
    pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Self {
        let mut parser = Parser {
            rest: arguments,
            version: false,
            check: false,
            mode: Mode::default(),
            parsed: Self {
                action: Ok(Action::Version),
                configs: Vec::new(),
                pidfile: None,
                quiet: false,
                fallback: None,
                for_haproxy: Vec::new(),
            },
        };
        let read = parser.read();
        let mut parsed = parser.parsed;
        parsed.action = read.and_then(|()| {
            if parser.version {
                Ok(Action::Version)
            } else if parsed.configs.is_empty() {
                Err("no configuration file was named; haproxy is called with -f <file>".to_owned())
            } else if parser.check {
                Ok(Action::Check)
            } else {
                Ok(Action::Serve(parser.mode))
            }
        });
        parsed
    }
}

struct Parser<I> {
    rest: I,
    version: bool,
    check: bool,
    mode: Mode,
    parsed: Arguments,
}

impl<I: Iterator<Item = OsString>> Parser<I> {
    /// Reads to the end even when it has met something unknown: the fallback may come later.
    fn read(&mut self) -> Result<(), String> {
        let mut outcome = Ok(());
        let mut only_files = false;
        while let Some(argument) = self.rest.next() {
            if only_files {
                self.parsed.configs.push(PathBuf::from(&argument));
                self.parsed.for_haproxy.push(argument);
            } else if argument == "--" {
                only_files = true;
                self.parsed.for_haproxy.push(argument);
            } else {
                outcome = outcome.and(self.flag(argument));
            }
        }
        outcome
    }

    fn flag(&mut self, argument: OsString) -> Result<(), String> {
        // Flags are ASCII; what is not UTF-8 is none.
        let flag = argument.to_str().unwrap_or_default().to_owned();
        if let Some(program) = flag.strip_prefix("--fallback=") {
            self.parsed.fallback = Some(PathBuf::from(program));
            return Ok(());
        }
        if flag == "--fallback" {
            self.parsed.fallback = self.rest.next().map(PathBuf::from);
            return Ok(());
        }
        self.parsed.for_haproxy.push(argument);
        match flag.as_str() {
            "-f" => {
                let config = self.value("-f")?;
                self.parsed.configs.push(PathBuf::from(config));
            }
            "-p" => self.parsed.pidfile = Some(PathBuf::from(self.value("-p")?)),
            "-v" | "-vv" => self.version = true,
            "-c" => self.check = true,
            "-q" => self.parsed.quiet = true,
            "-D" if self.mode.place == Place::Foreground => {}
            "-D" => self.mode.place = Place::Background,
            "-db" | "-d" => self.mode.place = Place::Foreground,
            "-W" => self.mode.supervised = true,
            "-Ws" => {
                self.mode.supervised = true;
                self.mode.place = Place::Foreground;
                self.mode.notifies = true;
            }
            "-Ds" => {
                self.mode.supervised = true;
                self.mode.place = Place::Foreground;
            }
            // How haproxy talks, polls and counts; nothing here does.
            "-V" | "-de" | "-dp" | "-dS" | "-dG" | "-dR" | "-dr" | "-dV" | "-dW" | "-dD" => {}
            "-n" | "-N" | "-m" | "-L" => {
                self.value(&flag)?;
            }
            _ => {
                let argument = self.parsed.for_haproxy.last();
                return Err(format!(
                    "argument {} is not one that Neutron, kolla or tripleo uses",
                    argument.map_or("".into(), |argument| argument.to_string_lossy())
                ));
            }
        }
        Ok(())
    }

    fn value(&mut self, flag: &str) -> Result<OsString, String> {
        let value = self
            .rest
            .next()
            .ok_or_else(|| format!("argument {flag} lacks its value"))?;
        self.parsed.for_haproxy.push(value.clone());
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(line: &str) -> Arguments {
        Arguments::parse(line.split_whitespace().map(OsString::from))
    }

    fn mode(line: &str) -> Mode {
        match parse(line).action {
            Ok(Action::Serve(mode)) => mode,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn neutrons_own_call_follows_the_configuration() {
        let arguments = parse("-f /var/lib/neutron/ns-metadata-proxy/x.conf");
        let config = Path::new("/var/lib/neutron/ns-metadata-proxy/x.conf");
        assert_eq!(arguments.configs, [config]);
        let mode = mode("-f x");
        assert!(mode.leaves_foreground(true));
        assert!(!mode.leaves_foreground(false));
    }

    #[test]
    fn the_background_is_left_or_kept_as_haproxys_flags_say() {
        assert!(mode("-D -f x").leaves_foreground(false));
        assert!(mode("-W -f x").leaves_foreground(true));
        for foreground in [
            "-Ws -f x",
            "-Ds -f x",
            "-db -f x",
            "-W -D -db -f x",
            "-db -D -f x",
        ] {
            assert!(!mode(foreground).leaves_foreground(true), "{foreground}");
        }
        for (line, supervised) in [("-f x -Ws", true), ("-f x -Ds", true), ("-f x -db", false)] {
            assert_eq!(mode(line).supervised, supervised, "{line}");
        }
    }

    #[test]
    fn several_files_and_those_after_two_dashes_are_read() {
        let arguments = parse("-f a -f b -- c -d");
        assert_eq!(arguments.configs, ["a", "b", "c", "-d"].map(PathBuf::from));
    }

    #[test]
    fn our_own_argument_is_not_passed_on() {
        for line in [
            "--fallback /real -Ws -p /pid -f a",
            "-Ws -p /pid -f a --fallback=/real",
            "-Ws --fallback /real -p /pid -f a",
        ] {
            let arguments = parse(line);
            assert_eq!(arguments.fallback, Some(PathBuf::from("/real")), "{line}");
            assert_eq!(
                arguments.for_haproxy,
                ["-Ws", "-p", "/pid", "-f", "a"].map(OsString::from),
                "{line}"
            );
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_but_the_fallback_still_known() {
        for line in ["-sf 12 -f a --fallback /real", "-f a -x s --fallback /real"] {
            let arguments = parse(line);
            assert!(arguments.action.is_err(), "{line}");
            assert!(arguments.fallback.is_some(), "{line}");
        }
        assert!(parse("").action.is_err());
        assert!(parse("-f").action.is_err());
    }

    #[test]
    fn a_version_needs_no_configuration() {
        assert_eq!(parse("-v").action, Ok(Action::Version));
        assert_eq!(parse("-vv -f a").action, Ok(Action::Version));
        assert_eq!(parse("-c -f a").action, Ok(Action::Check));
    }
}
