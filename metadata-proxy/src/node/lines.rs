//! Log lines on their way to standard error: gathered, and written by a thread of their own.
//!
//! Whoever serves guests neither pays a system call for each line nor waits for whoever reads them.
//! What warns is written at once, by who says it, after all that was said before: it may be the last
//! that this process says. Lines nobody reads are dropped and counted, like haproxy's.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing::{Level, Metadata, warn};
use tracing_subscriber::fmt::MakeWriter;

/// How long lines are gathered.
const GATHER: Duration = Duration::from_millis(20);
/// They are written sooner when there are so many bytes of them.
const ENOUGH: usize = 32 * 1024;
/// Bytes of lines that wait while nobody reads; more are dropped.
const MOST: usize = 1024 * 1024;

/// Gathers lines; written out at the latest when the last of its handles is dropped.
pub(super) struct Lines<W: Write = io::Stderr>(Arc<Shared<W>>);

impl<W: Write> Clone for Lines<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<W> {
    pending: Mutex<Pending>,
    changed: Condvar,
    /// Held while writing, so that lines stay in their order.
    output: Mutex<W>,
}

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    lost: u64,
}

impl<W: Write + Send + 'static> Lines<W> {
    /// Starts the thread that writes to `output`.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(super) fn start(output: W) -> io::Result<Self> {
        let lines = Self(Arc::new(Shared {
            pending: Mutex::default(),
            changed: Condvar::new(),
            output: Mutex::new(output),
        }));
        let writer = lines.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.0.write_for_ever())?;
        Ok(lines)
    }

    /// Takes one line.
    pub(super) fn add(&self, line: &[u8]) {
        self.0.add(line);
    }

    /// Writes what is pending.
    pub(super) fn flush(&self) {
        self.0.flush();
    }
}

impl<W: Write> Shared<W> {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8]) {
        let mut pending = self.pending();
        if pending.bytes.len() + line.len() > MOST {
            pending.lost += 1;
            return;
        }
        let was = pending.bytes.len();
        pending.bytes.extend_from_slice(line);
        let wakes = was == 0 || (was < ENOUGH && pending.bytes.len() >= ENOUGH);
        drop(pending);
        if wakes {
            self.changed.notify_one();
        }
    }

    /// Returns how many lines were lost since the last time.
    fn flush(&self) -> u64 {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = mem::take(&mut *self.pending());
        // There is nowhere to complain that the log cannot be written.
        let _ = output
            .write_all(&pending.bytes)
            .and_then(|()| output.flush());
        pending.lost
    }

    fn write_for_ever(&self) {
        loop {
            let pending = self
                .changed
                .wait_while(self.pending(), |pending| pending.bytes.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            let gathering = |pending: &mut Pending| pending.bytes.len() < ENOUGH;
            drop(self.changed.wait_timeout_while(pending, GATHER, gathering));
            let lost = self.flush();
            if lost > 0 {
                warn!(
                    lost,
                    "log lines were lost: standard error is not read fast enough"
                );
            }
        }
    }
}

impl<'a, W: Write + Send + 'static> MakeWriter<'a> for Lines<W> {
    type Writer = Line<'a, W>;

    fn make_writer(&'a self) -> Self::Writer {
        Line {
            shared: &self.0,
            is_urgent: true,
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        Line {
            shared: &self.0,
            is_urgent: *metadata.level() <= Level::WARN,
        }
    }
}

/// Takes one line.
pub(super) struct Line<'a, W: Write> {
    shared: &'a Shared<W>,
    is_urgent: bool,
}

impl<W: Write> Write for Line<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.shared.add(line);
        if self.is_urgent {
            self.shared.flush();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{Receiver, Sender, channel},
        time::Instant,
    };

    use super::*;

    /// Sends on what is written, and blocks when told to.
    struct Output(Sender<Vec<u8>>, Arc<Mutex<()>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.1.lock();
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines() -> (Lines<Output>, Receiver<Vec<u8>>, Arc<Mutex<()>>) {
        let (sender, receiver) = channel();
        let gate = Arc::default();
        (
            Lines::start(Output(sender, Arc::clone(&gate))).unwrap(),
            receiver,
            gate,
        )
    }

    fn line(lines: &Lines<Output>, is_urgent: bool) -> Line<'_, Output> {
        Line {
            shared: &lines.0,
            is_urgent,
        }
    }

    #[test]
    fn lines_are_written_together_soon() {
        let (lines, written, _) = lines();
        let start = Instant::now();
        for _ in 0..3 {
            line(&lines, false).write_all(b"line\n").unwrap();
        }
        let mut all = Vec::new();
        while all.len() < 15 {
            all.extend(written.recv_timeout(Duration::from_secs(10)).unwrap());
        }
        assert_eq!(all, b"line\nline\nline\n");
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn what_warns_is_written_before_the_call_returns_and_after_the_rest() {
        let (lines, written, _) = lines();
        line(&lines, false).write_all(b"one\n").unwrap();
        line(&lines, true).write_all(b"two\n").unwrap();
        let all: Vec<u8> = written.try_iter().flatten().collect();
        assert_eq!(all, b"one\ntwo\n");
    }

    #[test]
    fn a_reader_that_stands_still_stops_nobody() {
        let (lines, written, gate) = lines();
        let closed = gate.lock().unwrap();
        let long = vec![b'x'; 1024];
        for _ in 0..3 * MOST / long.len() {
            line(&lines, false).write_all(&long).unwrap();
        }
        assert!(lines.0.pending().lost > 0);
        drop(closed);
        lines.flush();
        assert!(written.try_iter().map(|bytes| bytes.len()).sum::<usize>() <= 2 * MOST);
    }
}
