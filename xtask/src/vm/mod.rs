//! `cargo xtask vm-test`: the namespace tests in virtual machines, one for each kernel.
//!
//! Everything is fetched as Debian packages, verified, and kept in `.cache/vm`; nothing is
//! installed. The verdict on a kernel is taken from the result lines of its guest alone.

mod apt;
mod cache;
mod command;
mod cpio;
mod guest;
mod kernels;
mod modules;
mod outcome;
mod payload;
mod qemu;
mod suite;
mod table;
mod variant;

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use metadata_proxy_vm_init::manifest::{self, Cgroups, Manifest, Test};

use self::cache::Cache;
pub(crate) use self::guest::{VmGuestArgs, run as run_guest};
use self::kernels::Kernel;
use self::outcome::Outcome;
use self::payload::Payload;
use self::qemu::{Accel, Machine, Qemu};
use self::suite::{Role, TestProgram};
use self::table::Column;
use self::variant::{CAPABILITIES, Variant};
use crate::build::{self, BuildArgs};
use crate::setup::{self, Purpose};

/// Where the agent lies in a guest.
const AGENT: &str = "/tests/metadata-proxy";
/// Enough for the initramfs twice, packed and unpacked, and a thousand namespaces.
const MEMORY_MIB: u32 = 2048;

/// What a kernel does by default against attackers and is dear where its code is translated: a fifth of all
/// time. None of it is about networks or BPF; that has variants of its own.
const QUICKER: &str =
    "mitigations=off init_on_alloc=0 hardened_usercopy=off transparent_hugepage=never audit=0";

/// Runs the namespace tests in virtual machines, one for each kernel.
#[derive(clap::Args, Debug)]
pub(crate) struct VmTestArgs {
    /// A kernel series (5.10, 6.1, 6.12, ...) or `newest`; may be repeated
    #[arg(long = "kernel", value_name = "SERIES",
        default_values = ["5.10", "6.1", "6.12", "6.18", "newest"])]
    kernels: Vec<String>,
    /// A condition of the guest, or `all` of them; may be repeated
    #[arg(long = "variant", value_name = "NAME", default_values = ["plain"])]
    variants: Vec<String>,
    /// Runs the whole suite under every condition, not only what the condition bears on
    #[arg(long)]
    whole: bool,
    /// Runs only the test functions whose names contain this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Runs this executable instead of the namespace tests; may be repeated
    #[arg(long = "test", value_name = "PROGRAM")]
    tests: Vec<PathBuf>,
    /// Seconds that one test program may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Guests at a time; one keeps two processors busy already
    #[arg(long, value_name = "COUNT", default_value = "1")]
    jobs: NonZeroUsize,
    /// How the guest's processor is had
    #[arg(long, value_enum, default_value_t)]
    accel: Accel,
    /// Writes which kernel got which engine and result to this file, as Markdown
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// Shows all that the guests print, not only result lines
    #[arg(long)]
    verbose: bool,
}

/// Boots every kernel under every condition asked for, and fails when one of them failed.
pub(crate) fn run(args: &VmTestArgs) -> anyhow::Result<()> {
    let begun = Instant::now();
    let variants = Variant::parse(&args.variants)?;
    setup::ensure(Purpose::Test)?;
    setup::ensure(Purpose::Vm)?;
    qemu::ensure_usable(args.accel)?;
    let cache = Cache::claim()?;

    let qemu = Qemu::fetch(cache.root())?;
    let kernels = kernels::fetch(cache.root(), &args.kernels)?;
    let scratch = cache.scratch()?;
    let agent = build::build(BuildArgs::default())?.agent;
    let tests = programs(&args.tests)?;
    let base = base_archive(&agent, &tests, &scratch)?;
    eprintln!(
        "{}; initramfs {} MiB; ready after {:.1} s",
        qemu.version()?,
        base.len() / (1024 * 1024),
        begun.elapsed().as_secs_f64()
    );

    let bench = Bench {
        args,
        qemu,
        logs: cache.logs(),
        scratch: &scratch,
        base,
        tests: &tests,
    };
    let guests: Vec<_> = kernels
        .iter()
        .flat_map(|kernel| variants.iter().map(move |variant| (kernel, *variant)))
        .collect();
    let columns = bench.guests(&guests)?;
    println!("{}", table::render(&columns));
    if let Some(page) = &args.page {
        fs::write(page, table::page(&columns))
            .with_context(|| format!("writing {}", page.display()))?;
    }
    println!(
        "{} guests in {:.1} s",
        columns.len(),
        begun.elapsed().as_secs_f64()
    );
    let failed: Vec<_> = columns
        .iter()
        .filter(|column| !column.outcome.passed())
        .map(|column| column.title.as_str())
        .collect();
    ensure!(failed.is_empty(), "failed in guests: {}", failed.join(", "));
    Ok(())
}

