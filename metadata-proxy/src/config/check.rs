//! Checks single values against the [`Shape`] of their key.

use std::{path::PathBuf, str::FromStr as _, time::Duration};

use tracing_subscriber::EnvFilter;

use super::{
    HttpAddress, InterfaceGlob, IpVersions,
    document::Origins,
    problem::Problem,
    settings::{self, SOCKET_PATH_MAX, Shape},
    words::{EngineChoice, LogFormat, Seccomp, UpstreamKind},
};

/// A value named by a word of a closed set.
pub(super) trait Word: Sized {
    /// The value a word names.
    fn named(word: &str) -> Option<Self>;
}

macro_rules! words_are_values {
    ($($name:ident)+) => {
        $(impl Word for $name {
            fn named(word: &str) -> Option<Self> {
                Self::from_word(word)
            }
        })+
    };
}

words_are_values! { EngineChoice UpstreamKind LogFormat Seccomp }

/// Takes raw values, gives valid ones, and notes every problem.
///
/// Each method returns the default for a key that is not given, and for one that is not valid.
pub(super) struct Check<'a> {
    origins: &'a Origins,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Check<'a> {
    pub(super) fn new(origins: &'a Origins, problems: &'a mut Vec<Problem>) -> Self {
        Self { origins, problems }
    }

    /// Notes a problem.
    pub(super) fn problem(&mut self, key: &str, what: &str, allowed: Option<&str>) {
        let allowed = allowed.map(str::to_owned);
        let problem = Problem {
            allowed,
            ..self.remark(key, what)
        };
        self.problems.push(problem);
    }

    /// Says something about a key without noting it.
    pub(super) fn remark(&self, key: &str, what: &str) -> Problem {
        Problem {
            origin: self.origins.of(key),
            key: key.to_owned(),
            what: what.to_owned(),
            allowed: None,
        }
    }

    /// Notes that a key is missing which `because` having that `value` asks for.
    pub(super) fn needed(&mut self, key: &str, because: &str, value: &str) {
        let allowed = shape(key).allowed();
        let problem = Problem {
            key: key.to_owned(),
            allowed: Some(allowed),
            ..self.remark(
                because,
                &format!("is missing, and {because} = {value:?} needs it"),
            )
        };
        self.problems.push(problem);
    }

    /// Notes that a key's value is not one its shape allows.
    fn invalid(&mut self, key: &str, what: &str) {
        // Lists inside patterns have no setting of their own.
        let shape = settings::find(key).map_or(&Shape::Globs, |setting| &setting.shape);
        let allowed = shape.allowed();
        self.problem(key, what, Some(&allowed));
    }

    #[expect(
        clippy::unused_self,
        reason = "every kind of value is taken the same way"
    )]
    pub(super) fn boolean(&self, _key: &str, raw: Option<bool>, default: bool) -> bool {
        raw.unwrap_or(default)
    }

    pub(super) fn integer<T: TryFrom<i64>>(
        &mut self,
        key: &str,
        raw: Option<i64>,
        default: T,
    ) -> T {
        let Some(value) = raw else { return default };
        if let Shape::Integer { range, .. } = shape(key)
            && range.contains(&value)
            && let Ok(value) = T::try_from(value)
        {
            return value;
        }
        self.invalid(key, &format!("{value} is out of range"));
        default
    }

    /// Whole seconds, given as an integer.
    pub(super) fn seconds(&mut self, key: &str, raw: Option<i64>, default: Duration) -> Duration {
        Duration::from_secs(self.integer(key, raw, default.as_secs()))
    }

    pub(super) fn duration(
        &mut self,
        key: &str,
        raw: Option<String>,
        default: Duration,
    ) -> Duration {
        let Some(text) = raw else { return default };
        match humantime::parse_duration(&text) {
            Ok(value) => {
                if let Shape::Duration(range) = shape(key)
                    && range.contains(&value)
                {
                    return value;
                }
                self.invalid(key, &format!("{text:?} is out of range"));
            }
            Err(error) => self.invalid(key, &format!("{text:?} is no duration: {error}")),
        }
        default
    }

    pub(super) fn word<T: Word>(&mut self, key: &str, raw: Option<String>, default: T) -> T {
        let Some(word) = raw else { return default };
        T::named(&word).unwrap_or_else(|| {
            self.invalid(key, &format!("{word:?} is not known"));
            default
        })
    }

    pub(super) fn path(&mut self, key: &str, raw: Option<String>, default: PathBuf) -> PathBuf {
        self.optional_path(key, raw, None).unwrap_or(default)
    }

    pub(super) fn optional_path(
        &mut self,
        key: &str,
        raw: Option<String>,
        default: Option<PathBuf>,
    ) -> Option<PathBuf> {
        let Some(text) = raw else { return default };
        let path = PathBuf::from(&text);
        if !path.is_absolute() || text.contains('\0') {
            self.invalid(key, &format!("{text:?} is not absolute"));
            return default;
        }
        if *shape(key) == Shape::SocketPath && text.len() > SOCKET_PATH_MAX {
            self.invalid(key, &format!("is {} bytes long", text.len()));
            return default;
        }
        Some(path)
    }

    pub(super) fn globs(
        &mut self,
        key: &str,
        raw: Option<Vec<String>>,
        default: Vec<InterfaceGlob>,
    ) -> Vec<InterfaceGlob> {
        let Some(globs) = raw else { return default };
        let mut valid = Vec::with_capacity(globs.len());
        for (index, glob) in globs.iter().enumerate() {
            match InterfaceGlob::from_str(glob) {
                Ok(glob) => valid.push(glob),
                Err(error) => {
                    let problem = Problem {
                        origin: self.origins.of(&format!("{key}[{index}]")),
                        allowed: Some(Shape::Globs.allowed()),
                        ..self.remark(key, &error.to_string())
                    };
                    self.problems.push(problem);
                }
            }
        }
        valid
    }

    pub(super) fn ip_versions(
        &mut self,
        key: &str,
        raw: Option<Vec<i64>>,
        default: IpVersions,
    ) -> IpVersions {
        let Some(versions) = raw else { return default };
        if versions.is_empty() || versions.iter().any(|version| !matches!(version, 4 | 6)) {
            self.invalid(key, &format!("{versions:?} is not valid"));
            return default;
        }
        IpVersions {
            v4: versions.contains(&4),
            v6: versions.contains(&6),
        }
    }

    pub(super) fn optional_address(
        &mut self,
        key: &str,
        raw: Option<String>,
    ) -> Option<HttpAddress> {
        let text = raw?;
        match HttpAddress::from_str(&text) {
            Ok(address) => Some(address),
            Err(error) => {
                self.invalid(key, &format!("{text:?}: {error}"));
                None
            }
        }
    }

    pub(super) fn level(&mut self, key: &str, raw: Option<String>, default: String) -> String {
        let Some(level) = raw else { return default };
        let directives = level.split(',').map(str::trim);
        // A lone unknown word would be taken for a module's name, and nothing be logged.
        let mistyped = directives.clone().find(|directive| {
            !directive.contains(['=', ':', '[', '_'])
                && directive
                    .parse::<tracing_subscriber::filter::LevelFilter>()
                    .is_err()
        });
        if let Some(word) = mistyped {
            self.invalid(key, &format!("{word:?} is no level"));
        } else if let Err(error) = EnvFilter::try_new(&level) {
            self.invalid(key, &format!("{level:?}: {error}"));
        } else {
            return level;
        }
        default
    }
}

fn shape(key: &str) -> &'static Shape {
    &settings::find(key)
        .expect("every checked key is a setting")
        .shape
}
