//! Takes the keys of a table one by one, and tells what is missing, wrong, twice or unknown.
//!
//! Reading never stops at a problem: it is noted in the [`Report`] and reading goes on, so that
//! one look at the file tells everything.

use std::ops::RangeInclusive;

use super::{
    document::{Entry, Node, Value},
    problem::{Place, Problem},
};

/// The problems found so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    problems: Vec<Problem>,
}

impl Report {
    pub(super) fn add(&mut self, place: Place, message: impl Into<String>) {
        self.problems.push(Problem::new(place, message));
    }

    /// All problems, in the order of the file; empty if there is none.
    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|problem| problem.place);
        self.problems
    }
}

/// A table whose keys are being taken.
pub(super) struct Fields<'a> {
    /// What the table describes, with its article.
    what: &'static str,
    place: Place,
    entries: &'a [Entry],
    /// Every key asked for so far: those are the ones that are allowed.
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Starts to take the keys of `node`, which describes `what`.
    pub(super) fn of(node: &'a Node, what: &'static str, report: &mut Report) -> Option<Self> {
        let entries = entries(node, what, report)?;
        Some(Self {
            what,
            place: node.place,
            entries,
            known: Vec::new(),
        })
    }

    /// Tells the keys that nobody took. Whatever is allowed must have been asked for by then.
    pub(super) fn finish(self, report: &mut Report) {
        for entry in self.entries {
            if !self.known.contains(&entry.key.as_str()) {
                report.add(
                    entry.place,
                    format!(
                        "unknown key `{}`; {} may have: {}",
                        entry.key,
                        self.what,
                        self.known.join(", ")
                    ),
                );
            }
        }
    }

    /// Tells that `key` is missing, unless it is there (and then something else was told of it).
    pub(super) fn require<T>(&self, key: &str, taken: Option<T>, report: &mut Report) -> Option<T> {
        if taken.is_none() && !self.entries.iter().any(|entry| entry.key == key) {
            report.add(self.place, format!("{} needs `{key}`", self.what));
        }
        taken
    }

    /// Takes any value.
    pub(super) fn node(&mut self, key: &'static str, report: &mut Report) -> Option<&'a Node> {
        self.known.push(key);
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        if matches!(entry.value.value, Value::Null) {
            report.add(
                entry.place,
                format!("`{key}` has no value; give it one or remove the key"),
            );
            return None;
        }
        Some(&entry.value)
    }

    /// Takes text of any number of lines.
    pub(super) fn text(&mut self, key: &'static str, report: &mut Report) -> Option<&'a str> {
        text(self.node(key, report)?, &format!("`{key}`"), report)
    }

    /// Takes one line of text.
    pub(super) fn line(&mut self, key: &'static str, report: &mut Report) -> Option<&'a str> {
        line(self.node(key, report)?, &format!("`{key}`"), report)
    }

    /// Takes one line that `parse` accepts; `expected` says what that is.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        report: &mut Report,
        parse: impl FnOnce(&'a str) -> Option<T>,
    ) -> Option<T> {
        let node = self.node(key, report)?;
        let text = line(node, &format!("`{key}`"), report)?;
        let parsed = parse(text);
        if parsed.is_none() {
            report.add(
                node.place,
                format!("`{key}` must be {expected}, not `{text}`"),
            );
        }
        parsed
    }

    /// Takes a whole number within `range`.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u32>,
        report: &mut Report,
    ) -> Option<u32> {
        number(self.node(key, report)?, &format!("`{key}`"), range, report)
    }

    /// Takes `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str, report: &mut Report) -> Option<bool> {
        let node = self.node(key, report)?;
        if let Value::Bool(value) = node.value {
            return Some(value);
        }
        report.add(
            node.place,
            format!("`{key}` must be true or false, not {}", node.kind()),
        );
        None
    }

    /// Takes a list; none if the key is not there.
    pub(super) fn list(&mut self, key: &'static str, report: &mut Report) -> Option<&'a [Node]> {
        let node = self.node(key, report)?;
        if let Value::List(items) = &node.value {
            return Some(items);
        }
        report.add(
            node.place,
            format!("`{key}` must be a list, not {}", node.kind()),
        );
        None
    }

    /// Takes a list of lines of text.
    pub(super) fn lines(&mut self, key: &'static str, report: &mut Report) -> Option<Vec<&'a str>> {
        let items = self.list(key, report)?;
        Some(
            items
                .iter()
                .filter_map(|item| line(item, &format!("`{key}`"), report))
                .collect(),
        )
    }

    /// Takes a table of free keys.
    pub(super) fn table(&mut self, key: &'static str, report: &mut Report) -> Option<&'a [Entry]> {
        entries(self.node(key, report)?, &format!("`{key}`"), report)
    }

    /// Takes a table of free keys, each with text.
    pub(super) fn texts(
        &mut self,
        key: &'static str,
        report: &mut Report,
    ) -> Option<Vec<(&'a str, &'a str)>> {
        let entries = self.table(key, report)?;
        let mut texts = Vec::with_capacity(entries.len());
        for entry in entries {
            let what = format!("`{}` in `{key}`", entry.key);
            if let Some(text) = text(&entry.value, &what, report) {
                texts.push((entry.key.as_str(), text));
            }
        }
        Some(texts)
    }
}

fn entries<'a>(node: &'a Node, what: &str, report: &mut Report) -> Option<&'a [Entry]> {
    let Value::Table(entries) = &node.value else {
        report.add(
            node.place,
            format!("{what} must be a table of keys, not {}", node.kind()),
        );
        return None;
    };
    twice(entries, report);
    Some(entries)
}

/// Tells the keys of one table that are written more than once.
fn twice(entries: &[Entry], report: &mut Report) {
    let mut first = std::collections::HashMap::with_capacity(entries.len());
    for entry in entries {
        if let Some(place) = first.insert(entry.key.as_str(), entry.place) {
            report.add(
                entry.place,
                format!("`{}` is written twice, first at {place}", entry.key),
            );
        }
    }
}

/// Tells every key below `node` that is written more than once in its table.
pub(super) fn twice_below(node: &Node, report: &mut Report) {
    match &node.value {
        Value::List(items) => {
            for item in items {
                twice_below(item, report);
            }
        }
        Value::Table(entries) => {
            twice(entries, report);
            for entry in entries {
                twice_below(&entry.value, report);
            }
        }
        _ => {}
    }
}

pub(super) fn text<'a>(node: &'a Node, what: &str, report: &mut Report) -> Option<&'a str> {
    match &node.value {
        Value::Text(text) => return Some(text),
        Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
            report.add(
                node.place,
                format!("{what} must be text, not {}; put it in quotes", node.kind()),
            );
        }
        _ => report.add(
            node.place,
            format!("{what} must be text, not {}", node.kind()),
        ),
    }
    None
}

pub(super) fn line<'a>(node: &'a Node, what: &str, report: &mut Report) -> Option<&'a str> {
    let text = text(node, what, report)?;
    // YAML's block text ends with a line break that nobody means.
    let line = text.strip_suffix('\n').unwrap_or(text);
    if line.is_empty() {
        report.add(node.place, format!("{what} must not be empty"));
        return None;
    }
    if line.chars().any(char::is_control) {
        report.add(
            node.place,
            format!("{what} must be one line without control characters"),
        );
        return None;
    }
    Some(line)
}

pub(super) fn number(
    node: &Node,
    what: &str,
    range: RangeInclusive<u32>,
    report: &mut Report,
) -> Option<u32> {
    let number = match node.value {
        Value::Integer(number) => u32::try_from(number).ok().filter(|n| range.contains(n)),
        _ => None,
    };
    if number.is_none() {
        report.add(
            node.place,
            format!(
                "{what} must be a whole number from {} to {}",
                range.start(),
                range.end()
            ),
        );
    }
    number
}
