//! Shows what is being measured and how long all of it will take.

use std::{
    cell::Cell,
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(200);
const TEMPLATE: &str = "{elapsed_precise} [{wide_bar}] {percent:>3} %, about {prefix} left: {msg}";

/// A bar that counts expected seconds.
pub(crate) struct Progress {
    bar: ProgressBar,
    total: u64,
    done: Cell<u64>,
    start: Instant,
}

impl Progress {
    /// Starts a bar for work that is expected to take so long.
    pub(crate) fn start(seconds: u64) -> Self {
        let bar = ProgressBar::new(seconds);
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        let progress = Self {
            bar,
            total: seconds,
            done: Cell::new(0),
            start: Instant::now(),
        };
        progress.show("");
        progress
    }

    /// Says what is done next, and how many seconds that takes, about.
    pub(crate) fn step(&self, what: &str, seconds: u64) {
        if stderr().is_terminal() {
            self.show(what);
        } else {
            let (elapsed, total) = (self.start.elapsed().as_secs(), self.total);
            eprintln!("{elapsed:>4} s of about {total} s: {what}");
        }
        self.done.set((self.done.get() + seconds).min(self.total));
    }

    fn show(&self, what: &str) {
        let done = self.done.get();
        self.bar.set_position(done);
        self.bar.set_prefix(format!("{} s", self.total - done));
        self.bar.set_message(what.to_owned());
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
