//! Differences between two observations, and whether each is one that is intended.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::{
    corpus::Case,
    intended::{Covers, Intended, Scope},
    observe::Observation,
    settings::{Compared, Setting},
};

/// One aspect of one case that differs.
#[derive(Clone, Debug)]
pub(crate) struct Difference<'a> {
    pub(crate) aspect: String,
    pub(crate) theirs: Option<&'a str>,
    pub(crate) ours: Option<&'a str>,
}

impl Difference<'_> {
    /// Whether it is this aspect; a `*` at the end stands for anything.
    pub(crate) fn is(&self, aspect: &str) -> bool {
        match aspect.strip_suffix('*') {
            Some(begin) => self.aspect.starts_with(begin),
            None => self.aspect == aspect,
        }
    }

    /// Whether it goes from one value to the other.
    pub(crate) fn goes(&self, theirs: Option<&str>, ours: Option<&str>) -> bool {
        (self.theirs, self.ours) == (theirs, ours)
    }
}

/// Which cases each intended difference was seen in: its number in the table, then the cases.
pub(crate) type Seen = BTreeMap<usize, BTreeSet<&'static str>>;

/// Finds what differs in one setting. Returns what is wrong with the table, and notes in `seen` what
/// is right.
pub(crate) fn judge(
    cases: &[Case],
    compared: &Compared,
    intended: &[Intended],
    seen: &mut Seen,
) -> Vec<String> {
    let setting = compared.setting;
    let table: Vec<_> = intended
        .iter()
        .enumerate()
        .filter(|(_, row)| row.applies.to(setting))
        .collect();
    let mut wrong = Vec::new();
    let mut here = Seen::new();
    for ((case, theirs), ours) in cases.iter().zip(&compared.theirs).zip(&compared.ours) {
        let fates = (fate(theirs), fate(ours));
        let rows: Vec<_> = table
            .iter()
            .filter(|(_, row)| row.scope.has(case.name) && row.fits(&fates.0, &fates.1))
            .collect();
        for difference in differences(theirs, ours) {
            let covering: Vec<_> = rows
                .iter()
                .filter(|(_, row)| row.covers(&difference))
                .collect();
            for (number, _) in &covering {
                here.entry(*number).or_default().insert(case.name);
            }
            if covering.is_empty() {
                wrong.push(
                    Unlisted {
                        setting,
                        case,
                        fates: &fates,
                        difference,
                    }
                    .to_string(),
                );
            }
        }
    }
    for (number, row) in table {
        let found = here.get(&number);
        let missing: Vec<_> = match row.scope {
            Scope::Anywhere if found.is_none() => vec!["any case"],
            Scope::Anywhere => vec![],
            Scope::Cases(names) => names
                .iter()
                .filter(|name| !found.is_some_and(|found| found.contains(*name)))
                .copied()
                .collect(),
        };
        for case in missing {
            wrong.push(format!(
                "{setting:?}: no longer seen in {case:?}: {}",
                row.what
            ));
        }
    }
    for (number, cases) in here {
        seen.entry(number).or_default().extend(cases);
    }
    wrong
}

impl Intended {
    /// Whether it says something about a case that ends so.
    fn fits(&self, their_fate: &str, our_fate: &str) -> bool {
        match self.covers {
            Covers::Aspects(_) => true,
            Covers::Fate { theirs, ours } => theirs.contains(&their_fate) && our_fate == ours,
        }
    }

    fn covers(&self, difference: &Difference<'_>) -> bool {
        match self.covers {
            Covers::Aspects(covers) => covers(difference),
            Covers::Fate { .. } => true,
        }
    }
}

impl Scope {
    fn has(self, case: &str) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Cases(names) => names.contains(&case),
        }
    }
}

fn differences<'a>(theirs: &'a Observation, ours: &'a Observation) -> Vec<Difference<'a>> {
    let aspects: BTreeSet<_> = theirs.keys().chain(ours.keys()).collect();
    aspects
        .into_iter()
        .map(|aspect| Difference {
            aspect: unnumbered(aspect),
            theirs: theirs.get(aspect).map(String::as_str),
            ours: ours.get(aspect).map(String::as_str),
        })
        .filter(|difference| difference.theirs != difference.ours)
        .collect()
}

/// `answer 2 status` is the same aspect as `answer 1 status`.
fn unnumbered(aspect: &str) -> String {
    let words = aspect
        .split(' ')
        .filter(|word| word.parse::<u32>().is_err());
    words.collect::<Vec<_>>().join(" ")
}

/// What became of a case, in one line: the statuses, what reached the upstream, the connection.
pub(crate) fn fate(seen: &Observation) -> String {
    let statuses = seen
        .iter()
        .filter(|(aspect, _)| aspect.ends_with(" status"))
        .map(|(_, status)| status.split(' ').next().unwrap_or_default());
    let statuses = match statuses.collect::<Vec<_>>() {
        none if none.is_empty() => "nothing".to_owned(),
        some => some.join(", "),
    };
    format!(
        "{statuses}; asked {}; {}",
        seen["requests"], seen["connection"]
    )
}

/// A difference that is in no table.
struct Unlisted<'a> {
    setting: Setting,
    case: &'a Case,
    fates: &'a (String, String),
    difference: Difference<'a>,
}

impl fmt::Display for Unlisted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference {
            aspect,
            theirs,
            ours,
        } = &self.difference;
        write!(
            f,
            "{:?}: {:?}: {aspect}: haproxy {theirs:?}, we {ours:?} (haproxy: {}; we: {})",
            self.setting, self.case.name, self.fates.0, self.fates.1
        )
    }
}
