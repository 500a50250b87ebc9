//! The agent under test, answering by itself (`embedded` upstream) for the guests' tenants.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::json;

use super::background::Background;
use super::scenario::Guest;
use crate::vm::command;

const READY: Duration = Duration::from_secs(20);

/// The agent's process. It undoes what it did to the namespaces when it is ended.
pub(super) struct Agent {
    _process: Background,
}

impl Agent {
    /// Starts `program` on the namespaces in `namespaces`, for the tenants of `guests`.
    pub(super) fn start(
        program: &Path,
        guests: &[Guest],
        namespaces: &Path,
        scratch: &Path,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let mut tenants = Vec::new();
        for guest in guests {
            let file = user_data_file(scratch, guest);
            fs::write(&file, guest.user_data()).context("writing user data")?;
            tenants.push(guest.tenant(&file.display().to_string()));
        }
        // What is JSON is also YAML.
        let instances = scratch.join("instances.yaml");
        fs::write(&instances, json!({ "tenants": tenants }).to_string())
            .context("writing the instances")?;
        let socket = scratch.join("admin.sock");
        let config = scratch.join("metadata-proxy.toml");
        let text = format!(
            "[steering]\nconnect_hooks = false\nbpffs_dir = {:?}\n\
             [discovery]\nnetns_dir = {:?}\n\
             [upstream]\nkind = \"embedded\"\n[upstream.embedded]\nfile = {:?}\n\
             [admin]\nsocket = {:?}\nregister_socket = {:?}\n",
            scratch.join("bpf").display().to_string(),
            namespaces.display().to_string(),
            instances.display().to_string(),
            socket.display().to_string(),
            scratch.join("register.sock").display().to_string(),
        );
        fs::write(&config, text).context("writing the agent's configuration")?;
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(&config);
        let mut process = Background::start("metadata-proxy", &mut command, log)?;
        if let Err(error) = process.wait_until("ready", READY, || socket.exists()) {
            let told = fs::read_to_string(log).unwrap_or_default();
            bail!("{error:#}\n{told}");
        }
        Ok(Self { _process: process })
    }
}

pub(super) fn user_data_file(scratch: &Path, guest: &Guest) -> PathBuf {
    scratch.join(format!("{}.user-data", guest.name))
}

/// The sum that the guest has to come to as well.
pub(super) fn user_data_sum(scratch: &Path, guest: &Guest) -> anyhow::Result<String> {
    let text = command::output(Command::new("sha256sum").arg(user_data_file(scratch, guest)))?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
