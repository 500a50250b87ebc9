//! What was seen with many tenants, as lines of the report.

use super::{BARRED, Seen};
use crate::{
    Arguments, load,
    report::{Bar, Line, Report, Samples},
    stages::Row,
};

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * 1024.0;

/// Writes all lines.
pub(super) fn write(arguments: &Arguments, ours: &[Seen], theirs: &[Seen], report: &mut Report) {
    let mut lines = Lines { arguments, report };
    for seen in ours {
        let peer = theirs.iter().find(|their| their.tenants == seen.tenants);
        lines.memory(seen, peer);
        lines.start(seen, peer);
        // A haproxy's start does not depend on the others: where there are too many to start, the
        // most that were started stand for them.
        lines.newcomers(seen, peer.or(theirs.last()));
        lines.rest(seen, peer);
    }
    if let (Some(first), Some(last)) = (ours.first(), ours.last())
        && last.tenants > first.tenants
    {
        lines.growth(first, last);
    }
    report.lines.sort_by_key(|line| line.row as usize);
}

struct Lines<'a> {
    arguments: &'a Arguments,
    report: &'a mut Report,
}

impl Lines<'_> {
    fn line(
        &mut self,
        row: Row,
        name: String,
        unit: &'static str,
        (ours, peer): (impl Into<Samples>, Option<Samples>),
        bar: Option<Bar>,
    ) {
        if self.arguments.wants(row) {
            let ours = ours.into();
            self.report.push(Line {
                row,
                name,
                unit,
                ours,
                peer,
                bar,
            });
        }
    }

    fn memory(&mut self, seen: &Seen, peer: Option<&Seen>) {
        let n = seen.tenants;
        let bar = (n == BARRED).then_some(Bar::RatioAtMost(0.01));
        let idle = |seen: &Seen| Samples::from(seen.idle_memory / MIB);
        let loaded = |seen: &Seen| Samples::from(seen.loaded_memory / MIB);
        let name = format!("{n} tenants, idle");
        self.line(Row::Memory, name, "MiB", (idle(seen), peer.map(idle)), bar);
        let name = format!("{n} tenants, after load");
        let both = (loaded(seen), peer.map(loaded));
        self.line(Row::Memory, name, "MiB", both, bar);
        if n == BARRED {
            let worst = seen.idle_memory.max(seen.loaded_memory) / MIB;
            let name = format!("{n} tenants, the larger");
            let bar = Some(Bar::AtMost(32.0));
            self.line(Row::Memory, name, "MiB", (worst, None), bar);
        }
    }

    fn start(&mut self, seen: &Seen, peer: Option<&Seen>) {
        let n = seen.tenants;
        let name = format!("{n} tenants");
        let bar = (n == BARRED).then_some(Bar::RatioAtMost(1.0 / 30.0));
        let both = (seen.start.clone(), peer.map(|peer| peer.start.clone()));
        self.line(Row::Start, name, "s", both, bar);
        if n == BARRED {
            let name = format!("{n} tenants, by itself");
            let bar = Some(Bar::AtMost(1.5));
            self.line(Row::Start, name, "s", (seen.start.clone(), None), bar);
        }
    }

    fn newcomers(&mut self, seen: &Seen, peer: Option<&Seen>) {
        let n = seen.tenants;
        let at = |share| move |seen: &Seen| load::percentile(&seen.newcomers, share) / 1e6;
        let (middle, tail) = (at(0.5), at(0.99));
        let peer_at = |of: &dyn Fn(&Seen) -> f64| peer.map(|peer| Samples::from(of(peer)));
        let row = Row::NewTenant;
        let both = (middle(seen), peer_at(&middle));
        self.line(row, format!("{n} others, p50"), "ms", both, None);
        let both = (tail(seen), peer_at(&tail));
        let bar = Some(Bar::RatioAtMost(1.0 / 3.0));
        self.line(row, format!("{n} others, p99"), "ms", both, bar);
        let name = format!("{n} others, p99, by itself");
        let bar = Some(Bar::AtMost(20.0));
        self.line(row, name, "ms", (tail(seen), None), bar);
    }

    fn rest(&mut self, seen: &Seen, peer: Option<&Seen>) {
        let n = seen.tenants;
        if let Some(idle) = seen.idle_cpu {
            let bar = (n == BARRED).then_some(Bar::AtMost(0.1));
            let name = format!("{n} tenants");
            self.line(Row::Idle, name, "% of a core", (idle * 100.0, None), bar);
        }
        let name = format!("{n} tenants, CPU per request");
        self.line(Row::Scale, name, "µs", (seen.cpu, None), None);
        let files = |seen: &Seen| Samples::from(load::count(seen.files));
        let name = format!("{n} tenants, open files");
        self.line(Row::Scale, name, "", (files(seen), peer.map(files)), None);
    }

    fn growth(&mut self, first: &Seen, last: &Seen) {
        let more = load::count(last.tenants - first.tenants) * KIB;
        let bar = Some(Bar::AtMost(12.0));
        let idle = (last.idle_memory - first.idle_memory) / more;
        let name = "growth per tenant, idle".to_owned();
        self.line(Row::Memory, name, "KiB", (idle, None), bar);
        let loaded = (last.loaded_memory - first.loaded_memory) / more;
        let name = "growth per tenant, after load".to_owned();
        self.line(Row::Memory, name, "KiB", (loaded, None), bar);
        let (many, few) = (last.tenants, first.tenants);
        let name = format!("CPU per request, {many} tenants over {few}");
        let bar = Some(Bar::AtMost(1.2));
        self.line(Row::Scale, name, "×", (last.cpu / first.cpu, None), bar);
    }
}
