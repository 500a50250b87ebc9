//! Our configuration file.

use std::{cell::RefCell, path::PathBuf};

use metadata_proxy::config::{Config, ConfigSources};
use tempfile::TempDir;

/// Any file is taken or refused with an explanation. What is taken can be shown, and what is shown
/// is taken again and means the same.
pub fn configuration(data: &[u8]) {
    thread_local! {
        static DIRECTORY: RefCell<TempDir> =
            RefCell::new(tempfile::tempdir_in("/dev/shm").expect("no directory in memory"));
    }
    let path = DIRECTORY.with_borrow(|directory| directory.path().join("metadata-proxy.toml"));
    match load(&path, data) {
        Ok(config) => {
            let shown = toml::to_string(&config).unwrap_or_else(|error| panic!("{error}"));
            let again = load(&path, shown.as_bytes())
                .unwrap_or_else(|error| panic!("what is shown is refused: {error}\n{shown}"));
            assert_eq!(again, config, "what is shown means something else\n{shown}");
        }
        Err(explanation) => assert!(!explanation.trim().is_empty()),
    }
}

fn load(path: &PathBuf, data: &[u8]) -> Result<Config, String> {
    std::fs::write(path, data).expect("no room for the file");
    Config::load(&ConfigSources::named(path))
        .map(|loaded| loaded.config)
        .map_err(|errors| errors.to_string())
}
