//! Log lines on their way to standard error: gathered, and written by a thread of their own.
//!
//! Whoever serves guests neither pays a system call for each line nor waits for whoever reads them.
//! What warns is written at once, by who says it, after all that was said before: it may be the last
//! that this process says. Only what is taken is written, so that nobody ever waits for who reads.
//! Lines nobody reads are dropped and counted, like haproxy's.

use std::{
    io::{self, Write},
    mem,
    os::fd::AsFd as _,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{Level, Metadata, warn};
use tracing_subscriber::fmt::MakeWriter;

/// How long lines are gathered.
const GATHER: Duration = Duration::from_millis(20);
/// They are written sooner when there are so many bytes of them.
const ENOUGH: usize = 32 * 1024;
/// Bytes of lines that wait while nobody reads; more are dropped.
const MOST: usize = 1024 * 1024;

/// Bytes that can be written without waiting once something can be: what a pipe takes whole
/// (`PIPE_BUF`, pipe(7)).
const PIECE: usize = 4096;
/// How long who ends waits for who reads.
const FAREWELL: Duration = Duration::from_secs(1);

/// Whether something can be written without waiting, now or within some time.
type IsTaken = fn(Duration) -> bool;

/// Whether standard error takes something.
pub(super) fn stderr_takes(within: Duration) -> bool {
    let stderr = io::stderr();
    let mut polled = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    let within = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    // An error and a hang-up are no reason to wait: the write says so at once.
    poll(&mut polled, within).is_ok_and(|ready| ready > 0)
}

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
    is_taken: IsTaken,
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
    pub(super) fn start(output: W, is_taken: IsTaken) -> io::Result<Self> {
        let lines = Self(Arc::new(Shared {
            pending: Mutex::default(),
            changed: Condvar::new(),
            output: Mutex::new(output),
            is_taken,
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

    /// Writes what is pending, if it is taken within a second.
    pub(super) fn flush(&self) {
        let until = Instant::now() + FAREWELL;
        while !self.0.flush() && (self.0.is_taken)(until.saturating_duration_since(Instant::now()))
        {
        }
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

    /// Writes what is taken at once, and says whether that was everything.
    fn flush(&self) -> bool {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = mem::take(&mut self.pending().bytes);
        let mut rest = &*bytes;
        while !rest.is_empty() {
            if !(self.is_taken)(Duration::ZERO) {
                self.pending().bytes.splice(..0, rest.iter().copied());
                return false;
            }
            let piece;
            (piece, rest) = rest.split_at(rest.len().min(PIECE));
            // There is nowhere to complain that the log cannot be written.
            let _ = output.write_all(piece).and_then(|()| output.flush());
        }
        true
    }

    fn write_for_ever(&self) {
        loop {
            let pending = self
                .changed
                .wait_while(self.pending(), |pending| pending.bytes.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            let gathering = |pending: &mut Pending| pending.bytes.len() < ENOUGH;
            drop(self.changed.wait_timeout_while(pending, GATHER, gathering));
            if !self.flush() {
                // Nobody is kept out meanwhile.
                (self.is_taken)(Duration::from_secs(1));
                continue;
            }
            let lost = mem::take(&mut self.pending().lost);
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
    use std::sync::mpsc::{Receiver, Sender, channel};

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
            Lines::start(Output(sender, Arc::clone(&gate)), |_| true).unwrap(),
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
    fn who_warns_does_not_wait_for_who_reads() {
        let (sender, written) = channel();
        let is_taken = |within| {
            thread::sleep(within);
            false
        };
        let lines = Lines::start(Output(sender, Arc::default()), is_taken).unwrap();
        line(&lines, true).write_all(b"warning\n").unwrap();
        let mut output = Vec::new();
        while output.is_empty() {
            // The log's own thread may be trying at this moment.
            output.clone_from(&lines.0.pending().bytes);
        }
        assert_eq!(output, b"warning\n", "it is there still");
        assert_eq!(written.try_iter().count(), 0);
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
