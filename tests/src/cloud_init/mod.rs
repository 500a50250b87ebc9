//! Real cloud-init in a guest: what its first boot finds out, and what it makes of it.
//!
//! It runs in namespaces of its own (mounts, processes, host name) over a copy of this machine's
//! root file system. Nothing it does reaches the machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{node::Node, process::Running, subnet::Guest};

/// The boot as a script, the first process of the guest.
const BOOT: &str = include_str!("boot.sh");

/// How long it may take: cloud-init itself gives up on a metadata service before.
const BOOTED_WITHIN: Duration = Duration::from_mins(1);

/// What Debian's configuration gets on top: only what the tests look at, and no network of this
/// machine's making.
const CONFIGURATION: &str = "\
network: {config: disabled}
cloud_init_modules: [write-files, set_hostname, users-groups, ssh]
ssh_deletekeys: false
ssh_genkeytypes: [ed25519]
system_info: {default_user: {name: guest, groups: [], sudo: null}}
";

/// Where user data writes what it was told, to be seen in [`Booted::told`].
pub const TOLD: &str = "/srv/told";

/// How a guest is set to find its data source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Not at all: it finds out that it is a guest of Nova.
    OpenStack,
    /// The same, and it asks the metadata service over IPv6.
    OpenStackV6,
    /// It is told to use the EC2 source, on whatever cloud it is.
    Ec2,
}

impl Source {
    fn configuration(self) -> &'static str {
        match self {
            Self::OpenStack => "datasource: {OpenStack: {max_wait: 20, timeout: 5}}\n",
            Self::OpenStackV6 => {
                "datasource: {OpenStack: {max_wait: 20, timeout: 5, \
                 metadata_urls: ['http://[fe80::a9fe:a9fe%eth0]']}}\n"
            }
            Self::Ec2 => {
                "datasource_list: [Ec2]\n\
                 datasource: {Ec2: {strict_id: false, max_wait: 20, timeout: 5}}\n"
            }
        }
    }
}

/// A guest after its first boot.
#[derive(Clone, Debug)]
pub struct Booted {
    /// All that cloud-init knows, as `cloud-init query --all` has it.
    pub instance_data: Value,
    /// The host name it gave itself.
    pub hostname: String,
    /// Keys that may log in as the default user, one a line.
    pub authorized_keys: String,
    /// The user data it got.
    pub user_data: String,
    /// What its user data made it write to [`TOLD`].
    pub told: String,
}

impl Booted {
    /// A word that cloud-init found out, in its standardised form: `instance_id`, `cloud_id`.
    #[must_use]
    pub fn word(&self, name: &str) -> &str {
        self.instance_data["v1"][name].as_str().unwrap_or_default()
    }
}

/// Boots a guest for the first time.
///
/// # Errors
/// cloud-init is not there, or found no data source; the message has its log.
pub fn boot(node: &Node, guest: &Guest, source: Source) -> Result<Booted> {
    let directory = node
        .directory()
        .join(format!("{}-{source:?}", guest.netns.name()));
    let (copy, seen) = (directory.join("copy"), directory.join("seen"));
    for new in [&directory, &copy, &seen] {
        fs::create_dir(new).with_context(|| format!("cannot create {}", new.display()))?;
    }
    let configuration = directory.join("guest.cfg");
    fs::write(
        &configuration,
        format!("{CONFIGURATION}{}", source.configuration()),
    )
    .context("cannot write cloud-init's configuration")?;

    let mut command = guest.netns.command("unshare")?;
    isolate(&mut command);
    command.arg(&copy).arg(&seen).arg(&configuration);
    let mut running = Running::start("cloud-init", &mut command, &directory.join("console"))?;
    let status = running.wait(BOOTED_WITHIN);
    let log = || {
        let log = |name| read(&seen, name).unwrap_or_default();
        format!(
            "{}\n--- finding out:\n{}\n--- setting up:\n{}",
            running.log(),
            log("ds-identify.log"),
            log("cloud-init.log")
        )
    };
    let status = status.with_context(log)?;
    if !status.success() {
        bail!(
            "the guest did not boot ({status}); `cargo xtask setup` installs cloud-init\n{}",
            log()
        );
    }
    let booted = Booted::read(&seen).with_context(log)?;
    if booted.word("cloud_id").is_empty() || booted.word("cloud_id") == "none" {
        bail!("cloud-init found no data source\n{}", log());
    }
    Ok(booted)
}

impl Booted {
    fn read(seen: &Path) -> Result<Self> {
        let instance_data = read(seen, "instance-data-sensitive.json")?;
        let hostname = read(seen, "kernel-hostname")?;
        Ok(Self {
            instance_data: serde_json::from_str(&instance_data)
                .context("cloud-init's instance data is not JSON")?,
            hostname: hostname.trim_end().to_owned(),
            authorized_keys: read(seen, "authorized_keys")?,
            user_data: read(seen, "user-data.txt")?,
            told: read(seen, "told")?,
        })
    }
}

/// Completes a command that runs [`BOOT`] with namespaces and an environment of its own.
fn isolate(command: &mut Command) {
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("product_name", "OpenStack Nova")
        .args(["--mount", "--uts", "--ipc", "--pid", "--fork"])
        // Whoever kills what was started here ends the guest.
        .arg("--kill-child")
        .args(["sh", "-c", BOOT, "boot"]);
}

fn read(directory: &Path, name: &str) -> Result<String> {
    let path: PathBuf = directory.join(name);
    fs::read_to_string(&path).with_context(|| format!("the guest has no {name}"))
}
