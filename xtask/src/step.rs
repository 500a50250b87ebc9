//! Long-running commands: quiet while all is well, timed, and explained when they fail.

use std::{
    fs::{self, File},
    io::{IsTerminal as _, Write as _, stderr},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::workspace::root;

/// How much of a failed command's output is shown.
const TAIL_LINES: usize = 40;

const TICK: Duration = Duration::from_millis(200);

/// Runs a command with its output in a log, the last line of it shown on a terminal meanwhile.
pub(crate) fn run_quietly(title: &str, command: &mut Command) -> Result<()> {
    let directory = root().join(".cache/log");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let name: String = title
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let log = directory.join(format!("{name}.log"));
    let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("cannot share the log")?)
        .stderr(file)
        .spawn()
        .with_context(|| cannot_start(command))?;
    let terminal = stderr().is_terminal();
    if !terminal {
        eprintln!("{title} ...");
    }
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for the command")? {
            break status;
        }
        if terminal {
            show_progress(title, start.elapsed(), &log);
        }
        thread::sleep(TICK);
    };
    if terminal {
        clear_line();
    }
    if status.success() {
        eprintln!("{title}: done in {}", seconds(start.elapsed()));
        return Ok(());
    }
    let text = fs::read(&log).unwrap_or_default();
    bail!(
        "{title} failed ({status}); the end of {}:\n{}",
        log.display(),
        tail(&text)
    );
}

/// Runs a command that shows its output itself.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a command that shows its output itself, and returns how it ended.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| cannot_start(command))
}

/// A duration for people.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", shown(command))
}

fn show_progress(title: &str, elapsed: Duration, log: &Path) {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let last = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    let line: String = format!("{title} ({}) {}", seconds(elapsed), last.trim())
        .chars()
        .take(78)
        .collect();
    clear_line();
    eprint!("{line}");
    let _ = stderr().flush();
}

fn clear_line() {
    eprint!("\r\x1b[2K");
}

fn tail(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
