//! Which kernel modules a guest needs, and the order in which they can be inserted.
//!
//! Packages carry no `modules.dep`: what a module depends on is read out of the module itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::cpio::Archive;

/// What the namespace tests use and Debian's kernels have as modules. Nothing loads modules on
/// demand in a guest, so whatever a rule of iptables names has to be here.
const NEEDED: [&str; 6] = ["veth", "bridge", "tun", "dummy", "sch_ingress", "cls_bpf"];
/// The rest of what the tests may use; a kernel may lack some of it, since names come and go.
const WANTED: [&str; 30] = [
    "crc32c_generic",
    "nf_conntrack",
    "nf_nat",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "nft_ct",
    "nft_counter",
    "nft_nat",
    "nft_redir",
    "nft_reject",
    "nft_reject_inet",
    "xt_REDIRECT",
    "xt_MASQUERADE",
    "xt_nat",
    "xt_mark",
    "xt_connmark",
    "xt_conntrack",
    "xt_state",
    "xt_tcpudp",
    "xt_multiport",
    "xt_comment",
    "xt_addrtype",
    "xt_CT",
    "nf_conntrack_netlink",
    "ip_tables",
    "iptable_nat",
    "iptable_mangle",
    "ip6_tables",
    "sch_netem",
];

/// The modules of one kernel, ready for its initramfs.
pub(super) struct Modules {
    /// Paths in the initramfs, in the order of insertion.
    pub(super) order: Vec<PathBuf>,
    /// The archive that has them.
    pub(super) archive: Vec<u8>,
}

/// Packs the modules below `folder`, which has `kernel/` and `modules.builtin`.
pub(super) fn pack(folder: &Path) -> anyhow::Result<Modules> {
    let mut packing = Packing {
        files: files_below(&folder.join("kernel"))?,
        built_in: built_in(folder)?,
        seen: BTreeSet::new(),
        order: Vec::new(),
        archive: Archive::default(),
    };
    for name in WANTED.iter().chain(&NEEDED) {
        let found = packing.add(name)?;
        ensure!(
            found || !NEEDED.contains(name),
            "{} has no module {name}, and it is not built in",
            folder.display()
        );
    }
    Ok(Modules {
        order: packing.order,
        archive: packing.archive.finish()?,
    })
}

struct Packing {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    seen: BTreeSet<String>,
    order: Vec<PathBuf>,
    archive: Archive,
}

impl Packing {
    /// Adds a module after all it depends on; says whether this kernel has it at all.
    fn add(&mut self, name: &str) -> anyhow::Result<bool> {
        if self.built_in.contains(name) || self.seen.contains(name) {
            return Ok(true);
        }
        let Some(file) = self.files.get(name).cloned() else {
            return Ok(false);
        };
        self.seen.insert(name.to_owned());
        let content = content(&file)?;
        for dependency in dependencies(&content) {
            let found = self.add(&dependency)?;
            ensure!(
                found,
                "{name} depends on {dependency}, which its kernel lacks"
            );
        }
        let path = format!("/usr/lib/modules/{name}.ko");
        self.archive.file(&path, 0o644, &content)?;
        self.order.push(PathBuf::from(path));
        Ok(true)
    }
}

/// Every module file by the name the kernel knows it by.
fn files_below(folder: &Path) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let listing =
            fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?;
        for entry in listing {
            let path = entry
                .with_context(|| format!("listing {}", folder.display()))?
                .path();
            if path.is_dir() {
                folders.push(path);
            } else if let Some(name) = module_name(&path) {
                found.insert(name, path);
            }
        }
    }
    Ok(found)
}

fn built_in(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    let path = folder.join("modules.builtin");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text
        .lines()
        .filter_map(|line| module_name(Path::new(line)))
        .collect())
}

/// `kernel/net/nf-nat.ko.xz` is the module `nf_nat`.
fn module_name(path: &Path) -> Option<String> {
    let (name, _) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn content(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension == "ko") {
        return fs::read(file).with_context(|| format!("reading {}", file.display()));
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(file)
        .output()
        .context("starting xz (package xz-utils)")?;
    ensure!(
        output.status.success(),
        "{} cannot be unpacked: {}",
        file.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// The names after `depends=` in the section `.modinfo`, which is a list of C strings.
fn dependencies(module: &[u8]) -> Vec<String> {
    module
        .split(|byte| *byte == 0)
        .find_map(|text| text.strip_prefix(b"depends="))
        .and_then(|names| std::str::from_utf8(names).ok())
        .map(|names| {
            names
                .split(',')
                .filter(|name| !name.is_empty())
                .map(|name| name.replace('-', "_"))
        })
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with modules that depend on each other as `depends` says.
    fn kernel(depends: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("kernel")).expect("a folder");
        fs::write(
            folder.path().join("modules.builtin"),
            "kernel/drivers/net/tun.ko\n",
        )
        .expect("a file");
        for (name, dependencies) in depends {
            let content = format!("\x7fELF\0license=GPL\0depends={dependencies}\0name={name}\0");
            let path = folder.path().join(format!("kernel/{name}.ko"));
            fs::write(path, content).expect("a file");
        }
        folder
    }

    #[test]
    fn a_module_comes_after_what_it_depends_on_and_only_once() {
        let folder = kernel(&[
            ("veth", ""),
            ("bridge", "stp,llc"),
            ("stp", "llc"),
            ("llc", ""),
            ("dummy", ""),
            ("sch_ingress", ""),
            ("cls_bpf", ""),
            ("xt-mark", "tun"),
        ]);
        let modules = pack(folder.path()).expect("a whole kernel");
        let names: Vec<_> = modules
            .order
            .iter()
            .filter_map(|path| path.file_stem()?.to_str())
            .collect();
        assert_eq!(
            names,
            [
                "xt_mark",
                "veth",
                "llc",
                "stp",
                "bridge",
                "dummy",
                "sch_ingress",
                "cls_bpf"
            ]
        );
    }

    #[test]
    fn a_kernel_without_a_needed_module_is_refused() {
        let folder = kernel(&[("veth", "")]);
        let error = pack(folder.path()).err().expect("bridge is missing");
        assert!(error.to_string().contains("no module bridge"), "{error}");
    }
}
