//! What a drill found.

use std::fmt::Display;

use comfy_table::{Table, presets};

/// Figures in the order in which they were found, and what did not hold.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    lines: Vec<(String, String)>,
    broken: Vec<String>,
}

impl Figures {
    /// Notes a figure, with its unit.
    pub(crate) fn note(&mut self, name: &str, value: impl Display) {
        self.lines.push((name.to_owned(), value.to_string()));
    }

    /// Notes that a promise is broken, unless `holds`.
    pub(crate) fn demand(&mut self, holds: bool, promise: impl Display) {
        if !holds {
            self.broken.push(promise.to_string());
        }
    }

    /// What did not hold.
    pub(crate) fn broken(&self) -> &[String] {
        &self.broken
    }

    /// The figures, for people.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        for (name, value) in &self.lines {
            table.add_row([name, value]);
        }
        table
    }
}
