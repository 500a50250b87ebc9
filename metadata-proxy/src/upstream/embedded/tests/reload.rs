//! A reload serves what the file says now, or what it said when it was last sound.

use std::fs;

use super::{TestFile, body, one_instance};
use crate::upstream::embedded::EmbeddedError;

const NAME: &str = "/latest/meta-data/hostname";

#[test]
fn a_reload_tells_whether_something_changed() {
    let file = TestFile::yaml(&one_instance(&[]));
    let embedded = file.open();
    assert!(!embedded.reload().unwrap());
    fs::write(&file.path, one_instance(&["hostname: other"])).unwrap();
    assert!(embedded.reload().unwrap());
    assert!(!embedded.reload().unwrap());
    assert_eq!(body(&embedded, NAME), "other");
}

#[test]
fn a_broken_edit_leaves_what_was_served() {
    let file = TestFile::yaml(&one_instance(&["hostname: sound"]));
    let embedded = file.open();
    for broken in ["tenants: [", "", "tenants: []\nmore: 1\n"] {
        fs::write(&file.path, broken).unwrap();
        assert!(
            matches!(embedded.reload(), Err(EmbeddedError::Invalid { .. })),
            "{broken}"
        );
        assert!(embedded.reload().is_err(), "it is still broken");
        assert_eq!(body(&embedded, NAME), "sound");
        assert_eq!(embedded.instances(), 1);
        let told = embedded.last_error().unwrap();
        assert!(told.contains("instances.yaml:"), "{told}");
    }
    fs::remove_file(&file.path).unwrap();
    assert!(matches!(
        embedded.reload(),
        Err(EmbeddedError::Unreadable { .. })
    ));
    assert_eq!(body(&embedded, NAME), "sound");

    fs::write(&file.path, one_instance(&["hostname: sound"])).unwrap();
    assert!(
        embedded.reload().unwrap(),
        "from broken to sound is a change"
    );
    assert_eq!(embedded.last_error(), None);
}

#[test]
fn a_change_of_a_file_it_names_is_a_change() {
    let file = TestFile::yaml(&one_instance(&["user_data_file: boot.sh"]));
    file.write_beside("boot.sh", "one");
    let embedded = file.open();
    file.write_beside("boot.sh", "two");
    assert!(embedded.reload().unwrap());
    assert_eq!(body(&embedded, "/latest/user-data"), "two");
    fs::remove_file(file.directory.path().join("boot.sh")).unwrap();
    assert!(embedded.reload().is_err());
    assert_eq!(body(&embedded, "/latest/user-data"), "two");
}

#[test]
fn a_file_may_declare_nobody() {
    let file = TestFile::yaml("tenants: []\n");
    assert_eq!(file.open().instances(), 0);
}
