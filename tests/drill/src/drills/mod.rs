//! The drills, a file for each.

mod guests;
mod neighbours;
mod resources;
mod upstream;

use anyhow::Result;

use crate::{figures::Figures, plan::Plan};

/// One promise, and what tries to break it.
#[derive(Debug)]
pub(crate) struct Drill {
    pub(crate) name: &'static str,
    /// The promise, in a line.
    pub(crate) promise: &'static str,
    /// Tries to break it; an error means that the drill itself could not go on.
    pub(crate) run: fn(&Plan) -> Result<Figures>,
}

/// All of them, in the order in which they are run.
pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "guests",
        promise: "hostile guests harm nobody else, and nothing they hide reaches the upstream",
        run: guests::run,
    },
    Drill {
        name: "upstream",
        promise: "a broken upstream is told apart, in time, and forgotten once it is well again",
        run: upstream::run,
    },
    Drill {
        name: "resources",
        promise: "what runs out is named, and those who are served go on being served",
        run: resources::run,
    },
];
