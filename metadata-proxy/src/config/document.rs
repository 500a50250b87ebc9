//! One TOML document made of all layers, in which every value still knows where it was given.
//!
//! The file is parsed with spans. Overrides become a second document whose text begins where the
//! file's ends, so that a span alone tells who said something; then it is laid over the first.
//! serde stops at the first thing it does not like, so that thing is noted, taken out, and the rest
//! is read again: every problem is told at once.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write as _, ops::Range, path::Path};

use serde::Deserialize as _;
use toml::{
    Spanned, Value,
    de::{DeTable, DeValue, Deserializer},
};

use super::{
    problem::{Origin, Problem},
    raw::RawConfig,
    settings::{self, Setting, Shape},
    sources::Override,
};

/// Where each key of a document was given.
#[derive(Debug, Default)]
pub(super) struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// Where a key was given, or else the section around it.
    pub(super) fn of(&self, key: &str) -> Origin {
        let mut key = key;
        loop {
            if let Some(origin) = self.0.get(key) {
                return origin.clone();
            }
            match key.rfind(['.', '[']) {
                Some(end) => key = &key[..end],
                None => return Origin::Default,
            }
        }
    }
}

/// Reads a file's text with overrides laid over it.
///
/// What is wrong is added to `problems`; keys that are wrong are as if they were not there.
pub(super) fn read(
    file: Option<(&Path, &str)>,
    overrides: &[Override],
    problems: &mut Vec<Problem>,
) -> (RawConfig, Origins) {
    let (path, text) = file.unwrap_or((Path::new(""), ""));
    let overlay = Overlay::new(overrides, text.len(), problems);
    let locate = |span: Range<usize>| match overlay.origin_at(span.start) {
        Some(origin) => origin,
        None => Origin::Line {
            file: path.to_owned(),
            line: line_at(text, span.start),
        },
    };

    let (mut tree, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        for error in errors {
            problems.push(Problem {
                origin: locate(error.span().unwrap_or_default()),
                key: String::new(),
                what: format!("not TOML: {}", error.message()),
                allowed: None,
            });
        }
        // What the parser made up to recover would only cause problems nobody has.
        tree.get_mut().clear();
    }
    lay_over(tree.get_mut(), overlay.tree());

    let mut origins = Origins::default();
    note_origins(tree.get_ref(), "", &locate, &mut origins);
    loop {
        let error = match RawConfig::deserialize(Deserializer::from(tree.clone())) {
            Ok(raw) => return (raw, origins),
            Err(error) => error,
        };
        let span = error.span().unwrap_or_default();
        let key = take_out(tree.get_mut(), "", &span);
        problems.push(explain(&error, key.as_deref(), locate(span)));
        if key.is_none() {
            // Cannot be taken out, so cannot be read past.
            return (RawConfig::default(), origins);
        }
    }
}

/// What serde says, in the words of a configuration.
fn explain(error: &toml::de::Error, key: Option<&str>, origin: Origin) -> Problem {
    let message = error.message().trim();
    let key = key.unwrap_or_default();
    let (what, allowed) = match message.split_once(", expected ") {
        Some((what, expected)) => (what, Some(expected.replace('`', ""))),
        None => (message, None),
    };
    let (what, allowed) = if what.starts_with("unknown field") {
        let allowed = allowed.map(|keys| {
            let keys = keys.strip_prefix("one of ").unwrap_or(&keys);
            keys.replace(" or ", ", ")
        });
        (String::from("there is no such key"), allowed)
    } else {
        let setting = settings::find(key).map(|setting| setting.shape.allowed());
        (what.to_owned(), setting.or(allowed))
    };
    Problem {
        origin,
        key: key.to_owned(),
        what,
        allowed,
    }
}

/// Removes the key that a span belongs to and returns it with its sections.
fn take_out(table: &mut DeTable<'_>, prefix: &str, span: &Range<usize>) -> Option<String> {
    let mut found = None;
    for (key, value) in table.iter_mut() {
        let path = join(prefix, key.get_ref());
        let is_it = key.span() == *span
            || value.span() == *span
            || matches!(value.get_ref(), DeValue::Array(items)
                if items.iter().any(|item| item.span() == *span));
        if is_it {
            found = Some((key.get_ref().to_string(), path));
            break;
        }
        let inner = match value.get_mut() {
            DeValue::Table(table) => take_out(table, &path, span),
            DeValue::Array(items) => items.iter_mut().enumerate().find_map(|(index, item)| {
                let DeValue::Table(table) = item.get_mut() else {
                    return None;
                };
                take_out(table, &format!("{path}[{index}]"), span)
            }),
            _ => None,
        };
        if inner.is_some() {
            return inner;
        }
    }
    let (key, path) = found?;
    table.remove(key.as_str());
    Some(path)
}

