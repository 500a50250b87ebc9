//! Writes JSON the way nova's (Python's) writer does: a space after `,` and `:`, ASCII only.

use std::io;

use serde::Serialize;

/// Writes `value`.
pub(super) fn text(value: &(impl Serialize + ?Sized)) -> String {
    let mut out = Vec::new();
    value
        .serialize(&mut serde_json::Serializer::with_formatter(
            &mut out, Python,
        ))
        .expect("memory takes every write, and every key is text");
    String::from_utf8(out).expect("JSON is UTF-8")
}

/// Writes a list of values that are written already.
pub(super) fn list(written: &[String]) -> String {
    format!("[{}]", written.join(", "))
}

/// Members of an object, without its braces.
#[derive(Debug, Default)]
pub(super) struct Members(String);

impl Members {
    /// Adds a member.
    pub(super) fn add(&mut self, name: &str, value: &(impl Serialize + ?Sized)) {
        self.add_written(name, &text(value));
    }

    /// Adds a member if there is a value.
    pub(super) fn add_some(&mut self, name: &str, value: Option<&(impl Serialize + ?Sized)>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    /// Adds a member whose value is written already.
    pub(super) fn add_written(&mut self, name: &str, json: &str) {
        if !self.0.is_empty() {
            self.0.push_str(", ");
        }
        self.0.push_str(&text(name));
        self.0.push_str(": ");
        self.0.push_str(json);
    }

    /// The members, separated.
    pub(super) fn into_text(self) -> String {
        self.0
    }

    /// The whole object.
    pub(super) fn into_object(self) -> String {
        format!("{{{}}}", self.0)
    }
}

struct Python;

impl serde_json::ser::Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for part in fragment.split_inclusive(|c| !is_plain(c)) {
            let mut chars = part.chars();
            match chars.next_back() {
                Some(last) if !is_plain(last) => {
                    w.write_all(chars.as_str().as_bytes())?;
                    let mut units = [0; 2];
                    for unit in last.encode_utf16(&mut units) {
                        write!(w, "\\u{unit:04x}")?;
                    }
                }
                _ => w.write_all(part.as_bytes())?,
            }
        }
        Ok(())
    }
}

const fn is_plain(c: char) -> bool {
    matches!(c, ' '..='~')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_pythons_json_dumps_writes() {
        // json.dumps({"a": [1, 2.5, None, True], "é\x7f😀\n\"\\/": {}})
        let value = serde_json::json!({"a": [1, 2.5, null, true], "é\u{7f}😀\n\"\\/": {}});
        assert_eq!(
            text(&value),
            r#"{"a": [1, 2.5, null, true], "\u00e9\u007f\ud83d\ude00\n\"\\/": {}}"#
        );
    }
}
