//! The results: one line for each thing measured, with its bar and whether it holds.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use serde::Serialize;

use crate::stages::Row;

/// Repeats of one measurement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// The middle one.
    pub(crate) fn median(&self) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else {
            return f64::NAN;
        };
        f64::midpoint(self.0[last / 2], self.0[last.div_ceil(2)])
    }

    /// The least and the most.
    pub(crate) fn range(&self) -> (f64, f64) {
        let least = self.0.first().copied().unwrap_or(f64::NAN);
        (least, self.0.last().copied().unwrap_or(f64::NAN))
    }

    /// How far apart the repeats are: half of their range, as a share of the median.
    pub(crate) fn spread(&self) -> f64 {
        match (self.0.first(), self.0.last()) {
            (Some(least), Some(most)) if self.median() != 0.0 => {
                (most - least) / 2.0 / self.median()
            }
            _ => 0.0,
        }
    }
}

impl From<f64> for Samples {
    fn from(value: f64) -> Self {
        Self(vec![value])
    }
}

/// What must hold.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bar {
    /// Ours over haproxy's is at most this.
    RatioAtMost(f64),
    /// Ours over haproxy's is at least this.
    RatioAtLeast(f64),
    /// Ours is at most this, in its unit.
    AtMost(f64),
}

impl Bar {
    fn text(self) -> String {
        match self {
            Self::RatioAtMost(limit) => format!("≤ {} ×", number(limit)),
            Self::RatioAtLeast(limit) => format!("≥ {} ×", number(limit)),
            Self::AtMost(limit) => format!("≤ {}", number(limit)),
        }
    }
}

/// One thing measured.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// The row of the table it belongs to.
    pub(crate) row: Row,
    /// What it is, within its row.
    pub(crate) name: String,
    /// The unit of its numbers.
    pub(crate) unit: &'static str,
    /// Ours.
    pub(crate) ours: Samples,
    /// haproxy's, where there is one to compare with.
    pub(crate) peer: Option<Samples>,
    /// What must hold, if anything must.
    pub(crate) bar: Option<Bar>,
}

impl Line {
    /// Ours over haproxy's.
    pub(crate) fn ratio(&self) -> Option<f64> {
        Some(self.ours.median() / self.peer.as_ref()?.median())
    }

    /// Whether what must hold holds.
    pub(crate) fn holds(&self) -> Option<bool> {
        let ratio = self.ratio().unwrap_or(f64::NAN);
        Some(match self.bar? {
            Bar::RatioAtMost(limit) => ratio <= limit,
            Bar::RatioAtLeast(limit) => ratio >= limit,
            Bar::AtMost(limit) => self.ours.median() <= limit,
        })
    }

    pub(crate) fn bar_text(&self) -> String {
        self.bar.map(Bar::text).unwrap_or_default()
    }
}

#[derive(Serialize)]
struct Json<'a> {
    name: String,
    unit: &'a str,
    ours: f64,
    peer: Option<f64>,
    limit: Option<String>,
    ratio: Option<f64>,
    spread: f64,
    holds: Option<bool>,
}

/// All that was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) lines: Vec<Line>,
}

impl Report {
    pub(crate) fn push(&mut self, line: Line) {
        self.lines.push(line);
    }

    /// How many bars there are.
    pub(crate) fn barred(&self) -> usize {
        self.lines.iter().filter(|line| line.bar.is_some()).count()
    }

    /// How many of them hold.
    pub(crate) fn held(&self) -> usize {
        self.lines
            .iter()
            .filter(|line| line.holds() == Some(true))
            .count()
    }

    /// For the terminal.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header(["", "", "unit", "ours", "haproxy", "ratio", "bar", ""]);
        let mut last = None;
        for line in &self.lines {
            let row = if last == Some(line.row) {
                ""
            } else {
                line.row.title()
            };
            last = Some(line.row);
            let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
            let verdict = match line.holds() {
                Some(true) => Cell::new("holds").fg(Color::Green),
                Some(false) => Cell::new("FAILS").fg(Color::Red),
                None => Cell::new(""),
            };
            table.add_row([
                Cell::new(row),
                Cell::new(&line.name),
                Cell::new(line.unit),
                right(with_spread(&line.ours)),
                right(line.peer.as_ref().map(with_spread).unwrap_or_default()),
                right(line.ratio().map(number).unwrap_or_default()),
                right(line.bar_text()),
                verdict,
            ]);
        }
        table
    }

    /// Writes the list for programs.
    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        let list: Vec<_> = self
            .lines
            .iter()
            .map(|line| Json {
                name: format!("{}: {}", line.row.title(), line.name),
                unit: line.unit,
                ours: line.ours.median(),
                peer: line.peer.as_ref().map(Samples::median),
                limit: line.bar.map(Bar::text),
                ratio: line.ratio(),
                spread: line.ours.spread(),
                holds: line.holds(),
            })
            .collect();
        let text = serde_json::to_string_pretty(&list).context("cannot encode the results")?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A median with its spread, where there is one.
pub(crate) fn with_spread(samples: &Samples) -> String {
    let percent = samples.spread() * 100.0;
    if percent < 0.5 {
        return number(samples.median());
    }
    format!("{} ±{percent:.0}%", number(samples.median()))
}

/// A number with as many digits as say something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        0.0..0.1 => format!("{value:.4}"),
        0.1..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(ours: f64, peer: f64, bar: Bar) -> Line {
        Line {
            row: Row::Cpu,
            name: "x".to_owned(),
            unit: "µs",
            ours: ours.into(),
            peer: Some(peer.into()),
            bar: Some(bar),
        }
    }

    #[test]
    fn a_bar_is_of_the_ratio_or_of_ours() {
        assert_eq!(line(40.0, 100.0, Bar::RatioAtMost(0.4)).holds(), Some(true));
        assert_eq!(
            line(41.0, 100.0, Bar::RatioAtMost(0.4)).holds(),
            Some(false)
        );
        assert_eq!(
            line(41.0, 100.0, Bar::RatioAtLeast(0.4)).holds(),
            Some(true)
        );
        assert_eq!(line(41.0, 1.0, Bar::AtMost(40.0)).holds(), Some(false));
        assert_eq!(line(f64::NAN, 1.0, Bar::AtMost(40.0)).holds(), Some(false));
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        let mut samples = Samples::default();
        for value in [4.0, 1.0, 2.0, 100.0] {
            samples.push(value);
        }
        assert!((samples.median() - 3.0).abs() < 1e-9);
    }
}
