//! Where a configuration comes from, kept so that it can be read again.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use super::{
    Config, document,
    problem::{ConfigErrors, Origin, Problem},
    settings::{self, VARIABLE_PREFIX},
    valid,
};

/// The file that is read when none is named, if it is there.
pub const DEFAULT_FILE: &str = "/etc/metadata-proxy/metadata-proxy.toml";

/// Names the configuration file in the environment.
pub const FILE_VARIABLE: &str = "METADATA_PROXY_CONFIG";

/// A value given outside the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The key with its sections.
    pub key: String,
    /// Its value as text: lists with commas.
    pub value: String,
    /// Who gave it.
    pub origin: Origin,
}

/// Where a configuration comes from: a file and what is laid over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSources {
    file: PathBuf,
    file_named: bool,
    overrides: Vec<Override>,
    warnings: Vec<Problem>,
}

impl Default for ConfigSources {
    /// The default file if it is there, and nothing over it.
    fn default() -> Self {
        Self {
            file: PathBuf::from(DEFAULT_FILE),
            file_named: false,
            overrides: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

/// A configuration and what is worth saying about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What works, but is probably not meant.
    pub warnings: Vec<Problem>,
    /// The file it was read from; `None` if there was none.
    pub file: Option<PathBuf>,
}

impl ConfigSources {
    /// A file that must be there.
    pub fn named(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            file_named: true,
            ..Self::default()
        }
    }

    /// A file that need not be there.
    pub fn if_present(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            ..Self::default()
        }
    }

    /// Lays a value over what the file says; a later one of the same key wins.
    #[must_use]
    pub fn with_override(
        mut self,
        key: impl Into<String>,
        value: impl Into<String>,
        origin: Origin,
    ) -> Self {
        self.overrides.push(Override {
            key: key.into(),
            value: value.into(),
            origin,
        });
        self
    }

    /// Notes the environment variables that look like settings and are none.
    #[must_use]
    pub fn with_environment(mut self, names: impl Iterator<Item = OsString>) -> Self {
        let mut unknown: Vec<_> = names
            .filter_map(|name| name.into_string().ok())
            .filter(|name| name.starts_with(VARIABLE_PREFIX) && name != FILE_VARIABLE)
            .filter(|name| {
                settings::SETTINGS
                    .iter()
                    .all(|setting| setting.variable != *name)
            })
            .collect();
        unknown.sort();
        self.warnings
            .extend(unknown.into_iter().map(|name| Problem {
                origin: Origin::Environment(name),
                key: String::new(),
                what: String::from("names no setting and is ignored"),
                allowed: None,
            }));
        self
    }

    /// The file, whether or not it is there.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The file's text; `None` if it need not be there and is not.
    fn text(&self) -> Result<Option<String>, Problem> {
        let problem = |what: String, allowed: Option<&str>| Problem {
            origin: Origin::File(self.file.clone()),
            key: String::new(),
            what,
            allowed: allowed.map(str::to_owned),
        };
        match std::fs::read(&self.file) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(problem(String::from("is not UTF-8"), Some("TOML"))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.file_named => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(problem(
                format!("cannot be read: {error}; read it as root, or with CAP_DAC_READ_SEARCH"),
                None,
            )),
            Err(error) => Err(problem(format!("cannot be read: {error}"), None)),
        }
    }
}

impl Config {
    /// Reads a configuration: the file, then the environment, then flags.
    ///
    /// # Errors
    /// [`ConfigErrors`] with everything that is wrong in all layers.
    pub fn load(sources: &ConfigSources) -> Result<Loaded, ConfigErrors> {
        let mut problems = Vec::new();
        let text = sources.text().unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });
        let file = text.as_deref().map(|text| (sources.file.as_path(), text));
        let (raw, origins) = document::read(file, &sources.overrides, &mut problems);
        let mut warnings = sources.warnings.clone();
        let config = valid::validate(raw, &origins, &mut problems, &mut warnings);
        if !problems.is_empty() {
            return Err(ConfigErrors::new(problems));
        }
        Ok(Loaded {
            config,
            warnings,
            file: text.is_some().then(|| sources.file.clone()),
        })
    }
}
