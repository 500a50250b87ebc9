//! `check`: would the agent run here, with this configuration, and what would it do?
//!
//! Facts are gathered in [`facts`], judged by pure functions in `items`, and nothing is changed.

mod facts;
mod items;
mod namespaces;
mod upstream;

use std::io::{self, Write};

use serde::Serialize;

pub use self::upstream::check_upstream;
use self::{facts::NodeFacts, namespaces::Candidate};
use super::{exit::Exit, print};
use crate::config::{Config, ConfigSources, words};

words! {
    /// How a thing was found.
    Verdict {
        /// As it should be.
        Ok = "ok",
        /// The agent runs, but something will not work.
        Warning = "warning",
        /// The agent cannot run.
        Failure = "failure",
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What was looked at.
    pub check: &'static str,
    /// How it was found.
    pub verdict: Verdict,
    /// What was found, or would be done.
    pub found: String,
    /// What follows from it; not for what is as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Which exit code a failure leads to.
    #[serde(skip)]
    pub exit: Exit,
}

impl Item {
    /// As it should be.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            found: found.into(),
            why: None,
            remedy: None,
            exit: Exit::Ok,
        }
    }

    /// Something will not work.
    pub fn warning(
        check: &'static str,
        found: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            verdict: Verdict::Warning,
            why: Some(why.into()),
            remedy: Some(remedy.into()),
            ..Self::ok(check, found)
        }
    }

    /// The agent cannot run on this node.
    pub fn failure(
        check: &'static str,
        found: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            verdict: Verdict::Failure,
            exit: Exit::Node,
            ..Self::warning(check, found, why, remedy)
        }
    }

    /// Another exit code than that of a node that cannot run the agent.
    #[must_use]
    pub fn exits(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The worst verdict.
    pub verdict: Verdict,
    /// One by one.
    pub items: Vec<Item>,
    /// The namespaces that would be served.
    pub tenants: Vec<Candidate>,
}

impl Report {
    fn new(items: Vec<Item>, tenants: Vec<Candidate>) -> Self {
        let verdict = items
            .iter()
            .map(|item| item.verdict)
            .max()
            .unwrap_or(Verdict::Ok);
        Self {
            verdict,
            items,
            tenants,
        }
    }

    /// How `check` ends: a wrong configuration comes first, then a node that cannot run the agent,
    /// then privileges that are missing.
    #[must_use]
    pub fn exit(&self) -> Exit {
        let failed = |exit| {
            self.items
                .iter()
                .any(|i| i.verdict == Verdict::Failure && i.exit == exit)
        };
        [Exit::Usage, Exit::Node, Exit::Privilege]
            .into_iter()
            .find(|exit| failed(*exit))
            .unwrap_or(Exit::Ok)
    }

    /// Prints it for people.
    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let mut table = print::table(["VERDICT", "CHECK", "FOUND"]);
        table.add_rows(self.items.iter().map(|item| {
            [
                item.verdict.word().to_owned(),
                item.check.to_owned(),
                item.found.clone(),
            ]
        }));
        print::rows(out, &mut table)?;
        for item in &self.items {
            if let (Some(why), Some(remedy)) = (&item.why, &item.remedy) {
                writeln!(
                    out,
                    "\n{}: {}: {why}\n  do: {remedy}",
                    item.verdict, item.check
                )?;
            }
        }
        if !self.tenants.is_empty() {
            writeln!(out)?;
            let mut table = print::table(["KIND", "ID", "NAMESPACE", "PATTERN", "INTERFACES"]);
            table.add_rows(self.tenants.iter().map(Candidate::row));
            print::rows(out, &mut table)?;
        }
        writeln!(
            out,
            "\n{}",
            match self.verdict {
                Verdict::Ok => "The agent can run here.",
                Verdict::Warning => "The agent can run here; see the warnings.",
                Verdict::Failure => "The agent cannot run here as it is.",
            }
        )
    }
}

/// Looks at the configuration and the node.
#[must_use]
pub fn check(sources: &ConfigSources) -> Report {
    let mut items = Vec::new();
    let config = match Config::load(sources) {
        Ok(loaded) => {
            items.push(match &loaded.file {
                Some(file) => Item::ok("configuration", format!("{} is valid", file.display())),
                None => Item::ok(
                    "configuration",
                    format!("there is no {}; defaults hold", sources.file().display()),
                ),
            });
            items.extend(loaded.warnings.iter().map(|warning| {
                Item::warning(
                    "configuration",
                    warning.to_string(),
                    "it is probably not meant like this",
                    "see docs/examples/metadata-proxy.toml",
                )
            }));
            Some(loaded.config)
        }
        Err(errors) => {
            items.extend(errors.problems().iter().map(|problem| {
                Item::failure(
                    "configuration",
                    problem.to_string(),
                    "the agent refuses a configuration that is not valid",
                    "correct it; `metadata-proxy check` looks at the rest then",
                )
                .exits(Exit::Usage)
            }));
            None
        }
    };
    let facts = match NodeFacts::ask() {
        Ok(facts) => facts,
        Err(error) => {
            items.push(Item::failure(
                "node",
                format!("cannot be looked at: {error}"),
                "neither can the agent look at it",
                "mount /proc",
            ));
            return Report::new(items, Vec::new());
        }
    };
    // With a configuration that is not valid, only what depends on none can be told.
    items.extend(items::of_node(
        &facts,
        config.as_ref().unwrap_or(&Config::default()),
    ));
    let Some(config) = config else {
        return Report::new(items, Vec::new());
    };
    items.extend(items::of_configuration(&facts, &config));
    items.push(items::admin_socket(&config));
    items.push(check_upstream(&config));
    let (item, tenants) = namespaces::look(&config);
    items.push(item);
    Report::new(items, tenants)
}
