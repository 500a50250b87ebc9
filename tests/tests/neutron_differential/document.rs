//! Writes down what was compared and what differs, for operators.

use std::fmt::Write as _;

use metadata_proxy_tests::document;

use crate::{corpus::Case, difference::Seen, intended::Intended};

const NAME: &str = "differences-from-haproxy.md";

const INTRODUCTION: &str = "\
# Differences from haproxy

Neutron starts an haproxy for every router and network; `metadata-proxy` takes their place. What it
does differently is listed here, with the reason. Everything else is the same.

This document is written by a test, `tests/tests/neutron_differential`. It sends every case below
through haproxy 2.6, configured as Neutron configures it, and through `metadata-proxy`, in two
namespaces of the same shape with the same recording upstream: for a router (behind Neutron's
`REDIRECT`), a network and a network of OVN with an agent as since 2025.1, and for a router with an
agent as until 2024.2. It compares what the upstream saw (method, path, headers, body) with what the
guest got (statuses, headers, bodies, whether the connection carries on). It fails when something
differs that is not listed, when something listed no longer differs, and when this document is out of
date. To write it anew:

```
UPDATE_DOCS=1 cargo xtask test nothing_differs_from_haproxy
```
";

/// Compares the document with the committed one, or writes it.
pub(crate) fn check(cases: &[Case], intended: &[Intended], seen: &Seen) {
    document::keep_current(NAME, &written(cases, intended, seen)).unwrap();
}

fn written(cases: &[Case], intended: &[Intended], seen: &Seen) -> String {
    let mut text = String::from(INTRODUCTION);
    // Writing to a string does not fail.
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{arguments}");
    };
    line(format_args!("\n## What differs\n"));
    line(format_args!("| | what | haproxy | metadata-proxy | why |"));
    line(format_args!("|---|---|---|---|---|"));
    for (number, row) in (1..).zip(intended) {
        let Intended {
            what,
            theirs,
            ours,
            why,
            ..
        } = row;
        line(format_args!(
            "| {number} | {what} | {theirs} | {ours} | {why} |"
        ));
    }
    line(format_args!("\n## What was compared\n"));
    line(format_args!(
        "{} cases. The numbers are those of the differences above; those of how answers are worded, \
         which are seen nearly everywhere, are left out.\n",
        cases.len()
    ));
    line(format_args!("| case | differences |"));
    line(format_args!("|---|---|"));
    for case in cases {
        let numbers: Vec<_> = seen
            .iter()
            .filter(|(number, cases)| !intended[**number].is_common() && cases.contains(case.name))
            .map(|(number, _)| (number + 1).to_string())
            .collect();
        line(format_args!("| {} | {} |", case.name, numbers.join(", ")));
    }
    text
}