/// Notes where every key was given.
fn note_origins(
    table: &DeTable<'_>,
    prefix: &str,
    locate: &dyn Fn(Range<usize>) -> Origin,
    origins: &mut Origins,
) {
    for (key, value) in table {
        let path = join(prefix, key.get_ref());
        match value.get_ref() {
            DeValue::Table(table) => note_origins(table, &path, locate, origins),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    if let DeValue::Table(table) = item.get_ref() {
                        note_origins(table, &path, locate, origins);
                    }
                    origins.0.insert(path, locate(item.span()));
                }
            }
            _ => {}
        }
        origins.0.insert(path, locate(key.span()));
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}

/// Lays `over` over `under`: its values win, its tables are merged.
fn lay_over<'i>(under: &mut DeTable<'i>, over: DeTable<'i>) {
    for (key, value) in over {
        let name: Cow<'i, str> = key.get_ref().clone();
        match (under.get_mut(name.as_ref()).map(Spanned::get_mut), value) {
            (Some(DeValue::Table(under)), value) if value.get_ref().is_table() => {
                if let DeValue::Table(over) = value.into_inner() {
                    lay_over(under, over);
                }
            }
            (_, value) => {
                // Otherwise the old key would stay, and with it the old span.
                under.remove(name.as_ref());
                under.insert(key, value);
            }
        }
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.get(..offset).unwrap_or(text);
    before.matches('\n').count() + 1
}

/// Overrides as TOML, placed behind the file's text.
struct Overlay {
    text: String,
    /// Where each override begins in `text`, ascending.
    starts: Vec<(usize, Origin)>,
}

impl Overlay {
    fn new(overrides: &[Override], after: usize, problems: &mut Vec<Problem>) -> Self {
        // One beyond the end, because the end itself is where a file stops too early.
        let mut overlay = Self {
            text: " ".repeat(after + 1),
            starts: Vec::new(),
        };
        // The last one of a key wins; TOML allows a key once.
        let last: BTreeMap<&str, &Override> = overrides
            .iter()
            .map(|given| (given.key.as_str(), given))
            .collect();
        for given in last.into_values() {
            let value = settings::find(&given.key)
                .ok_or_else(|| (String::from("there is no such key"), None))
                .and_then(|setting| to_toml(setting, &given.value));
            match value {
                Ok(value) => {
                    overlay
                        .starts
                        .push((overlay.text.len(), given.origin.clone()));
                    writeln!(overlay.text, "{} = {value}", given.key)
                        .expect("writing to a string does not fail");
                }
                Err((what, allowed)) => problems.push(Problem {
                    origin: given.origin.clone(),
                    key: given.key.clone(),
                    what,
                    allowed,
                }),
            }
        }
        overlay
    }

    fn tree(&self) -> DeTable<'_> {
        DeTable::parse(&self.text)
            .expect("overrides are written as valid TOML")
            .into_inner()
    }

    fn origin_at(&self, offset: usize) -> Option<Origin> {
        let behind = self.starts.partition_point(|(start, _)| *start <= offset);
        behind
            .checked_sub(1)
            .map(|index| self.starts[index].1.clone())
    }
}

/// A flag's or variable's text as the TOML value its key takes, or what is wrong and what is allowed.
fn to_toml(setting: &Setting, text: &str) -> Result<Value, (String, Option<String>)> {
    let list = || {
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
    };
    let value = match setting.shape {
        Shape::Bool => text.parse().ok().map(Value::Boolean),
        Shape::Integer { .. } => text.trim().parse().ok().map(Value::Integer),
        Shape::IpVersions => list()
            .map(|item| item.parse().ok().map(Value::Integer))
            .collect::<Option<_>>()
            .map(Value::Array),
        Shape::Globs => Some(Value::Array(list().map(Value::from).collect())),
        Shape::Duration(_)
        | Shape::Word(_)
        | Shape::Path
        | Shape::SocketPath
        | Shape::Address
        | Shape::LogLevel => Some(Value::from(text)),
    };
    value.ok_or_else(|| {
        (
            format!("{text:?} is not valid"),
            Some(setting.shape.allowed()),
        )
    })
}
