//! The drills, a file for each.

mod asking;
mod crash;
mod crowd;
mod guests;
mod isolation;
mod neighbours;
mod process;
mod random;
mod repair;
mod resources;
mod upgrade;
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
#[rustfmt::skip]
pub(crate) const DRILLS: &[Drill] = &[
    Drill { name: "upgrade", promise: "a new process takes over, and no request fails and no connection is reset", run: upgrade::run },
    Drill { name: "crash", promise: "a crash loses only what was in flight: everybody is served within a second of the start", run: crash::run },
    Drill { name: "repair", promise: "what somebody takes away is noticed, put back, counted and told once", run: repair::run },
    Drill { name: "isolation", promise: "no answer reaches another tenant, whatever comes, goes, breaks or is killed", run: isolation::run },
    Drill { name: "guests", promise: "hostile guests harm nobody else, and nothing they hide reaches the upstream", run: guests::run },
    Drill { name: "upstream", promise: "a broken upstream is told apart, in time, and forgotten once it is well again", run: upstream::run },
    Drill { name: "resources", promise: "what runs out is named, and those who are served go on being served", run: resources::run },
];
