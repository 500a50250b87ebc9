//! A parsed file with the place of every value, whichever of the two formats it is written in.
//!
//! Knows nothing of what the values mean. Keeps the file's order, and keeps keys that are written
//! twice, so that whoever gives them a meaning can tell all problems at once, each with its place.

use std::{fmt, path::Path};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use toml::de::{DeTable, DeValue};

use super::problem::{Place, Problem};

/// A value and where it is written.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// One key of a table.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) value: Node,
}

impl Node {
    /// Parses `text`, as TOML if `path` ends in `.toml`, as YAML otherwise.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, Vec<Problem>> {
        if path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("toml"))
        {
            from_toml(text)
        } else {
            from_yaml(text).map_err(|problem| vec![problem])
        }
    }

    /// Says what it is, for "expected text, found …".
    pub(super) const fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Integer(_) | Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

fn from_yaml(text: &str) -> Result<Node, Problem> {
    // The default budgets suit small files from strangers; this one is large, and the operator's.
    // The depth stays bounded (64): it is what protects the stack.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 50_000_000,
            max_nodes: 20_000_000,
            max_aliases: 1_000_000,
            max_merge_keys: 1_000_000,
            max_total_scalar_bytes: 1 << 30,
            enforce_alias_anchor_ratio: false,
        },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
        // `yes` and `no` are words, and so are 0755 and 1_000: what is meant as text stays as is.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options::<Located<Value>>(text, options)
        .map(Node::from)
        .map_err(|error| {
            let place = error.location().map_or(Place::START, Place::from);
            if let serde_saphyr::Error::MultipleDocuments { .. } = error.without_snippet() {
                let said = "there is a second document; a file holds one, so remove `---`";
                return Problem::new(place, said);
            }
            // The place is told in front of the message, so not once more behind it.
            let said = error.without_snippet().to_string();
            let said = said.split(" at line ").next().unwrap_or(&said);
            Problem::new(place, format!("not valid YAML: {said}"))
        })
}

type Located<T> = serde_saphyr::Spanned<T>;

impl From<serde_saphyr::Location> for Place {
    fn from(location: serde_saphyr::Location) -> Self {
        Self {
            line: location.line().max(1),
            column: location.column().max(1),
        }
    }
}

impl From<Located<Value>> for Node {
    fn from(located: Located<Value>) -> Self {
        Self {
            place: located.referenced.into(),
            value: located.value,
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Value, E> {
        i128::try_from(value)
            .map(Value::Integer)
            .map_err(|_| E::custom("a number too large"))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Located<Value>>()? {
            list.push(item.into());
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut table = Vec::new();
        while let Some(key) = entries.next_key::<Located<Value>>()? {
            let place = key.referenced.into();
            let key = match key.value {
                Value::Text(key) => key,
                Value::Integer(key) => key.to_string(),
                Value::Bool(key) => key.to_string(),
                _ => return Err(A::Error::custom("a key must be text")),
            };
            let value = entries.next_value::<Located<Value>>()?.into();
            table.push(Entry { key, place, value });
        }
        Ok(Value::Table(table))
    }
}

fn from_toml(text: &str) -> Result<Node, Vec<Problem>> {
    let lines = Lines::of(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors
            .into_iter()
            .map(|error| {
                let place = lines.place(error.span().map_or(0, |span| span.start));
                Problem::new(place, format!("not valid TOML: {}", error.message()))
            })
            .collect());
    }
    Ok(Node {
        place: lines.place(document.span().start),
        value: table_from_toml(document.into_inner(), &lines),
    })
}

fn node_from_toml(spanned: toml::Spanned<DeValue<'_>>, lines: &Lines<'_>) -> Node {
    let place = lines.place(spanned.span().start);
    let value = match spanned.into_inner() {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::Text(number.to_string()), Value::Integer),
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .map_or_else(|_| Value::Text(number.as_str().to_owned()), Value::Float),
        DeValue::Boolean(value) => Value::Bool(value),
        // JSON, where all of this ends, has no type for it but text.
        DeValue::Datetime(time) => Value::Text(time.to_string()),
        DeValue::Array(items) => Value::List(
            items
                .into_iter()
                .map(|item| node_from_toml(item, lines))
                .collect(),
        ),
        DeValue::Table(table) => table_from_toml(table, lines),
    };
    Node { place, value }
}

fn table_from_toml(table: DeTable<'_>, lines: &Lines<'_>) -> Value {
    let mut entries: Vec<_> = table.into_iter().collect();
    // The parser sorts by name; the file's order is what people and guests expect.
    entries.sort_by_key(|(key, _)| key.span().start);
    Value::Table(
        entries
            .into_iter()
            .map(|(key, value)| Entry {
                place: lines.place(key.span().start),
                key: key.into_inner().into_owned(),
                value: node_from_toml(value, lines),
            })
            .collect(),
    )
}

/// Where the lines of a text start, to turn byte offsets into places.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        let after_breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            text,
            starts: std::iter::once(0).chain(after_breaks).collect(),
        }
    }

    fn place(&self, offset: usize) -> Place {
        let line = self.starts.partition_point(|&start| start <= offset).max(1);
        let start = self.starts[line - 1];
        let before = self.text.get(start..offset).unwrap_or_default();
        Place {
            line: line as u64,
            column: before.chars().count() as u64 + 1,
        }
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.value {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Integer(number) => serializer.serialize_i128(*number),
            Value::Float(number) => serializer.serialize_f64(*number),
            Value::Text(text) => serializer.serialize_str(text),
            Value::List(items) => serializer.collect_seq(items),
            Value::Table(entries) => {
                serializer.collect_map(entries.iter().map(|entry| (&entry.key, &entry.value)))
            }
        }
    }
}
