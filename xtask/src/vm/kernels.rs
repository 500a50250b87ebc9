//! Debian's kernels: the newest of each series, fetched and unpacked, never installed.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::apt::{Apt, Suite};

/// The small flavour for virtual machines: it has all that is tested, and boots fastest.
const FLAVOUR: &str = "-cloud-amd64";
/// Every series that the matrix names is in one of these.
const SUITES: [Suite; 5] = [
    Suite::Security("bullseye-security"),
    Suite::Security("bookworm-security"),
    Suite::Archive("bookworm-backports"),
    Suite::Security("trixie-security"),
    Suite::Archive("trixie-backports"),
];
/// The name of the series that is the highest of all.
const NEWEST: &str = "newest";

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// What was asked for: `6.1`, `newest`.
    pub(super) series: String,
    /// What `uname -r` says in it.
    pub(super) release: String,
    /// The image that QEMU loads.
    pub(super) image: PathBuf,
    /// The folder that has `kernel/` and `modules.builtin`.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// Whether `SO_NETNS_COOKIE` is there, without which the agent proves no tenant.
    pub(super) fn has_namespace_cookies(&self) -> bool {
        numbers(&self.release) >= vec![5, 14]
    }
}

/// The names of all kernel packages of the flavour, by what they hold.
struct Offered {
    /// The kernel, and up to 6.18 its modules.
    image: BTreeSet<String>,
    /// From 6.19 on the kernel alone.
    binary: BTreeSet<String>,
    /// Its modules.
    modules: BTreeSet<String>,
}

/// Finds and fetches the newest kernel of each of `series`.
pub(super) fn fetch(cache: &Path, series: &[String]) -> anyhow::Result<Vec<Kernel>> {
    let apt = Apt::open(&cache.join("apt-kernels"), &SUITES)?;
    let offered = Offered {
        image: apt.names("linux-image-")?,
        binary: apt.names("linux-binary-")?,
        modules: apt.names("linux-modules-")?,
    };
    series
        .iter()
        .map(|series| {
            let release = offered.newest(series).with_context(|| {
                format!(
                    "Debian has no bootable kernel of the series {series}; \
                     known are the likes of 5.10, 6.1, 6.12, 6.18, {NEWEST}"
                )
            })?;
            let root = cache.join("kernels").join(&release);
            if !root.exists() {
                apt.unpack(&offered.packages(&release), &root)?;
            }
            unpacked(series, release, &root)
        })
        .collect()
}

impl Offered {
    fn newest(&self, series: &str) -> Option<String> {
        self.image
            .iter()
            .filter_map(|name| name.strip_prefix("linux-image-"))
            .filter(|release| release.ends_with(FLAVOUR))
            .filter(|release| release.starts_with(|first: char| first.is_ascii_digit()))
            .filter(|release| series == NEWEST || is_of_series(release, series))
            .filter(|release| self.is_bootable(release))
            .min_by_key(|release| Reverse(numbers(release)))
            .map(str::to_owned)
    }

    /// A split kernel whose modules are in no suite cannot be used: 6.19 to 7.1 are like that.
    fn is_bootable(&self, release: &str) -> bool {
        !self.is_split(release) || self.modules.contains(&format!("linux-modules-{release}"))
    }

    fn is_split(&self, release: &str) -> bool {
        self.binary.contains(&format!("linux-binary-{release}"))
    }

    fn packages(&self, release: &str) -> Vec<String> {
        if self.is_split(release) {
            // modules.builtin is in the base package.
            ["binary", "modules", "base"]
                .map(|part| format!("linux-{part}-{release}"))
                .to_vec()
        } else {
            vec![format!("linux-image-{release}")]
        }
    }
}

/// The meta packages have only two numbers and no kernel.
fn is_of_series(release: &str, series: &str) -> bool {
    release
        .strip_prefix(series)
        .is_some_and(|rest| rest.starts_with('.'))
}

/// Debian's kernel names in the order of their versions: every number in them, from left to right.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn unpacked(series: &str, release: String, root: &Path) -> anyhow::Result<Kernel> {
    let first_of = |candidates: [String; 2]| {
        let found = candidates
            .iter()
            .map(|path| root.join(path))
            .find(|path| path.exists());
        found.with_context(|| {
            format!(
                "{} has neither {} nor {}: remove the folder and try again",
                root.display(),
                candidates[0],
                candidates[1]
            )
        })
    };
    let modules = first_of([
        format!("usr/lib/modules/{release}"),
        format!("lib/modules/{release}"),
    ])?;
    let image = first_of([
        format!("boot/vmlinuz-{release}"),
        format!("usr/lib/modules/{release}/vmlinuz"),
    ])?;
    // A look inside: an unpacked folder without modules would fail much later.
    fs::metadata(modules.join("kernel"))
        .with_context(|| format!("the modules of {release} in {}", modules.display()))?;
    Ok(Kernel {
        series: series.to_owned(),
        release,
        image,
        modules,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(names: &[&str]) -> Offered {
        let with = |prefix: &str| {
            names
                .iter()
                .filter(|name| name.starts_with(prefix))
                .map(ToString::to_string)
                .collect()
        };
        Offered {
            image: with("linux-image-"),
            binary: with("linux-binary-"),
            modules: with("linux-modules-"),
        }
    }

    #[test]
    fn the_newest_of_a_series_goes_by_numbers_not_by_letters() {
        let offered = offered(&[
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-dbg",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.1.0-57-amd64",
            "linux-image-6.1.0-0.deb11.52-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
            "linux-image-6.12.99+deb13-cloud-amd64",
        ]);
        assert_eq!(
            offered.newest("6.1").as_deref(),
            Some("6.1.0-56-cloud-amd64")
        );
        assert_eq!(
            offered.newest("6.12").as_deref(),
            Some("6.12.117+deb13-cloud-amd64")
        );
        assert_eq!(
            offered.newest("newest").as_deref(),
            Some("6.12.117+deb13-cloud-amd64")
        );
        assert_eq!(offered.newest("5.15"), None);
    }

    #[test]
    fn a_split_kernel_without_its_modules_is_passed_over() {
        let offered = offered(&[
            "linux-image-cloud-amd64",
            "linux-image-6.18.15+deb13-cloud-amd64",
            "linux-image-7.2.12+deb13-cloud-amd64",
            "linux-binary-7.2.12+deb13-cloud-amd64",
            "linux-modules-7.2.12+deb13-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
        ]);
        let newest = offered.newest("newest").expect("7.2 is whole");
        assert_eq!(newest, "7.2.12+deb13-cloud-amd64");
        assert_eq!(offered.packages(&newest).len(), 3);
        assert_eq!(
            offered.packages("6.18.15+deb13-cloud-amd64"),
            ["linux-image-6.18.15+deb13-cloud-amd64"]
        );
    }
}
