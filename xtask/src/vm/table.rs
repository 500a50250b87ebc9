//! The results of all guests: test × guest, with times.

use std::collections::BTreeSet;
use std::time::Duration;

use comfy_table::{Table, presets};

use super::outcome::{Outcome, TestOutcome};

/// One guest's results.
pub(super) struct Column {
    /// The kernel's series, and the variant when it is not the plain one.
    pub(super) title: String,
    pub(super) outcome: Outcome,
}

/// Lays the results out: what there is more of, guests or tests, goes down.
pub(super) fn render(columns: &[Column]) -> String {
    let mut tests: Vec<&str> = Vec::new();
    for test in columns.iter().flat_map(|column| &column.outcome.tests) {
        if !tests.contains(&test.name.as_str()) {
            tests.push(&test.name);
        }
    }
    let facts: BTreeSet<&String> = columns
        .iter()
        .flat_map(|column| column.outcome.facts.keys())
        .collect();
    let mut lines = vec![vec![String::new()], vec!["kernel".to_owned()]];
    lines.extend(facts.iter().map(|fact| vec![(*fact).clone()]));
    lines.extend(tests.iter().map(|test| vec![(*test).to_owned()]));
    lines.push(vec!["boot".to_owned()]);
    lines.push(vec!["verdict".to_owned()]);
    for column in columns {
        let outcome = &column.outcome;
        let of = |test: &str| outcome.tests.iter().find(|outcome| outcome.name == test);
        let mut cells = vec![column.title.clone()];
        cells.push(outcome.release.clone().unwrap_or_else(|| "-".to_owned()));
        let fact = |name: &&String| outcome.facts.get(*name).map_or("-", String::as_str);
        cells.extend(facts.iter().map(|name| fact(name).to_owned()));
        cells.extend(
            tests
                .iter()
                .map(|test| of(test).map_or_else(|| "-".to_owned(), cell)),
        );
        cells.push(seconds(outcome.boot));
        let verdict = if outcome.passed() { "passed" } else { "FAILED" };
        cells.push(format!("{verdict} {}", seconds(outcome.took)));
        for (line, cell) in lines.iter_mut().zip(cells) {
            line.push(cell);
        }
    }
    if columns.len() > tests.len() {
        lines = transposed(&lines);
    }
    let mut lines = lines.into_iter();
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(lines.next().unwrap_or_default());
    table.add_rows(lines);
    table.to_string()
}

/// The same for people who ask which kernels are tested: a page of Markdown.
pub(super) fn page(columns: &[Column]) -> String {
    let mut page = String::from(
        "# Kernels\n\n\
         Written by `cargo xtask vm-test --page docs/kernels.md`, which boots each of these kernels of \
         Debian's and\nruns the tests in it. The engine is what `metadata-proxy check` says; the \
         instructions are those that\nthe verifier walked for the program `steer`.\n\n\
         | Series | Kernel | Engine | Instructions | Test functions | Result |\n\
         |---|---|---|---|---|---|\n",
    );
    for column in columns {
        let outcome = &column.outcome;
        let fact = |name: &str| outcome.facts.get(name).map_or("none", String::as_str);
        let functions: usize = outcome.tests.iter().map(|test| test.functions.passed).sum();
        let cells = [
            column.title.as_str(),
            outcome.release.as_deref().unwrap_or("did not boot"),
            fact("engine"),
            fact("verified-instructions:steer"),
            &functions.to_string(),
            match (outcome.passed(), outcome.facts.contains_key("engine")) {
                (true, true) => "serves",
                (true, false) => "refused, as it should be",
                (false, _) => "FAILED",
            },
        ];
        for cell in cells {
            page.push_str("| ");
            page.push_str(cell);
            page.push(' ');
        }
        page.push_str("|\n");
    }
    page
}

fn transposed(lines: &[Vec<String>]) -> Vec<Vec<String>> {
    let width = lines.first().map_or(0, Vec::len);
    (0..width)
        .map(|index| {
            lines
                .iter()
                .filter_map(|line| line.get(index).cloned())
                .collect()
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::outcome::Functions;

    #[test]
    fn every_guest_and_every_test_is_in_the_table() {
        let guest = |title: &str, tests: &[(&str, bool)]| Column {
            title: title.to_owned(),
            outcome: Outcome {
                release: Some(format!("{title}.0")),
                tests: tests
                    .iter()
                    .map(|(name, passed)| TestOutcome {
                        name: (*name).to_owned(),
                        passed: *passed,
                        took: Duration::from_millis(1500),
                        functions: Functions {
                            passed: 3,
                            ..Functions::default()
                        },
                    })
                    .collect(),
                ..Outcome::default()
            },
        };
        let old = guest("5.10", &[("refusal", true)]);
        let new = guest("6.1", &[("suite", false), ("agent", true)]);
        for columns in [vec![old], vec![new]] {
            let table = render(&columns);
            for test in &columns[0].outcome.tests {
                assert!(table.contains(&test.name), "{table}");
            }
            assert!(table.contains(&columns[0].title), "{table}");
        }
        let table = render(&[
            guest("5.10", &[("refusal", true)]),
            guest("6.1", &[("suite", false), ("agent", true)]),
        ]);
        assert!(table.contains("FAILED 3/3 1.5 s"), "{table}");
        assert!(table.contains("ok 3/3 1.5 s"), "{table}");
        assert!(
            table.contains("refusal") && table.contains("suite"),
            "{table}"
        );
    }

    #[test]
    fn a_fact_stands_in_the_line_of_its_guest() {
        let told = |engine: &str| Column {
            title: engine.to_owned(),
            outcome: Outcome {
                facts: [("engine".to_owned(), format!("by {engine}"))].into(),
                ..Outcome::default()
            },
        };
        let table = render(&[told("tcx"), told("clsact")]);
        for engine in ["tcx", "clsact"] {
            let line = table
                .lines()
                .find(|line| line.contains(&format!("by {engine}")));
            let line = line.expect("a line of the guest");
            assert!(line.starts_with(&format!("│ {engine} ")), "{table}");
        }
        assert!(table.contains("engine"), "{table}");
    }
}
