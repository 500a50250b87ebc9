//! Tables for people and JSON for programs.

use std::{
    io::{self, Write},
    time::{Duration, UNIX_EPOCH},
};

use comfy_table::{Table, presets};
use serde::Serialize;

/// A table without lines, so that it can be read, cut and searched.
pub(super) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

/// A table of names and values.
pub(super) fn facts<K: Into<String>, V: Into<String>>(
    rows: impl IntoIterator<Item = (K, V)>,
) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.add_rows(
        rows.into_iter()
            .map(|(name, value)| [name.into(), value.into()]),
    );
    table
}

/// Writes a table without blanks at the ends of lines.
pub(super) fn rows(out: &mut impl Write, table: &mut Table) -> io::Result<()> {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    writeln!(out, "{}", table.trim_fmt())
}

/// Writes a value as JSON.
pub(super) fn json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// A point in time, seconds since 1970, as RFC 3339.
pub(super) fn time(unix: u64) -> String {
    UNIX_EPOCH
        .checked_add(Duration::from_secs(unix))
        .map_or_else(
            || unix.to_string(),
            |time| humantime::format_rfc3339_seconds(time).to_string(),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_no_blanks_at_line_ends() {
        let mut out = Vec::new();
        let mut table = table(["A", "B"]);
        table.add_row(["long value", "b"]).add_row(["a", ""]);
        rows(&mut out, &mut table).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "A           B\nlong value  b\na\n"
        );
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(u64::MAX), u64::MAX.to_string());
    }
}
