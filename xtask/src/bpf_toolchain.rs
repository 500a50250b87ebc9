//! Finds the toolchain that compiles the kernel programs: a compiler that has `core` for BPF, or its
//! sources, and a `bpf-linker` whose LLVM reads what that compiler writes.
//!
//! Part of both `xtask` and the build script of `metadata-proxy`, so it uses only the standard
//! library. It must not install or change anything; that is `cargo xtask setup`.

use std::{
    env, fmt, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Names a `bpf-linker` to use without asking which LLVM it has.
pub(crate) const LINKER_VARIABLE: &str = "BPF_LINKER";

/// Where `cargo xtask setup` installs tools, below the workspace's root.
pub(crate) const TOOLS: &str = ".cache/tools";

/// Where Debian's `rustc-web` puts its compiler.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A compiler that can compile for BPF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compiler {
    /// Path of `rustc`.
    pub(crate) rustc: PathBuf,
    /// Major version of its LLVM.
    pub(crate) llvm: u32,
    source: Source,
}

/// Where `core` for BPF comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Compiled from `rust-src` by a rustup nightly.
    Sources,
    /// Prebuilt, from Debian's `libstd-rust-web-dev-bpf`.
    Prebuilt,
}

impl Compiler {
    /// Lists the compilers there are, the preferred one first.
    pub(crate) fn candidates(target: &str) -> Vec<Self> {
        let nightlies = nightly_toolchains().into_iter().map(|toolchain| {
            let sources = toolchain.join("lib/rustlib/src/rust/library/core");
            (toolchain.join("bin/rustc"), sources, Source::Sources)
        });
        let debian = (
            PathBuf::from(DEBIAN_RUSTC),
            Path::new("/usr/lib/rustlib").join(target).join("lib"),
            Source::Prebuilt,
        );
        nightlies
            .chain([debian])
            .filter(|(rustc, core, _)| rustc.exists() && core.exists())
            .filter_map(|(rustc, _, source)| {
                let llvm = llvm_of_compiler(&rustc)?;
                Some(Self {
                    rustc,
                    llvm,
                    source,
                })
            })
            .collect()
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = match self.source {
            Source::Sources => "core from rust-src",
            Source::Prebuilt => "core prebuilt",
        };
        write!(f, "{} (LLVM {}, {core})", self.rustc.display(), self.llvm)
    }
}

/// A compiler and a linker that fit together, for one BPF target.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
    /// Name of the BPF target it compiles for.
    pub(crate) target: &'static str,
}

impl Toolchain {
    /// Finds the toolchain for machines of the given endianness (`big` or `little`, as in
    /// `CARGO_CFG_TARGET_ENDIAN`); `workspace` is the workspace's root.
    pub(crate) fn find(workspace: &Path, endian: &str) -> Result<Self, Missing> {
        let target = target(endian);
        let compilers = Compiler::candidates(target);
        if compilers.is_empty() {
            return Err(Missing::Compiler { target });
        }
        let linkers = linkers(workspace);
        for compiler in &compilers {
            if let Some((linker, _)) = linkers.iter().find(|(_, llvm)| llvm.reads(compiler.llvm)) {
                let linker = linker.clone();
                return Ok(Self {
                    compiler: compiler.clone(),
                    linker,
                    target,
                });
            }
        }
        Err(Missing::Linker {
            compilers,
            refused: linkers.into_iter().map(|(path, _)| path).collect(),
        })
    }

    /// Path of a program that came with the compiler.
    pub(crate) fn beside_compiler(&self, program: &str) -> PathBuf {
        self.compiler.rustc.with_file_name(program)
    }

    /// Makes a cargo command of the given verb (`build`, `clippy`) for the kernel programs.
    ///
    /// `arch` is the architecture of the machines they will run on, as in `CARGO_CFG_TARGET_ARCH`.
    /// `workspace` is the root of what is built: its path is kept out of the object, which is the same
    /// wherever it is built.
    pub(crate) fn cargo(&self, verb: &str, arch: &str, workspace: &Path) -> Command {
        let cargo = match self.compiler.source {
            Source::Sources => self.beside_compiler("cargo"),
            Source::Prebuilt => env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from),
        };
        // rustup's cargo would start the clippy of its own toolchain.
        let mut command = match verb {
            "clippy" => Command::new(self.beside_compiler("cargo-clippy")),
            _ => Command::new(&cargo),
        };
        command
            .args([verb, "--target", self.target])
            .env("CARGO", &cargo);
        if self.compiler.source == Source::Sources {
            command.args(["-Z", "build-std=core"]);
        }
        // What an outer cargo, or a person, set for the host's compiler is wrong for this one.
        for (name, _) in env::vars_os() {
            let inherited = name.to_str().is_some_and(|name| {
                [
                    "CARGO_BUILD_",
                    "CARGO_PROFILE_",
                    "CARGO_TARGET_",
                    "CARGO_CFG_",
                    "RUSTC",
                    "RUSTFLAGS",
                ]
                .iter()
                .any(|prefix| name.starts_with(prefix))
            });
            if inherited {
                command.env_remove(name);
            }
        }
        let registry = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cargo")))
            .unwrap_or_else(|| "/".into());
        let flags = [
            format!("--remap-path-prefix={}=/cargo", registry.display()),
            // The last that fits holds.
            format!(
                "--remap-path-prefix={}=/metadata-proxy",
                workspace.display()
            ),
            format!("-Clinker={}", self.linker.display()),
            // Both for BTF: sk_storage maps need it, and aya reads the map definitions from it.
            "-Clink-arg=--btf".to_owned(),
            "-Cdebuginfo=2".to_owned(),
            format!("--cfg=bpf_target_arch=\"{arch}\""),
        ];
        command
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("RUSTC", &self.compiler.rustc)
            // aya-ebpf uses one unstable feature.
            .env("RUSTC_BOOTSTRAP", "1");
        command
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.compiler, self.linker.display())
    }
}

