//! What a guest said over its console, against what it was to say.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::vm::qemu::{Hangs, Running};

/// What was seen of one guest.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// What the user data said, by its first word.
    pub(super) facts: BTreeMap<String, String>,
    /// The data source that cloud-init says it took.
    pub(super) data_source: Option<String>,
    /// Since the start of QEMU.
    pub(super) took: Duration,
    /// Why nothing more can come.
    pub(super) failure: Option<String>,
}

impl Seen {
    /// Reads the console until cloud-init has finished.
    pub(super) fn follow(running: &Running, timeout: Duration, mut show: impl FnMut(&str)) -> Self {
        let begun = Instant::now();
        let mut seen = Self::default();
        while !seen.is_complete() {
            match running.next_line(begun + timeout) {
                Ok(Some(line)) => {
                    show(&line);
                    seen.line(&line);
                }
                Ok(None) => {
                    seen.failure = Some("the guest ended before cloud-init had finished".into());
                    break;
                }
                Err(Hangs) => {
                    seen.failure = Some(format!(
                        "cloud-init has not finished after {} s",
                        timeout.as_secs()
                    ));
                    break;
                }
            }
        }
        seen.took = begun.elapsed();
        seen
    }

    fn is_complete(&self) -> bool {
        self.data_source.is_some()
    }

    fn line(&mut self, line: &str) {
        if let Some((_, told)) = line.split_once("VMGUEST ") {
            let (name, value) = told.split_once(' ').unwrap_or((told, ""));
            self.facts.insert(name.to_owned(), value.trim().to_owned());
        }
        // cloud-init's final message: "... finished at ... Datasource DataSourceX [...]."
        if line.contains("finished at")
            && let Some((_, rest)) = line.split_once("Datasource ")
        {
            let name = rest.split([' ', '.']).next().unwrap_or_default();
            self.data_source = Some(name.to_owned());
        }
    }

    /// Everything that is not as it should be.
    pub(super) fn complaints(&self, expected: &[(&str, String)]) -> Vec<String> {
        let mut complaints: Vec<String> = self.failure.iter().cloned().collect();
        for (name, value) in expected {
            match self.facts.get(*name) {
                Some(found) if found == value => {}
                Some(found) => complaints.push(format!("{name} is {found:?}, not {value:?}")),
                None => complaints.push(format!("{name} was not told")),
            }
        }
        let found = self.data_source.as_deref().unwrap_or("none");
        if !found.starts_with("DataSourceOpenStack") {
            complaints.push(format!("cloud-init's data source is {found}"));
        }
        complaints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(console: &str) -> Seen {
        let mut seen = Seen::default();
        for line in console.lines() {
            seen.line(line);
        }
        seen
    }

    #[test]
    fn a_guest_that_said_all_of_it_has_nothing_to_complain_of() {
        let seen = seen(
            "[  1.0] cloud-init[1]: VMGUEST host-name alpha\nVMGUEST key ssh-ed25519 AAAA x\n\
             [ 9.0] cloud-init[2]: Cloud-init v. 22.4.2 finished at Tue, 24 Nov 2026. \
             Datasource DataSourceOpenStackLocal [net,ver=2].  Up 9.0 seconds\n",
        );
        let expected = [
            ("host-name", "alpha".to_owned()),
            ("key", "ssh-ed25519 AAAA x".to_owned()),
        ];
        assert!(seen.is_complete());
        assert_eq!(seen.complaints(&expected), Vec::<String>::new());
    }

    #[test]
    fn another_tenants_answer_and_no_data_source_are_complaints() {
        let seen = seen(
            "VMGUEST host-name beta\n\
             Cloud-init v. 22.4.2 finished at now. Datasource DataSourceNone.  Up 9.0 seconds\n",
        );
        let expected = [("host-name", "alpha".to_owned()), ("key", "k".to_owned())];
        assert_eq!(
            seen.complaints(&expected),
            [
                "host-name is \"beta\", not \"alpha\"",
                "key was not told",
                "cloud-init's data source is DataSourceNone"
            ]
        );
    }
}
