//! The file by which Neutron finds the process again.
//!
//! Like haproxy, nobody here ever removes it: Neutron does so itself, may start the next process
//! before this one has ended, and would lose that one if this one removed its file.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::report::Failure;

/// Writes a pid, in one step for whoever reads.
pub(crate) fn write(path: &Path, pid: u32) -> Result<(), Failure> {
    let mut unready = path.as_os_str().to_owned();
    unready.push(format!(".{pid}"));
    let unready = PathBuf::from(unready);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&unready)
        .and_then(|mut file| file.write_all(format!("{pid}\n").as_bytes()))
        .and_then(|()| fs::rename(&unready, path))
        .map_err(|error| {
            let _ = fs::remove_file(&unready);
            Failure::new(format_args!(
                "cannot write pidfile {}: {error}",
                path.display()
            ))
        })
}
