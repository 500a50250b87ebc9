//! Changes are noticed, however they are made.

use std::{fs, os::unix::fs::symlink, sync::Arc, time::Duration};

use super::{TestFile, body, one_instance};
use crate::upstream::embedded::Embedded;

const NAME: &str = "/latest/meta-data/hostname";

/// Runs `test` while the file is watched.
fn while_watched<T>(embedded: Embedded, test: impl AsyncFnOnce(&Embedded) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let embedded = Arc::new(embedded);
        let watching = tokio::spawn(embedded.clone().watch());
        let result = test(&embedded).await;
        watching.abort();
        result
    })
}

/// Polls until `done`, for less time than it takes to look without having been told.
async fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(6);
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn instance_named(hostname: &str) -> String {
    one_instance(&[&format!("hostname: {hostname}")])
}

#[test]
fn a_file_written_in_place_is_noticed() {
    let file = TestFile::yaml(&instance_named("one"));
    while_watched(file.open(), async |embedded| {
        for name in ["two", "three"] {
            fs::write(&file.path, instance_named(name)).unwrap();
            until(name, || body(embedded, NAME) == name).await;
        }
    });
}

#[test]
fn a_file_renamed_over_the_old_one_is_noticed_again_and_again() {
    let file = TestFile::yaml(&instance_named("one"));
    while_watched(file.open(), async |embedded| {
        for name in ["two", "three", "four"] {
            file.write_beside(".instances.yaml.swp", instance_named(name));
            fs::rename(
                file.directory.path().join(".instances.yaml.swp"),
                &file.path,
            )
            .unwrap();
            until(name, || body(embedded, NAME) == name).await;
        }
    });
}

#[test]
fn a_broken_edit_is_told_and_its_repair_too() {
    let file = TestFile::yaml(&instance_named("one"));
    while_watched(file.open(), async |embedded| {
        fs::write(&file.path, "tenants: {").unwrap();
        until("an error", || embedded.last_error().is_some()).await;
        assert_eq!(body(embedded, NAME), "one");
        fs::write(&file.path, instance_named("two")).unwrap();
        until("two", || body(embedded, NAME) == "two").await;
        assert_eq!(embedded.last_error(), None);
    });
}

#[test]
fn a_symbolic_link_turned_to_another_directory_is_noticed() {
    // As configuration is mounted into containers.
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for name in ["one", "two"] {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("instances.yaml"), instance_named(name)).unwrap();
    }
    symlink("one", root.join("data")).unwrap();
    symlink("data/instances.yaml", root.join("instances.yaml")).unwrap();
    let embedded = Embedded::open(&root.join("instances.yaml")).unwrap();
    while_watched(embedded, async |embedded| {
        for name in ["two", "one", "two"] {
            symlink(name, root.join("data.new")).unwrap();
            fs::rename(root.join("data.new"), root.join("data")).unwrap();
            until(name, || body(embedded, NAME) == name).await;
        }
    });
}

#[test]
fn a_named_file_in_another_directory_is_watched_too() {
    let other = tempfile::tempdir().unwrap();
    let boot = other.path().join("boot.sh");
    fs::write(&boot, "one").unwrap();
    let file = TestFile::yaml(&one_instance(&[&format!(
        "user_data_file: {}",
        boot.display()
    )]));
    while_watched(file.open(), async |embedded| {
        for script in ["two", "three", "four"] {
            fs::write(&boot, script).unwrap();
            until(script, || body(embedded, "/latest/user-data") == script).await;
        }
    });
}

#[test]
fn a_directory_that_is_replaced_is_watched_again() {
    let above = tempfile::tempdir().unwrap();
    let directory = above.path().join("etc");
    let path = directory.join("instances.yaml");
    fs::create_dir(&directory).unwrap();
    fs::write(&path, instance_named("one")).unwrap();
    while_watched(Embedded::open(&path).unwrap(), async |embedded| {
        fs::rename(&directory, above.path().join("old")).unwrap();
        until("an error", || embedded.last_error().is_some()).await;
        assert_eq!(body(embedded, NAME), "one");
        fs::create_dir(&directory).unwrap();
        fs::write(&path, instance_named("two")).unwrap();
        until("two", || body(embedded, NAME) == "two").await;
    });
}
