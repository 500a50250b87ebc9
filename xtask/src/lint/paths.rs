//! No file that is committed names a path of the machine it was written on.

use std::{env, fs, path::Path};

use anyhow::{Result, bail};

use crate::workspace;

/// Folders that only some machines have. Written in halves, or this file would name them. Beside
/// them: the home of whoever runs this, and the folder of this workspace.
const FOLDERS: &[&str] = &[
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/Us", "ers/"),
    concat!("/tmp", "/w/"),
];

/// Fails with every place that names one.
pub(super) fn check() -> Result<()> {
    let root = workspace::root();
    let mut folders: Vec<String> = FOLDERS.iter().map(ToString::to_string).collect();
    let own = [env::home_dir(), Some(root.clone())].into_iter().flatten();
    folders.extend(
        own.map(|path| format!("{}/", path.display()))
            .filter(|path| path.len() > 2),
    );
    let mut places = Vec::new();
    for name in &super::tracked()? {
        // One that was deleted but is still listed, or that is not text, names nothing.
        let Ok(text) = fs::read_to_string(root.join(name)) else {
            continue;
        };
        places.extend(named_in(Path::new(name), &text, &folders));
    }
    if !places.is_empty() {
        bail!(
            "these name a machine's own folders:\n  {}",
            places.join("\n  ")
        );
    }
    Ok(())
}

fn named_in(name: &Path, text: &str, folders: &[String]) -> Vec<String> {
    let names_one = |line: &str| {
        folders.iter().any(|folder| {
            line.match_indices(folder.as_str()).any(|(start, _)| {
                // `a/home/b` is a path below `a`, not a machine's.
                !line[..start].ends_with(|c: char| c.is_alphanumeric() || "_-.".contains(c))
            })
        })
    };
    text.lines()
        .enumerate()
        .filter(|(_, line)| names_one(line))
        .map(|(index, line)| format!("{}:{}: {}", name.display(), index + 1, line.trim()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_found_and_its_namesake_further_down_is_not() {
        let folders = ["/mine/".to_owned()];
        let named = |text| named_in(Path::new("f"), text, &folders);
        assert_eq!(named("a\nsee /mine/x\n"), ["f:2: see /mine/x"]);
        assert_eq!(named("see src/mine/x\n"), [""; 0]);
    }
}