/// Why there is no toolchain.
#[derive(Debug)]
pub(crate) enum Missing {
    /// No compiler has `core` for the target, or its sources.
    Compiler {
        /// The BPF target.
        target: &'static str,
    },
    /// There are compilers, but no linker for any of them.
    Linker {
        /// The compilers.
        compilers: Vec<Compiler>,
        /// Linkers that are there, of an older LLVM than any compiler.
        refused: Vec<PathBuf>,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler { target } => write!(
                f,
                "no compiler for {target}: neither a rustup nightly with rust-src nor {DEBIAN_RUSTC} \
                 with libstd-rust-web-dev-bpf is there"
            ),
            Self::Linker { compilers, refused } => {
                write!(f, "no bpf-linker for ")?;
                for (index, compiler) in compilers.iter().enumerate() {
                    write!(f, "{}{compiler}", if index == 0 { "" } else { " or " })?;
                }
                for linker in refused {
                    write!(
                        f,
                        "; the LLVM of {} is older or not known",
                        linker.display()
                    )?;
                }
                Ok(())
            }
        }
    }
}

/// The BPF target of machines of the given endianness.
pub(crate) fn target(endian: &str) -> &'static str {
    if endian == "big" {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    }
}

/// A target directory of the kernel programs' own, below the host's: cargo would wait for itself in that.
///
/// Named after the workspace, since several checkouts may share one target directory.
pub(crate) fn target_dir(host: &Path, workspace: &Path) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    workspace.hash(&mut hasher);
    host.join(format!("bpf-{:016x}", hasher.finish()))
}

/// Which bitcode a linker reads.
enum Reads {
    /// The person who set the variable answers for it.
    Anything,
    /// That of this LLVM and of older ones.
    UpTo(u32),
    /// Linked statically: the file does not say.
    Unknown,
}

impl Reads {
    const fn reads(&self, llvm: u32) -> bool {
        match self {
            Self::Anything => true,
            Self::UpTo(own) => *own >= llvm,
            Self::Unknown => false,
        }
    }
}

fn linkers(workspace: &Path) -> Vec<(PathBuf, Reads)> {
    if let Some(linker) = env::var_os(LINKER_VARIABLE) {
        return vec![(linker.into(), Reads::Anything)];
    }
    let path = env::var_os("PATH").unwrap_or_default();
    [workspace.join(TOOLS).join("bin")]
        .into_iter()
        .chain(env::split_paths(&path))
        .map(|directory| directory.join("bpf-linker"))
        .filter(|linker| linker.is_file())
        .map(|linker| {
            let reads = llvm_of_linker(&linker).map_or(Reads::Unknown, Reads::UpTo);
            (linker, reads)
        })
        .collect()
}

/// Directories of rustup's nightly toolchains.
fn nightly_toolchains() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| {
        let home = env::var_os("HOME")?;
        Some(Path::new(&home).join(".rustup"))
    });
    let Some(home) = home else { return Vec::new() };
    let Ok(entries) = fs::read_dir(home.join("toolchains")) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|n| n.starts_with("nightly-"))
        })
        .collect();
    // Dated ones sort before the moving one, which is what `+nightly` means.
    found.sort();
    found.reverse();
    found
}

/// Major version of a compiler's LLVM, from the line `LLVM version: 22.1.8` of `rustc -vV`.
pub(crate) fn llvm_of_compiler(rustc: &Path) -> Option<u32> {
    let output = Command::new(rustc)
        .arg("-vV")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// Major version of the LLVM a linker is linked to, from the library's name inside the file.
fn llvm_of_linker(linker: &Path) -> Option<u32> {
    const LIBRARY: &[u8] = b"libLLVM";
    let bytes = fs::read(linker).ok()?;
    bytes
        .windows(LIBRARY.len())
        .enumerate()
        .filter(|(_, name)| *name == LIBRARY)
        .find_map(|(start, _)| {
            // `libLLVM.so.22.1` or `libLLVM-19.so.1`.
            let name: Vec<u8> = bytes[start + LIBRARY.len()..]
                .iter()
                .copied()
                .take_while(|b| *b != 0)
                .take(16)
                .collect();
            let name = String::from_utf8(name).ok()?;
            let version = name
                .strip_prefix(".so.")
                .or_else(|| name.strip_prefix('-'))?;
            version.split('.').next()?.parse().ok()
        })
}
