//! Documents that tests generate: what they say is what was seen.

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result, bail};

/// Set to write documents anew instead of comparing them.
pub const UPDATE_VARIABLE: &str = "UPDATE_DOCS";

/// Whether documents are to be written anew.
#[must_use]
pub fn is_updating() -> bool {
    env::var_os(UPDATE_VARIABLE).is_some_and(|value| value == "1")
}

/// Compares a document with the committed one of that name in `docs/`, or writes it anew.
///
/// # Errors
/// They differ, and it is not to be written.
pub fn keep_current(name: &str, text: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name);
    if is_updating() {
        return fs::write(&path, text).with_context(|| format!("cannot write docs/{name}"));
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    if committed == text {
        return Ok(());
    }
    let first = committed
        .lines()
        .zip(text.lines())
        .find(|(old, new)| old != new);
    let (old, new) = first.unwrap_or(("(its end)", "(its end)"));
    bail!(
        "docs/{name} is out of date: it says\n{old}\nand should say\n{new}\nRun the test again \
         with {UPDATE_VARIABLE}=1 to write it anew."
    )
}
