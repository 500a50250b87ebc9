//! Why a text is not a configuration that Neutron writes.

use std::fmt;

/// Why a text is not a configuration that Neutron writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line at fault, counted from 1; `None` if something is missing as a whole.
    pub line: Option<usize>,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a line or a whole configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A directive that is not known in its section, or not in this form.
    #[error("does not understand «{directive}» in section {section}")]
    Unknown {
        /// Where it stands.
        section: &'static str,
        /// The line, cut to a readable length.
        directive: String,
    },
    /// A section that Neutron does not write.
    #[error("section «{0}» is not one of global, defaults, backend, listen")]
    UnknownSection(String),
    /// A directive before the first section.
    #[error("a directive stands before the first section")]
    OutsideSections,
    /// A quotation mark or backslash.
    #[error("a quotation mark or backslash")]
    Quoting,
    /// A second one of something of which there is one.
    #[error("a second {0}")]
    Second(&'static str),
    /// A value that cannot be used.
    #[error("{what} «{value}»: {reason}")]
    Value {
        /// What the value is for.
        what: &'static str,
        /// The value, cut to a readable length.
        value: String,
        /// Why it cannot be used.
        reason: &'static str,
    },
    /// Something that every configuration of Neutron has.
    #[error("there is no {0}")]
    Missing(&'static str),
    /// Rate-limiting directives that do not add up to Neutron's rule.
    #[error("the rate limit is not Neutron's: {0}")]
    RateLimit(&'static str),
}

impl Problem {
    pub(super) fn value(what: &'static str, value: &str, reason: &'static str) -> Self {
        Self::Value {
            what,
            value: shortened(value),
            reason,
        }
    }
}

/// Cuts foreign text so that a message stays one readable line.
pub(super) fn shortened(text: &str) -> String {
    const READABLE: usize = 100;
    match text.char_indices().nth(READABLE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a configuration Neutron writes: ")?;
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.problem),
            None => self.problem.fmt(f),
        }
    }
}

impl std::error::Error for ParseError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.problem)
    }
}
