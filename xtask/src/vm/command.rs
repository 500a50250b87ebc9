//! Programs of this machine, run to their end; what they said is part of the error.

use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

/// Runs `command`; what it prints goes to our standard error, where progress belongs.
pub(super) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("starting {}", name(command)))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Runs `command` and returns what it printed.
pub(super) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", name(command)))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .with_context(|| format!("reading what {} printed", name(command)))
}

/// Runs a build: its progress and complaints are for the user, its output for us.
pub(super) fn output_of_build(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting {}", name(command)))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}",
        output.status
    );
    String::from_utf8(output.stdout)
        .with_context(|| format!("reading what {} printed", name(command)))
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// Runs `command` silently; what it said is told only when it fails.
pub(super) fn quiet(command: &mut Command) -> anyhow::Result<()> {
    output(command).map(drop)
}
