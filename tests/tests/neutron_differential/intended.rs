//! Every difference from haproxy that is intended, and why.

mod answers;
mod fates;
mod manners;

use crate::{difference::Difference, settings::Setting, upstream::Style};

/// One intended difference.
#[derive(Clone, Copy)]
pub(crate) struct Intended {
    /// What it is about.
    pub(crate) what: &'static str,
    /// What haproxy does.
    pub(crate) theirs: &'static str,
    /// What we do.
    pub(crate) ours: &'static str,
    /// Why.
    pub(crate) why: &'static str,
    /// Where it must be seen.
    pub(crate) scope: Scope,
    /// In which settings.
    pub(crate) applies: Applies,
    /// What it explains.
    pub(crate) covers: Covers,
}

impl Intended {
    /// Whether it may be seen in any case.
    pub(crate) const fn is_common(&self) -> bool {
        matches!(self.scope, Scope::Anywhere)
    }
}

/// Where a difference must be seen.
#[derive(Clone, Copy)]
pub(crate) enum Scope {
    /// Somewhere, and it may be seen anywhere.
    Anywhere,
    /// In each of these cases, and in no other.
    Cases(&'static [&'static str]),
}

/// In which settings a difference must be seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applies {
    /// Wherever there is an upstream.
    Answered,
    /// With an agent since 2025.1.
    Agent,
    /// With an agent until 2024.2.
    Server,
    /// With none.
    Absent,
}

impl Applies {
    /// Whether that is this setting.
    pub(crate) fn to(self, setting: Setting) -> bool {
        match self {
            Self::Answered => setting.style != Style::Absent,
            Self::Agent => setting.style == Style::Agent,
            Self::Server => setting.style == Style::Server,
            Self::Absent => setting.style == Style::Absent,
        }
    }
}

/// What a difference explains.
#[derive(Clone, Copy)]
pub(crate) enum Covers {
    /// These aspects of a case.
    Aspects(fn(&Difference<'_>) -> bool),
    /// All of a case that ends so with haproxy (some of which it leaves to chance), and so with us.
    Fate {
        theirs: &'static [&'static str],
        ours: &'static str,
    },
}

/// All of them.
pub(crate) fn intended() -> Vec<Intended> {
    [manners::MANNERS, fates::FATES, answers::ANSWERS].concat()
}
