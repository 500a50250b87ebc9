//! How a drill is to be run.

use std::{fs::File, io::Read as _, time::Duration};

use anyhow::{Context as _, Result, ensure};

/// What a drill is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Where its randomness starts.
    pub(crate) seed: u64,
    /// How long it is to go on, if somebody said so.
    length: Option<Duration>,
    /// Whether it is the form for continuous integration.
    pub(crate) is_short: bool,
}

impl Plan {
    /// A plan; without `seed`, one that is drawn.
    pub(crate) fn new(seed: Option<u64>, minutes: Option<f64>, is_short: bool) -> Result<Self> {
        let seed = seed.map_or_else(drawn, Ok)?;
        let length = minutes
            .map(|minutes| {
                ensure!(minutes > 0.0, "a drill cannot go on for {minutes} minutes");
                Duration::try_from_secs_f64(minutes * 60.0).context("too many minutes")
            })
            .transpose()?;
        Ok(Self {
            seed,
            length,
            is_short,
        })
    }

    /// What was asked for, or the drill's own `short` or `full` form.
    pub(crate) fn choose<T>(&self, short: T, full: T) -> T {
        if self.is_short { short } else { full }
    }

    /// How long to go on: as was said, or the drill's own length.
    pub(crate) fn length(&self, short: Duration, full: Duration) -> Duration {
        self.length.unwrap_or_else(|| self.choose(short, full))
    }
}

fn drawn() -> Result<u64> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot draw a seed")?;
    Ok(u32::from_ne_bytes(bytes).into())
}
