//! What came back, and whether it was right.

use std::fmt;

use anyhow::{Result, bail};
use comfy_table::{Table, presets};

/// A tenant, as the agent names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) kind: String,
    pub(super) id: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.id)
    }
}

/// What became of asking.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// Who asked.
    pub(super) who: &'static str,
    /// The address they have.
    pub(super) from: String,
    /// The tenant namespace they are in or behind.
    pub(super) namespace: String,
    /// The tenant they are of.
    pub(super) tenant: Identity,
    /// The tenant that the agent proved, by its access log.
    pub(super) proved: Option<Identity>,
    /// The status of the answer, 0 when there was none.
    pub(super) status: u16,
    /// The name of the instance that they were told they are.
    pub(super) told: String,
    /// The name that they should have been told.
    pub(super) meant: String,
    /// How long it took, by curl.
    pub(super) seconds: Option<f64>,
}

impl Answer {
    /// Whether the agent proved the right tenant and gave that tenant's answer.
    fn is_right(&self) -> bool {
        self.status == 200 && self.told == self.meant && self.proved.as_ref() == Some(&self.tenant)
    }

    fn row(&self) -> [String; 6] {
        let proved = self.proved.as_ref().map(ToString::to_string);
        let mark = if self.is_right() { "" } else { "  WRONG" };
        let told = format!("{} {}{mark}", self.status, self.told);
        let took = self
            .seconds
            .map(|seconds| format!("{:.1} ms", seconds * 1000.0));
        [
            format!("   {}", self.who),
            self.from.clone(),
            shortened(&self.namespace),
            proved.map_or_else(|| "none".to_owned(), |proved| shortened(&proved)),
            told,
            took.unwrap_or_default(),
        ]
    }
}

/// Lays the answers out.
pub(super) fn table(answers: &[Answer]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "   WHO ASKED",
        "FROM",
        "TENANT NAMESPACE",
        "IDENTITY PROVED",
        "ANSWER",
        "TOOK",
    ]);
    let mut last = None;
    for answer in answers {
        // A blank line between tenants.
        if last.is_some_and(|last| last != &answer.namespace) {
            table.add_row([""]);
        }
        last = Some(&answer.namespace);
        table.add_row(answer.row());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Fails, and says which, when one is not right.
pub(super) fn check(answers: &[Answer]) -> Result<()> {
    let wrong: Vec<_> = answers
        .iter()
        .filter(|answer| !answer.is_right())
        .map(|answer| {
            let Answer {
                who,
                namespace,
                status,
                told,
                meant,
                ..
            } = answer;
            let proved = answer.proved.as_ref().map(ToString::to_string);
            let proved = proved.unwrap_or_else(|| "nothing".to_owned());
            format!(
                "{who} of {namespace}: proved to be {proved}, answered {status} {told:?} instead \
                 of {meant:?}"
            )
        })
        .collect();
    if !wrong.is_empty() {
        let (few, all) = (wrong.len(), answers.len());
        bail!(
            "{few} of {all} answers are WRONG:\n  {}",
            wrong.join("\n  ")
        );
    }
    if answers.is_empty() {
        bail!("nobody asked");
    }
    Ok(())
}

/// Cuts the UUID at the end of a text after its first part: enough to tell a few from each other.
fn shortened(text: &str) -> String {
    const UUID: usize = 36;
    const FIRST_PART: usize = 8;
    let cut = text
        .len()
        .checked_sub(UUID - FIRST_PART)
        .and_then(|end| text.get(..end));
    cut.map_or_else(|| text.to_owned(), |start| format!("{start}…"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right() -> Answer {
        let tenant = Identity {
            kind: "router".to_owned(),
            id: "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa".to_owned(),
        };
        Answer {
            who: "guest, IPv4",
            from: "10.0.0.5".to_owned(),
            namespace: "qrouter-aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa".to_owned(),
            proved: Some(tenant.clone()),
            tenant,
            status: 200,
            told: "anna".to_owned(),
            meant: "anna".to_owned(),
            seconds: Some(0.0012),
        }
    }

    #[test]
    fn the_right_answer_is_right_and_shown() {
        check(&[right()]).unwrap();
        let table = table(&[right()]);
        assert!(
            table.contains("qrouter-aaaaaaaa…  router aaaaaaaa…  200 anna  1.2 ms"),
            "{table}"
        );
        assert!(!table.contains("WRONG"), "{table}");
    }

    #[test]
    fn every_way_to_be_wrong_is_noticed() {
        let mut other = right().tenant;
        other.id.replace_range(..1, "b");
        let wrong = [
            Answer {
                told: "bert".to_owned(),
                ..right()
            },
            Answer {
                status: 404,
                ..right()
            },
            Answer {
                status: 0,
                proved: None,
                told: "timed out".to_owned(),
                ..right()
            },
            // The right answer for the wrong reason.
            Answer {
                proved: Some(other),
                ..right()
            },
            Answer {
                proved: None,
                ..right()
            },
        ];
        for answer in wrong {
            let answers = [right(), answer];
            assert!(table(&answers).contains("WRONG"), "{answers:?}");
            let error = check(&answers).unwrap_err().to_string();
            assert!(error.starts_with("1 of 2 answers are WRONG"), "{error}");
        }
        assert!(check(&[]).is_err());
    }
}
