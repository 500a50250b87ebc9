//! What one guest came to, judged from its console alone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use metadata_proxy_vm_init::manifest::{Manifest, Test};
use metadata_proxy_vm_init::report::Report;

use super::qemu::{BOOT, Hangs, Running};

/// A test that PID 1 kills may take this much longer to end.
const GRACE: Duration = Duration::from_secs(20);
/// From one result line to the next step, when no test runs.
const BETWEEN: Duration = Duration::from_secs(30);

/// One guest's results.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// As the guest told it.
    pub(super) release: Option<String>,
    /// One for each test that ended, in the order of the manifest.
    pub(super) tests: Vec<TestOutcome>,
    /// What the guest's tests found out about it, by name.
    pub(super) facts: BTreeMap<String, String>,
    /// Why the guest as a whole failed, whatever its tests say.
    pub(super) failure: Option<String>,
    /// From the start of QEMU to its end.
    pub(super) took: Duration,
    /// From the start of QEMU to PID 1.
    pub(super) boot: Duration,
}

/// One test program's results.
#[derive(Debug)]
pub(super) struct TestOutcome {
    pub(super) name: String,
    pub(super) passed: bool,
    pub(super) took: Duration,
    /// How many of its test functions passed, failed and were left out, as libtest counts them.
    pub(super) functions: Functions,
}

/// libtest's counts.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Functions {
    pub(super) passed: usize,
    pub(super) failed: Vec<String>,
    pub(super) ignored: usize,
}

impl Functions {
    /// Counts a line like `test name ... FAILED`, and the last one, which has the numbers: a line of
    /// a single test may be torn by what the test itself prints.
    fn count(&mut self, line: &str) {
        if let Some(numbers) = line.strip_prefix("test result: ") {
            self.passed += number_before(numbers, " passed");
            self.ignored += number_before(numbers, " ignored");
        }
        let Some((name, verdict)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        else {
            return;
        };
        if verdict.split([' ', ',']).next() == Some("FAILED") {
            self.failed.push(name.to_owned());
        }
    }
}

/// The number that stands before `word`.
fn number_before(text: &str, word: &str) -> usize {
    text.split(word)
        .next()
        .and_then(|before| before.rsplit(' ').next()?.parse().ok())
        .unwrap_or_default()
}

impl Outcome {
    /// Whether everything ran and passed.
    pub(super) fn passed(&self) -> bool {
        self.failure.is_none() && self.tests.iter().all(|test| test.passed)
    }

    /// Fails where a test passed without a single test function, which then tested nothing.
    pub(super) fn fail_without_functions(&mut self) {
        let empty = self
            .tests
            .iter()
            .find(|test| test.passed && test.functions.passed == 0);
        if let Some(test) = empty {
            let why = format!("{} passed without running a test function", test.name);
            self.failure.get_or_insert(why);
        }
    }

    /// Follows a guest to its end, handing each console line on.
    pub(super) fn follow(
        running: &Running,
        manifest: &Manifest,
        release: &str,
        mut show: impl FnMut(&str),
    ) -> Self {
        let begun = Instant::now();
        let mut watch = Watch {
            manifest,
            release,
            begun,
            deadline: begun + BOOT,
            waits_for: "PID 1's first line".to_owned(),
            functions: Functions::default(),
            done: false,
            outcome: Self::default(),
        };
        loop {
            match running.next_line(watch.deadline) {
                Ok(Some(line)) => {
                    show(&line);
                    watch.line(&line);
                }
                Ok(None) => {
                    if !watch.done {
                        watch.fail(format!(
                            "the guest ended while we waited for {}",
                            watch.waits_for
                        ));
                    }
                    break;
                }
                Err(Hangs) => {
                    watch.fail(format!("the guest hangs: no {}", watch.waits_for));
                    break;
                }
            }
        }
        watch.outcome.took = begun.elapsed();
        watch.outcome
    }
}

/// The reader of one console.
struct Watch<'a> {
    manifest: &'a Manifest,
    release: &'a str,
    begun: Instant,
    deadline: Instant,
    waits_for: String,
    functions: Functions,
    done: bool,
    outcome: Outcome,
}

