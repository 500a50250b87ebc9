//! Neutron's configuration, from the files it is in.

use std::{fs::File, io::Read, path::PathBuf};

use metadata_proxy::neutron::haproxy_cfg::{Parser, ProxyConfig};

use crate::report::Failure;

/// Longest file that is read; Neutron writes about 1.5 KiB.
const LIMIT: u64 = 64 * 1024;

/// Reads the files as one configuration.
pub(crate) fn load(paths: &[PathBuf]) -> Result<ProxyConfig, Failure> {
    let mut parser = Parser::default();
    let mut text = String::new();
    for path in paths {
        text.clear();
        File::open(path)
            .and_then(|file| file.take(LIMIT).read_to_string(&mut text))
            .map_err(|error| {
                Failure::new(format_args!(
                    "cannot read configuration {}: {error}",
                    path.display()
                ))
            })?;
        parser
            .read(&text)
            .map_err(|error| Failure::new(format_args!("{}: {error}", path.display())))?;
    }
    parser.finish().map_err(|error| {
        let last = paths.last().map(|path| path.display());
        match last {
            Some(path) => Failure::new(format_args!("{path}: {error}")),
            None => Failure::new(error),
        }
    })
}
