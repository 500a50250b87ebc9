//! What was put back, counted by what it was.

use std::collections::BTreeMap;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::kernel::Repair;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhatLabel {
    what: &'static str,
}

/// How often what was put back.
#[derive(Clone, Default)]
pub struct Repairs(Family<WhatLabel, Counter>);

impl Repairs {
    /// Makes the counters and registers them.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let repairs = Self::default();
        // Each is there from the start, so that its rate can be asked for.
        for repair in Repair::ALL {
            repairs.counter(*repair);
        }
        registry.register(
            "repairs",
            "What somebody took away and was put back",
            repairs.0.clone(),
        );
        repairs
    }

    /// Counts one.
    pub fn count(&self, repair: Repair) {
        self.counter(repair).inc();
    }

    /// How often what was put back, by its label.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        Repair::ALL
            .iter()
            .map(|repair| (repair.label().to_owned(), self.counter(*repair).get()))
            .collect()
    }

    fn counter(&self, repair: Repair) -> Counter {
        let label = WhatLabel {
            what: repair.label(),
        };
        self.0.get_or_create(&label).clone()
    }
}