impl Watch<'_> {
    fn line(&mut self, line: &str) {
        // Faults of the kernel itself, which no test may notice.
        let faults = ["------------[ cut here ]", "] BUG: ", "] Kernel panic "];
        if faults.iter().any(|fault| line.contains(fault)) {
            self.fail(format!("the kernel complains: {line}"));
        }
        match Report::parse(line) {
            None => self.functions.count(line),
            Some(report) => self.report(report),
        }
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Started { kernel } => {
                self.outcome.boot = self.begun.elapsed();
                if kernel != self.release {
                    self.fail(format!("{} was to be booted, {kernel} runs", self.release));
                }
                self.outcome.release = Some(kernel);
                self.wait(BETWEEN, "the first test");
            }
            Report::Running { name } => {
                self.functions = Functions::default();
                let timeout = self.test(&name).map_or(0, |test| test.timeout_seconds);
                self.wait(
                    Duration::from_secs(timeout) + GRACE,
                    &format!("result of {name}"),
                );
            }
            Report::Finished { name, passed, took } => {
                let functions = std::mem::take(&mut self.functions);
                self.outcome.tests.push(TestOutcome {
                    name,
                    passed,
                    took,
                    functions,
                });
                self.wait(BETWEEN, "next test, or the final line");
            }
            Report::Fact { name, value } => {
                self.outcome.facts.insert(name, value);
            }
            Report::Done { passed, failed } => self.finish(passed, failed),
            Report::Broken { why } => {
                self.fail(format!("PID 1: {why}"));
                self.wait(BETWEEN, "the guest to power off");
            }
        }
    }

    /// The final line has to agree with what came before it.
    fn finish(&mut self, passed: usize, failed: usize) {
        let seen = self.outcome.tests.iter().filter(|test| test.passed).count();
        let expected = self.manifest.tests.len();
        if passed != seen || passed + failed != expected || self.outcome.tests.len() != expected {
            self.fail(format!(
                "{expected} tests were to run, the guest counts {passed} passed and {failed} \
                 failed, and its result lines are {seen} passed of {}",
                self.outcome.tests.len()
            ));
        }
        self.done = true;
        self.wait(BETWEEN, "the guest to power off");
    }

    fn test(&self, name: &str) -> Option<&Test> {
        self.manifest.tests.iter().find(|test| test.name == name)
    }

    fn wait(&mut self, time: Duration, what: &str) {
        self.deadline = Instant::now() + time;
        what.clone_into(&mut self.waits_for);
    }

    /// The first failure is the cause; the rest follows from it.
    fn fail(&mut self, why: String) {
        self.outcome.failure.get_or_insert(why);
    }
}

#[cfg(test)]
mod tests {
    use metadata_proxy_vm_init::manifest::Cgroups;

    use super::*;

    fn manifest(tests: &[&str]) -> Manifest {
        Manifest {
            modules: Vec::new(),
            cgroups: Cgroups::Unified,
            bpffs: true,
            sysctls: BTreeMap::new(),
            environment: BTreeMap::new(),
            tests: tests
                .iter()
                .map(|name| Test {
                    name: (*name).to_owned(),
                    program: format!("/tests/{name}").into(),
                    arguments: Vec::new(),
                    timeout_seconds: 1,
                    without_capabilities: Vec::new(),
                    without_kernel_types: false,
                })
                .collect(),
        }
    }

    fn judge(tests: &[&str], console: &str) -> (Outcome, bool) {
        let manifest = manifest(tests);
        let begun = Instant::now();
        let mut watch = Watch {
            manifest: &manifest,
            release: "6.1.0",
            begun,
            deadline: begun,
            waits_for: String::new(),
            functions: Functions::default(),
            done: false,
            outcome: Outcome::default(),
        };
        for line in console.lines() {
            watch.line(line);
        }
        (watch.outcome, watch.done)
    }

    #[test]
    fn a_guest_whose_tests_all_pass_has_passed() {
        let (outcome, done) = judge(
            &["a", "b"],
            "VMTEST-START 6.1.0\nVMTEST-RUN a\ntest x ... ok\ntest y ... ignored, no\n\
             test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out\n\
             VMTEST a ok 1.5\nVMTEST-RUN b\ntest z ... \nsaid\nok\n\
             test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
             VMTEST b ok 0.1\n\
             VMTEST-DONE passed=2 failed=0\n",
        );
        assert!(done && outcome.passed(), "{outcome:?}");
        assert_eq!(
            outcome.tests[0].functions,
            Functions {
                passed: 1,
                failed: Vec::new(),
                ignored: 1
            }
        );
        assert_eq!(outcome.tests[1].functions.passed, 1);
    }

    #[test]
    fn a_test_without_functions_has_tested_nothing() {
        let console = "VMTEST-START 6.1.0\nVMTEST-RUN a\nVMTEST a ok 1.5\n\
                       VMTEST-DONE passed=1 failed=0\n";
        let (mut outcome, _) = judge(&["a"], console);
        assert!(outcome.passed());
        outcome.fail_without_functions();
        assert!(!outcome.passed());
    }

    #[test]
    fn a_failed_test_names_its_functions() {
        let (outcome, done) = judge(
            &["a"],
            "VMTEST-START 6.1.0\nVMTEST-RUN a\ntest x ... FAILED\nVMTEST a FAILED 1.5\n\
             VMTEST-DONE passed=0 failed=1\n",
        );
        assert!(done && !outcome.passed());
        assert_eq!(outcome.tests[0].functions.failed, ["x"]);
        assert_eq!(outcome.failure, None);
    }

    #[test]
    fn a_final_line_that_does_not_fit_the_manifest_is_a_failure() {
        let (outcome, _) = judge(
            &["a", "b"],
            "VMTEST-START 6.1.0\nVMTEST a ok 1.5\nVMTEST-DONE passed=1 failed=0\n",
        );
        assert!(
            outcome
                .failure
                .is_some_and(|why| why.contains("2 tests were to run"))
        );
    }

    #[test]
    fn another_kernel_and_a_complaint_of_the_kernel_are_failures() {
        let (outcome, _) = judge(&[], "VMTEST-START 5.10.0\nVMTEST-DONE passed=0 failed=0\n");
        assert!(
            outcome
                .failure
                .is_some_and(|why| why.contains("5.10.0 runs"))
        );
        let (outcome, _) = judge(
            &[],
            "VMTEST-START 6.1.0\n[    1.0] ------------[ cut here ]------------\n\
             VMTEST-DONE passed=0 failed=0\n",
        );
        assert!(outcome.failure.is_some_and(|why| why.contains("cut here")));
    }
}
