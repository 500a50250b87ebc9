//! The result lines a guest prints on its console.
//!
//! A line that is not one of these is output of a test or of the kernel.

use std::fmt;
use std::time::Duration;

/// What one result line says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Report {
    /// PID 1 runs; the kernel's release.
    Started {
        /// As `uname -r` prints it.
        kernel: String,
    },
    /// A test begins.
    Running {
        /// The manifest's name of it.
        name: String,
    },
    /// A test ended.
    Finished {
        /// The manifest's name of it.
        name: String,
        /// Whether it exited with 0 in time.
        passed: bool,
        /// How long it ran.
        took: Duration,
    },
    /// Something found out about this guest, for the tables.
    Fact {
        /// What it is about: no white space.
        name: String,
        /// What it is.
        value: String,
    },
    /// Everything ran; the guest powers off next. Its absence means failure.
    Done {
        /// How many passed.
        passed: usize,
        /// How many did not.
        failed: usize,
    },
    /// PID 1 could not do its work; the guest powers off next.
    Broken {
        /// What went wrong.
        why: String,
    },
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { kernel } => write!(f, "VMTEST-START {kernel}"),
            Self::Running { name } => write!(f, "VMTEST-RUN {name}"),
            Self::Finished { name, passed, took } => {
                let verdict = if *passed { "ok" } else { "FAILED" };
                write!(f, "VMTEST {name} {verdict} {:.3}", took.as_secs_f64())
            }
            Self::Fact { name, value } => write!(f, "VMTEST-FACT {name} {value}"),
            Self::Done { passed, failed } => {
                write!(f, "VMTEST-DONE passed={passed} failed={failed}")
            }
            Self::Broken { why } => write!(f, "VMTEST-BROKEN {}", why.replace('\n', " ")),
        }
    }
}

impl Report {
    /// Reads a console line; `None` when it is no result line.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let (tag, rest) = line.trim().split_once(' ')?;
        match tag {
            "VMTEST-START" => Some(Self::Started {
                kernel: rest.to_owned(),
            }),
            "VMTEST-RUN" => Some(Self::Running {
                name: rest.to_owned(),
            }),
            "VMTEST" => {
                let mut words = rest.split(' ');
                let name = words.next()?.to_owned();
                let passed = match words.next()? {
                    "ok" => true,
                    "FAILED" => false,
                    _ => return None,
                };
                let took = Duration::try_from_secs_f64(words.next()?.parse().ok()?).ok()?;
                words
                    .next()
                    .is_none()
                    .then_some(Self::Finished { name, passed, took })
            }
            "VMTEST-FACT" => {
                let (name, value) = rest.split_once(' ')?;
                Some(Self::Fact {
                    name: name.to_owned(),
                    value: value.to_owned(),
                })
            }
            "VMTEST-DONE" => {
                let (passed, failed) = rest.split_once(' ')?;
                Some(Self::Done {
                    passed: passed.strip_prefix("passed=")?.parse().ok()?,
                    failed: failed.strip_prefix("failed=")?.parse().ok()?,
                })
            }
            "VMTEST-BROKEN" => Some(Self::Broken {
                why: rest.to_owned(),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_line_is_read_back_as_it_was_written() {
        let reports = [
            Report::Started {
                kernel: "6.1.0-56-cloud-amd64".into(),
            },
            Report::Running {
                name: "steering".into(),
            },
            Report::Finished {
                name: "steering".into(),
                passed: true,
                took: Duration::from_millis(1250),
            },
            Report::Finished {
                name: "b".into(),
                passed: false,
                took: Duration::ZERO,
            },
            Report::Fact {
                name: "engine".into(),
                value: "tc by tcx".into(),
            },
            Report::Done {
                passed: 3,
                failed: 1,
            },
            Report::Broken {
                why: "no /proc: it is gone".into(),
            },
        ];
        for report in reports {
            assert_eq!(Report::parse(&format!("{report}\r")), Some(report));
        }
    }

    #[test]
    fn a_line_of_a_test_or_a_torn_result_line_is_no_result() {
        for line in [
            "",
            "VMTEST",
            "VMTEST steering",
            "VMTEST steering ok",
            "VMTEST steering ok 1.0 and more",
            "VMTEST steering perhaps 1.0",
            "VMTEST-DONE passed=3",
            "VMTEST-DONE passed=3 failed=",
            "test steering ... ok",
            "xVMTEST-DONE passed=3 failed=0",
        ] {
            assert_eq!(Report::parse(line), None, "{line}");
        }
    }
}
