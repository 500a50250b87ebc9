//! The files that were read: the file of instances and those it names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;

/// What the files held when they were read.
#[derive(Debug, Default)]
pub(super) struct Sources {
    files: BTreeMap<PathBuf, Option<Bytes>>,
}

impl Sources {
    /// Reads a file, or takes what was read of it before.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<Bytes> {
        if let Some(Some(content)) = self.files.get(path) {
            return Ok(content.clone());
        }
        let read = read(path);
        self.files
            .insert(path.to_owned(), read.as_ref().ok().cloned());
        read
    }

    /// Whether the files hold now what they held then.
    pub(super) fn are_unchanged(&self) -> bool {
        self.files
            .iter()
            .all(|(path, content)| read(path).ok() == *content)
    }

    /// Whether the same files with the same contents were read.
    pub(super) fn equal(&self, other: &Self) -> bool {
        self.files == other.files
    }

    /// The directories that hold the files.
    pub(super) fn directories(&self) -> BTreeSet<PathBuf> {
        self.files
            .keys()
            .map(|path| directory_of(path).to_owned())
            .collect()
    }
}

/// The directory that holds `path`.
pub(super) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn read(path: &Path) -> io::Result<Bytes> {
    // A pipe or a device would keep us waiting, and has no contents to compare.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    let mut content = Vec::new();
    fs::File::open(path)?.read_to_end(&mut content)?;
    Ok(content.into())
}
