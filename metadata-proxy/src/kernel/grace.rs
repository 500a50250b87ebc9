//! Short grace periods while a device is attached to or detached from.
//!
//! The kernel waits for one whenever the programs of a device change, and holds the lock meanwhile
//! under which all network devices of the node are configured (`tcx_entry_sync` in
//! `include/net/tcx.h`). Ordinary ones take a few ticks: for a thousand tenants the start takes a
//! thousand times that, and whoever plugs a device waits. With `/sys/kernel/rcu_expedited` they take
//! microseconds, at the price of an interrupt for each processor that is not idle.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
};

use tracing::{debug, warn};

use super::Probe;

/// The kernel's switch: zero, or anything else for all of the node.
const SWITCH: &str = "/sys/kernel/rcu_expedited";
/// What we write: any number but zero will do, and this one tells whose it is, as the protocol of our
/// routes does. What a process that was killed has left is so recognised by the next one.
const OURS: &[u8] = b"169\n";
const OFF: &[u8] = b"0\n";
/// Makes all of them ordinary, whatever the switch says; for nodes with realtime processes.
const NORMAL: &str = "/sys/kernel/rcu_normal";

/// The kernel's switch, if it is ours to use.
#[derive(Debug)]
pub struct GracePeriods(Option<File>);

/// While this lives, grace periods are short.
pub(super) struct Expedited<'a>(Option<&'a File>);

impl GracePeriods {
    /// Opens the switch, and turns it back if an earlier process was killed before it could.
    pub(super) fn open(is_wanted: bool) -> Self {
        if !is_wanted {
            return Self(None);
        }
        match Self::at(Path::new(SWITCH)) {
            Ok(switch) => switch,
            Err(error) => {
                debug!(%error, "{SWITCH} cannot be used: attaching to a device takes its time");
                Self(None)
            }
        }
    }

    /// Whether this process may make them short. Changes nothing.
    #[must_use]
    pub fn probe() -> Probe {
        let is_off = |path: &str| File::open(path).and_then(|file| is(&file, OFF));
        if !is_off(NORMAL).unwrap_or(true) {
            return Probe::No(format!("{NORMAL} is on"));
        }
        match open(Path::new(SWITCH)) {
            Ok(_) => Probe::Yes,
            Err(error) => Probe::No(format!("{SWITCH} cannot be written: {error}")),
        }
    }

    fn at(path: &Path) -> io::Result<Self> {
        let switch = open(path)?;
        turn_back(&switch)?;
        Ok(Self(Some(switch)))
    }

    /// Makes them short until what is returned is dropped; does nothing where they are already.
    pub(super) fn expedite(&self) -> Expedited<'_> {
        let is_off = |switch: &&File| is(switch, OFF).unwrap_or(false);
        let turned = |switch: &&File| switch.write_all_at(OURS, 0).is_ok();
        Expedited(self.0.as_ref().filter(is_off).filter(turned))
    }
}

impl Drop for Expedited<'_> {
    fn drop(&mut self) {
        if let Some(switch) = self.0
            && let Err(error) = turn_back(switch)
        {
            warn!(%error, "{SWITCH} stays on");
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Writes zero where our number is: whoever wrote another one meanwhile meant it.
fn turn_back(switch: &File) -> io::Result<()> {
    if is(switch, OURS)? {
        switch.write_all_at(OFF, 0)?;
    }
    Ok(())
}

fn is(switch: &File, number: &[u8]) -> io::Result<bool> {
    let mut text = [0; 16];
    let len = switch.read_at(&mut text, 0)?;
    Ok(text[..len].split_inclusive(|byte| *byte == b'\n').next() == Some(number))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A file in the switch's place. It keeps what was behind a shorter text: the first line counts.
    struct Switch(tempfile::NamedTempFile);

    impl Switch {
        fn with(number: &str) -> Self {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(&file, format!("{number}\n")).unwrap();
            Self(file)
        }

        fn open(&self) -> GracePeriods {
            GracePeriods::at(self.0.path()).unwrap()
        }

        fn number(&self) -> String {
            let text = fs::read_to_string(&self.0).unwrap();
            text.lines().next().unwrap().to_owned()
        }
    }

    #[test]
    fn what_was_off_is_on_meanwhile() {
        let switch = Switch::with("0");
        let grace_periods = switch.open();
        {
            let _short = grace_periods.expedite();
            assert_eq!(switch.number(), "169");
        }
        assert_eq!(switch.number(), "0");
    }

    #[test]
    fn what_somebody_else_turned_on_stays() {
        let switch = Switch::with("1");
        drop(switch.open().expedite());
        assert_eq!(switch.number(), "1");

        let switch = Switch::with("0");
        let grace_periods = switch.open();
        let short = grace_periods.expedite();
        fs::write(&switch.0, "1\n").unwrap();
        drop(short);
        assert_eq!(switch.number(), "1");
    }

    #[test]
    fn what_a_killed_process_left_is_turned_back() {
        let switch = Switch::with("169");
        switch.open();
        assert_eq!(switch.number(), "0");
    }
}
