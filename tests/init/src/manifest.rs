//! What the guest is to do, written by the host into the initramfs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the manifest lies in the initramfs.
pub const PATH: &str = "/vmtest.json";

/// Everything PID 1 is told.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Modules to insert, in this order; paths inside the initramfs.
    pub modules: Vec<PathBuf>,
    /// How the cgroup hierarchies are mounted.
    pub cgroups: Cgroups,
    /// Whether bpffs is mounted at `/sys/fs/bpf` before the tests run.
    pub bpffs: bool,
    /// Files below `/proc/sys` and what is written to them.
    pub sysctls: BTreeMap<PathBuf, String>,
    /// Environment of every test process; nothing else is in it.
    pub environment: BTreeMap<String, String>,
    /// What is run, in this order.
    pub tests: Vec<Test>,
}

/// One program to run; it passed when it exits with 0 in time.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// Its name in result lines: no white space.
    pub name: String,
    /// Path inside the initramfs.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub arguments: Vec<String>,
    /// It is killed, and has failed, when it runs for longer.
    pub timeout_seconds: u64,
    /// Capabilities taken out of its bounding set, by number (`linux/capability.h`).
    pub without_capabilities: Vec<u32>,
    /// Whether the kernel's own types (BTF) cannot be read while it runs.
    pub without_kernel_types: bool,
}

/// How the cgroup hierarchies are mounted.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cgroups {
    /// Version 2 alone, at `/sys/fs/cgroup`.
    Unified,
    /// Version 1 controllers below `/sys/fs/cgroup`, version 2 at `/sys/fs/cgroup/unified`.
    Hybrid,
}
