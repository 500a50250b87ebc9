//! Archives in cpio's "newc" format, of which the kernel unpacks any number, one after the other,
//! as its initramfs (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path};

use anyhow::{Context as _, ensure};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive being written. Folders on the way to an entry are made as needed.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    paths: BTreeSet<String>,
}

impl Archive {
    pub(super) fn directory(&mut self, path: &str) -> anyhow::Result<()> {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> anyhow::Result<()> {
        self.entry(path, REGULAR | mode, (0, 0), content)
    }

    /// Copies what is at `source` on this machine, links followed.
    pub(super) fn copy(&mut self, path: &str, source: &Path) -> anyhow::Result<()> {
        let content = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
        let metadata =
            fs::metadata(source).with_context(|| format!("reading {}", source.display()))?;
        self.file(path, metadata.permissions().mode() & 0o777, &content)
    }

    pub(super) fn symlink(&mut self, path: &str, target: &str) -> anyhow::Result<()> {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    pub(super) fn character_device(
        &mut self,
        path: &str,
        major: u32,
        minor: u32,
    ) -> anyhow::Result<()> {
        self.entry(path, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    pub(super) fn contains(&self, path: &str) -> bool {
        self.paths.contains(path.trim_start_matches('/'))
    }

    pub(super) fn finish(mut self) -> anyhow::Result<Vec<u8>> {
        self.write("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> anyhow::Result<()> {
        let name = path
            .strip_prefix('/')
            .with_context(|| format!("{path} is not absolute"))?;
        ensure!(
            Path::new(name)
                .components()
                .all(|part| matches!(part, Component::Normal(_))),
            "{path} is no plain path"
        );
        if let Some((parent, _)) = path.rsplit_once('/')
            && !parent.is_empty()
            && !self.contains(parent)
        {
            self.directory(parent)?;
        }
        // Later entries replace earlier ones in the kernel; a folder met twice is the same folder.
        if !self.paths.insert(name.to_owned()) && mode & DIRECTORY != 0 {
            return Ok(());
        }
        self.write(name, mode, device, content)
    }

    fn write(
        &mut self,
        name: &str,
        mode: u32,
        (major, minor): (u32, u32),
        content: &[u8],
    ) -> anyhow::Result<()> {
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large"))?;
        let name_size = u32::try_from(name.len() + 1).context("a path is too long")?;
        let inode = u32::try_from(self.paths.len()).context("too many entries")?;
        self.bytes.extend_from_slice(b"070701");
        let links = 1;
        for field in [
            inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0,
        ] {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.file("/a/b", 0o755, b"12345").expect("a plain path");
        let bytes = archive.finish().expect("small");
        let text = String::from_utf8(bytes).expect("ASCII and zeros");
        let directory = "070701000000010000\
                         41ed000000000000000000000001000000000000000000000000000000000000000000000000\
                         0000000200000000a\0";
        assert!(text.starts_with(directory), "{text}");
        let (_, after) = text.split_once("a/b\0").expect("the file's entry");
        assert!(
            after
                .trim_start_matches('\0')
                .starts_with("12345\0\0\x00070701"),
            "{text}"
        );
        assert!(text.contains("TRAILER!!!\0"));
        assert_eq!(text.len() % 4, 0);
    }

    #[test]
    fn a_path_that_leaves_the_archive_is_refused() {
        for path in ["a", "/../a", "/a/../b"] {
            assert!(Archive::default().directory(path).is_err(), "{path}");
        }
    }
}
