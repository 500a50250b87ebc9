//! Neutron's rate limit, put together from the tables and rules it is spread over.
//!
//! Neutron writes two stick tables (`backend` sections) and in the `listen` section, for each, one
//! rule that counts and one that denies.

use std::{str::SplitAsciiWhitespace, time::Duration};

use super::{error::Problem, words};
use crate::neutron::{AddressFamily, RateLimit, Window};

const BASE: &str = "base_rate_limiter";
const BURST: &str = "burst_rate_limiter";

/// The parts of the rate limit that were read so far.
#[derive(Debug, Default)]
pub(super) struct Limits {
    base: Parts,
    burst: Parts,
}

#[derive(Debug, Default)]
struct Parts {
    declared: bool,
    table: Option<(AddressFamily, Duration)>,
    counted: bool,
    requests: Option<u32>,
}

impl Limits {
    /// Takes note of a `backend` section; returns which table is to be defined in it.
    pub(super) fn declare(&mut self, name: &str) -> Result<Table, Problem> {
        let table = Table::named(name).ok_or_else(|| {
            Problem::value(
                "backend",
                name,
                "not one of Neutron's two rate-limit tables",
            )
        })?;
        let parts = self.parts(table);
        if parts.declared {
            return Err(Problem::Second("backend section of that name"));
        }
        parts.declared = true;
        Ok(table)
    }

    /// Reads what follows `stick-table`; `None` if it is not Neutron's form.
    pub(super) fn stick_table(
        &mut self,
        table: Table,
        words: SplitAsciiWhitespace<'_>,
    ) -> Result<Option<()>, Problem> {
        let Some(["type", family, "size", _, "expire", _, "store", rate]) = words::exactly(words)
        else {
            return Ok(None);
        };
        let family = match family {
            "ip" => AddressFamily::Ipv4,
            "ipv6" => AddressFamily::Ipv6,
            _ => return Ok(None),
        };
        let Some(duration) = argument(rate, "http_req_rate") else {
            return Ok(None);
        };
        let duration = words::duration("window", duration)?;
        let parts = self.parts(table);
        if parts.table.replace((family, duration)).is_some() {
            return Err(Problem::Second("stick-table in that backend"));
        }
        Ok(Some(()))
    }

    /// Reads what follows `http-request track-sc0` or `track-sc1`.
    pub(super) fn track(&mut self, words: SplitAsciiWhitespace<'_>) -> Option<()> {
        let ["src", "table", table] = words::exactly(words)? else {
            return None;
        };
        self.parts(Table::named(table)?).counted = true;
        Some(())
    }

    /// Reads what follows `http-request deny`; `None` if it is not Neutron's form.
    pub(super) fn deny(&mut self, words: SplitAsciiWhitespace<'_>) -> Result<Option<()>, Problem> {
        let Some(["deny_status", "429", "if", "{", rate, "gt", requests, "}"]) =
            words::exactly(words)
        else {
            return Ok(None);
        };
        let Some(table) = argument(rate, "src_http_req_rate").and_then(Table::named) else {
            return Ok(None);
        };
        let requests = words::number("rate limit", requests)?;
        if self.parts(table).requests.replace(requests).is_some() {
            return Err(Problem::Second("limit on that table"));
        }
        Ok(Some(()))
    }

    /// Puts the parts together; `None` if there were none.
    pub(super) fn finish(self) -> Result<Option<RateLimit>, Problem> {
        if !self.base.any() && !self.burst.any() {
            return Ok(None);
        }
        let (family, base) = self.base.finish()?;
        let (burst_family, burst) = self.burst.finish()?;
        if family != burst_family {
            return Err(Problem::RateLimit("its tables count different families"));
        }
        Ok(Some(RateLimit {
            family,
            base,
            burst,
        }))
    }

    fn parts(&mut self, table: Table) -> &mut Parts {
        match table {
            Table::Base => &mut self.base,
            Table::Burst => &mut self.burst,
        }
    }
}

impl Parts {
    const fn any(&self) -> bool {
        self.declared || self.counted || self.requests.is_some()
    }

    fn finish(self) -> Result<(AddressFamily, Window), Problem> {
        let (family, duration) = self
            .table
            .ok_or(Problem::RateLimit("a stick-table is missing"))?;
        if !self.counted {
            return Err(Problem::RateLimit("nothing counts in one of its tables"));
        }
        let requests = self
            .requests
            .ok_or(Problem::RateLimit("no rule denies on one of its tables"))?;
        Ok((family, Window { duration, requests }))
    }
}

/// One of Neutron's two stick tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Base,
    Burst,
}

impl Table {
    fn named(name: &str) -> Option<Self> {
        match name {
            BASE => Some(Self::Base),
            BURST => Some(Self::Burst),
            _ => None,
        }
    }
}

/// The argument in `function(argument)`.
fn argument<'a>(call: &'a str, function: &str) -> Option<&'a str> {
    call.strip_prefix(function)?
        .strip_prefix('(')?
        .strip_suffix(')')
}
