//! Where events go: standard error, as text or JSON, one line each.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use super::lines::{Lines, stderr_takes};
use crate::{
    access::line::{self, Style},
    config::{LogConfig, LogFormat},
};

/// Writes what is left when it is dropped.
pub(super) struct Logging(Lines);

impl Drop for Logging {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// Starts logging for the whole process.
///
/// # Errors
/// When the level is no valid directive, or logging was started before.
pub(super) fn start(config: &LogConfig) -> anyhow::Result<Logging> {
    let filter = EnvFilter::try_new(&config.level).context("log.level")?;
    let is_terminal = std::io::stderr().is_terminal();
    // journald adds the time itself, and says so in the environment (systemd.exec(5)).
    let is_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let writer =
        Lines::start(io::stderr(), stderr_takes).context("cannot start the log's thread")?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer.clone())
        .with_ansi(is_terminal);
    let started = match config.format {
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
        LogFormat::Text if is_journal => lines.without_time().try_init(),
        LogFormat::Text => lines.try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))?;
    let style = match config.format {
        LogFormat::Json => Style::Json,
        LogFormat::Text if is_journal => Style::TextWithoutTime,
        LogFormat::Text => Style::Text,
    };
    let access = writer.clone();
    line::start(style, move |line| access.add(line));
    Ok(Logging(writer))
}