/// What all guests of one run share.
struct Bench<'a> {
    args: &'a VmTestArgs,
    qemu: Qemu,
    logs: PathBuf,
    scratch: &'a Path,
    base: Vec<u8>,
    tests: &'a [TestProgram],
}

impl Bench<'_> {
    /// Boots all of them, as many at a time as was asked for.
    fn guests(&self, guests: &[(&Kernel, Variant)]) -> anyhow::Result<Vec<Column>> {
        let next = AtomicUsize::new(0);
        let worker = || {
            let mut columns = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some((kernel, variant)) = guests.get(index) else {
                    return Ok(columns);
                };
                columns.push((index, self.guest(kernel, *variant)?));
            }
        };
        let mut columns = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.args.jobs.get())
                .map(|_| scope.spawn(worker))
                .collect();
            let mut columns = Vec::new();
            for worker in workers {
                let done: anyhow::Result<Vec<_>> = worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                columns.extend(done?);
            }
            anyhow::Ok(columns)
        })?;
        columns.sort_by_key(|(index, _)| *index);
        Ok(columns.into_iter().map(|(_, column)| column).collect())
    }

    fn guest(&self, kernel: &Kernel, variant: Variant) -> anyhow::Result<Column> {
        let title = match variant {
            Variant::Plain => kernel.series.clone(),
            other => format!("{} {}", kernel.series, other.name()),
        };
        let modules = modules::pack(&kernel.modules)?;
        let mut manifest = self.manifest(modules.order, kernel, variant);
        variant.apply(&mut manifest);

        let mut told = cpio::Archive::default();
        told.file(manifest::PATH, 0o644, &serde_json::to_vec(&manifest)?)?;
        let name = title.replace(' ', "-");
        let initrd = self.scratch.join(format!("initrd-{name}"));
        let archives = [self.base.as_slice(), &modules.archive, &told.finish()?].concat();
        fs::write(&initrd, archives).context("writing the initramfs")?;

        let log = self.logs.join(format!("{name}.log"));
        eprintln!("booting {} ({title})", kernel.release);
        let machine = Machine {
            accel: self.args.accel,
            memory_mib: MEMORY_MIB,
            kernel: kernel.image.clone(),
            initrd: initrd.clone(),
            command_line: format!(
                "console=ttyS0 rdinit=/init panic=-1 loglevel=5 {QUICKER}{}",
                variant.kernel_parameters()
            ),
            namespace: None,
            devices: Vec::new(),
        };
        let running = self.qemu.boot(&machine, &log)?;
        let mut outcome = Outcome::follow(&running, &manifest, &kernel.release, |line| {
            if self.args.verbose || line.starts_with("VMTEST") {
                eprintln!("[{title}] {line}");
            }
        });
        drop(running);
        // As large as all tests together, and of no use any more.
        fs::remove_file(&initrd).context("removing the initramfs")?;
        if self.args.tests.is_empty() && self.args.filter.is_none() {
            outcome.fail_without_functions();
        }
        self.explain(&title, &outcome, &log);
        Ok(Column { title, outcome })
    }

    fn manifest(&self, modules: Vec<PathBuf>, kernel: &Kernel, variant: Variant) -> Manifest {
        let environment = [
            ("HOME", "/root"),
            ("METADATA_PROXY_BIN", AGENT),
            ("PATH", "/usr/sbin:/usr/bin"),
            ("RUST_BACKTRACE", "1"),
            // One more than there are processors: most tests wait for something most of the time.
            ("RUST_TEST_THREADS", "3"),
            ("TMPDIR", "/tmp"),
        ];
        Manifest {
            modules,
            cgroups: Cgroups::Unified,
            bpffs: true,
            sysctls: BTreeMap::new(),
            environment: environment
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            tests: self.to_run(kernel, variant),
        }
    }

    /// What runs on this kernel under this condition.
    fn to_run(&self, kernel: &Kernel, variant: Variant) -> Vec<Test> {
        let of = |role: Role| self.tests.iter().filter(move |test| test.role == role);
        if variant == Variant::Capabilities {
            let mut tests = Vec::new();
            for capability in &CAPABILITIES {
                tests.extend(of(Role::Privileges).map(|program| Test {
                    name: format!("without-cap-{}", capability.name),
                    without_capabilities: vec![capability.number],
                    ..self.test(program)
                }));
            }
            return tests;
        }
        let rest = if kernel.has_namespace_cookies() {
            Role::Suite
        } else {
            Role::OldKernel
        };
        [Role::Given, Role::Guest, rest]
            .into_iter()
            .flat_map(of)
            .filter_map(|program| {
                let mut test = self.test(program);
                if program.role == Role::Suite && !self.args.whole && self.args.filter.is_none() {
                    let modules = variant.bears_on(&program.name)?;
                    test.arguments
                        .extend(modules.iter().map(|module| format!("{module}::")));
                }
                Some(test)
            })
            .collect()
    }

    fn test(&self, program: &TestProgram) -> Test {
        Test {
            name: program.name.clone(),
            program: program_path(&program.name).into(),
            arguments: self.arguments(program),
            timeout_seconds: self.args.timeout,
            without_capabilities: Vec::new(),
            without_kernel_types: program.is_without_kernel_types(),
        }
    }

    /// libtest's arguments. What is for guests only is ignored elsewhere.
    fn arguments(&self, test: &TestProgram) -> Vec<String> {
        let ignored = (test.role != Role::Given).then(|| "--include-ignored".to_owned());
        ignored
            .into_iter()
            .chain(self.args.filter.clone())
            .collect()
    }

    /// Shows the console of a guest that failed, unless it was shown already.
    fn explain(&self, title: &str, outcome: &Outcome, log: &Path) {
        if outcome.passed() {
            return;
        }
        if !self.args.verbose {
            let console = fs::read_to_string(log).unwrap_or_else(|error| error.to_string());
            eprintln!(
                "---- console of {title} ({}) ----\n{console}----",
                log.display()
            );
        }
        for test in outcome.tests.iter().filter(|test| !test.passed) {
            eprintln!(
                "[{title}] {} failed: {}",
                test.name,
                test.functions.failed.join(" ")
            );
        }
        if let Some(why) = &outcome.failure {
            eprintln!("[{title}] {why}");
        }
    }
}

fn program_path(name: &str) -> String {
    format!("/tests/deps/{name}")
}

/// The test programs asked for, or those of the workspace.
fn programs(named: &[PathBuf]) -> anyhow::Result<Vec<TestProgram>> {
    if named.is_empty() {
        return suite::tests();
    }
    named
        .iter()
        .map(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.with_context(|| format!("{} has no name", path.display()))?;
            Ok(TestProgram {
                name: name.to_owned(),
                path: path.clone(),
                role: Role::Given,
            })
        })
        .collect()
}

/// What is the same for all guests: PID 1, the agent beside the tests as cargo lays them, and all
/// they call.
fn base_archive(agent: &Path, tests: &[TestProgram], scratch: &Path) -> anyhow::Result<Vec<u8>> {
    let mut payload = Payload::new(&suite::init()?)?;
    payload.program(AGENT, &payload::stripped(agent, scratch)?)?;
    for test in tests {
        let small = payload::stripped(&test.path, scratch)?;
        payload.program(&program_path(&test.name), &small)?;
    }
    payload.finish()
}
