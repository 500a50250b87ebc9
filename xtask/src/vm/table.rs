//! The results of all guests: test × kernel, with times.

use std::time::Duration;

use comfy_table::{Table, presets};

use super::outcome::{Outcome, TestOutcome};

/// One guest's column.
pub(super) struct Column {
    /// The kernel's series, and the variant when it is not the plain one.
    pub(super) title: String,
    pub(super) outcome: Outcome,
}

/// Lays the results out, tests as rows.
pub(super) fn render(tests: &[String], columns: &[Column]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    let row = |name: &str, cell: &dyn Fn(&Column) -> String| {
        let mut row = vec![name.to_owned()];
        row.extend(columns.iter().map(cell));
        row
    };
    table.set_header(row("", &|column| column.title.clone()));
    table.add_row(row("kernel", &|column| {
        column
            .outcome
            .release
            .clone()
            .unwrap_or_else(|| "-".to_owned())
    }));
    for test in tests {
        table.add_row(row(test, &|column| {
            let found = column
                .outcome
                .tests
                .iter()
                .find(|outcome| outcome.name == *test);
            found.map_or_else(|| "-".to_owned(), cell)
        }));
    }
    table.add_row(row("guest", &|column| {
        let verdict = if column.outcome.passed() {
            "passed"
        } else {
            "FAILED"
        };
        format!(
            "{verdict} {} (boot {})",
            seconds(column.outcome.took),
            seconds(column.outcome.boot)
        )
    }));
    table.to_string()
}

fn cell(test: &TestOutcome) -> String {
    let counts = &test.functions;
    let verdict = if test.passed { "ok" } else { "FAILED" };
    let of = counts.passed + counts.failed.len();
    format!("{verdict} {}/{of} {}", counts.passed, seconds(test.took))
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
