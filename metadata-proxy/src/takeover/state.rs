//! What a process leaves for the next one when both do not run at once: a file in memory that the
//! service manager keeps. It holds the messages of a hand-over, a line each.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, Write as _},
    os::fd::OwnedFd,
};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Handed, Message, MessageError, offer, take};
use crate::admission::rate::WindowRecord;

/// Windows in one line.
const WINDOWS_AT_ONCE: usize = 100;
/// As much is read: windows for every address that the limiter remembers, and every tenant.
const READ_AT_MOST: u64 = 256 << 20;

/// What was left.
#[derive(Debug, Default)]
pub struct State {
    /// Namespaces with declarations that no look at the node would find, without listeners.
    pub tenants: Vec<Handed>,
    /// The limiter's windows.
    pub windows: Vec<WindowRecord>,
}

impl State {
    /// Writes it. What needs a descriptor is left out: stand-ins register anew by themselves.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self) -> io::Result<OwnedFd> {
        let mut file = File::from(memfd_create(c"metadata-proxy", MFdFlags::MFD_CLOEXEC)?);
        let mut line = |message: &Message| -> io::Result<()> {
            let mut bytes = message.encode().map_err(io::Error::other)?;
            bytes.push(b'\n');
            file.write_all(&bytes)
        };
        line(&Message::hello())?;
        for tenant in &self.tenants {
            let message = offer::without_descriptors(tenant);
            if message.is_suspended || !message.declarations.is_empty() {
                line(&Message::Tenant(message))?;
            }
        }
        for windows in self.windows.chunks(WINDOWS_AT_ONCE) {
            let windows = windows.to_vec();
            line(&Message::Windows { windows })?;
        }
        Ok(file.into())
    }

    /// Reads it.
    ///
    /// # Errors
    /// It was written by a program of another protocol, or makes no sense.
    pub fn read(file: OwnedFd) -> io::Result<Self> {
        let mut file = File::from(file);
        file.rewind()?;
        let mut lines = BufReader::new(file.take(READ_AT_MOST)).split(b'\n');
        let wrong = |error: MessageError| io::Error::new(io::ErrorKind::InvalidData, error);
        let first = lines.next().transpose()?.unwrap_or_default();
        Message::decode_first(&first).map_err(wrong)?;
        let mut state = Self::default();
        for line in lines {
            match Message::decode(&line?).map_err(wrong)? {
                Message::Tenant(message) => {
                    let tenant = take::decoded(message, Vec::new()).map_err(io::Error::other)?;
                    state.tenants.push(tenant);
                }
                Message::Windows { windows } => state.windows.extend(windows),
                _ => return Err(wrong(MessageError::OutOfTurn)),
            }
        }
        Ok(state)
    }
}
