//! Debian packages from suites that this machine does not use, through a private configuration of
//! apt: sources, lists and cache of its own.
//!
//! Nothing is installed, and neither apt's nor dpkg's state on this machine changes: packages are
//! downloaded, their signatures checked against the machine's own Debian keyring, and unpacked
//! into a folder. It works without root.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::command;

/// The keys of Debian 12's own package, which are trusted for every suite named here.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Lists older than this are fetched again, so that superseded packages are not asked for.
const LISTS_STAY_FRESH: Duration = Duration::from_hours(24);

/// A suite of the Debian archive.
#[derive(Clone, Copy)]
pub(super) enum Suite {
    /// In the main archive: a release or its backports.
    Archive(&'static str),
    /// In the security archive.
    Security(&'static str),
}

/// One private configuration of apt.
pub(super) struct Apt {
    config: PathBuf,
}

impl Apt {
    /// Sets the configuration up below `dir` and fetches the lists when they are not fresh.
    pub(super) fn open(dir: &Path, suites: &[Suite]) -> anyhow::Result<Self> {
        for folder in [
            "lists/partial",
            "cache/archives/partial",
            "etc/preferences.d",
        ] {
            fs::create_dir_all(dir.join(folder))
                .with_context(|| format!("creating {}", dir.join(folder).display()))?;
        }
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing: without it no package can be verified; \
             run `apt-get install debian-archive-keyring`"
        );
        let mut sources = String::new();
        for suite in suites {
            let (archive, suite) = match suite {
                Suite::Archive(suite) => ("debian", suite),
                Suite::Security(suite) => ("debian-security", suite),
            };
            writeln!(
                sources,
                "deb [signed-by={KEYRING}] http://deb.debian.org/{archive} {suite} main"
            )?;
        }
        let config = dir.join("apt.conf");
        let settings = [
            format!("Dir {};", quoted(dir)),
            format!("Dir::State {};", quoted(dir)),
            "Dir::State::lists \"lists\";".to_owned(),
            "Dir::State::status \"/var/lib/dpkg/status\";".to_owned(),
            "Dir::Cache \"cache\";".to_owned(),
            "Dir::Etc \"etc\";".to_owned(),
            "Dir::Etc::sourcelist \"sources.list\";".to_owned(),
            "Dir::Etc::sourceparts \"/dev/null\";".to_owned(),
            "Dir::Etc::parts \"/dev/null\";".to_owned(),
            "APT::Architecture \"amd64\";".to_owned(),
            // The cache may lie below a folder that apt's own user cannot enter.
            "APT::Sandbox::User \"root\";".to_owned(),
            "Acquire::Languages \"none\";".to_owned(),
            "Acquire::Retries \"3\";".to_owned(),
        ];
        fs::write(&config, settings.join("\n") + "\n").context("writing apt.conf")?;

        let apt = Self { config };
        let stamp = dir.join("updated");
        let sources_list = dir.join("etc/sources.list");
        let unchanged = fs::read_to_string(&sources_list).is_ok_and(|text| text == sources);
        if !(unchanged && is_fresh(&stamp)) {
            fs::write(&sources_list, &sources).context("writing sources.list")?;
            eprintln!("fetching package lists: {}", dir.display());
            command::run(
                apt.command("apt-get")
                    .args(["update", "--error-on=any", "-q"]),
            )
            .context("fetching the package lists")?;
            fs::write(&stamp, "").context("noting that the lists are fresh")?;
        }
        Ok(apt)
    }

    /// Every package whose name begins with `prefix`.
    pub(super) fn names(&self, prefix: &str) -> anyhow::Result<BTreeSet<String>> {
        let output = command::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(output.lines().map(str::to_owned).collect())
    }

    /// The packages, each as `name=version`, that this machine lacks for `packages` to work.
    pub(super) fn missing(&self, packages: &[&str]) -> anyhow::Result<Vec<String>> {
        let simulation = command::output(
            self.command("apt-get")
                .args([
                    "install",
                    "--simulate",
                    "--no-install-recommends",
                    "--reinstall",
                ])
                .args(packages),
        )?;
        let found: Vec<String> = simulation
            .lines()
            .filter_map(|line| line.strip_prefix("Inst "))
            .filter_map(|rest| {
                let (name, rest) = rest.split_once(' ')?;
                // An installed package's present version stands in brackets before the new one.
                let version = rest.split_once('(')?.1.split(' ').next()?;
                Some(format!("{name}={version}"))
            })
            .collect();
        if found.is_empty() {
            bail!("apt found nothing to fetch for {packages:?}: {simulation}");
        }
        Ok(found)
    }

    /// Downloads `packages` and unpacks them into `target`, which appears complete or not at all.
    pub(super) fn unpack(&self, packages: &[String], target: &Path) -> anyhow::Result<()> {
        let parent = target
            .parent()
            .context("a folder to unpack into has a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        let scratch = tempfile::tempdir_in(parent).context("creating a folder for packages")?;
        eprintln!("fetching {}", packages.join(" "));
        command::run(
            self.command("apt-get")
                .args(["download", "-q"])
                .args(packages)
                .current_dir(scratch.path()),
        )
        .context("downloading packages")?;
        let root = scratch.path().join("root");
        for entry in fs::read_dir(scratch.path()).context("listing the downloaded packages")? {
            let path = entry.context("listing the downloaded packages")?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                command::run(Command::new("dpkg").arg("-x").arg(&path).arg(&root))?;
            }
        }
        if target.exists() {
            fs::remove_dir_all(target)
                .with_context(|| format!("removing the old {}", target.display()))?;
        }
        fs::rename(&root, target).with_context(|| format!("moving to {}", target.display()))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", &self.config)
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        command
    }
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

fn is_fresh(stamp: &Path) -> bool {
    fs::metadata(stamp)
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < LISTS_STAY_FRESH))
}
