//! The password is posted once and kept, as with nova.

use http::Method;

use super::{ROUTER, TestFile, get, one_instance, request, seen};
use crate::upstream::embedded::Embedded;

const PLACE: &str = "/openstack/latest/password";

fn post(embedded: &Embedded, password: impl Into<Vec<u8>>) -> (u16, String) {
    let mut request = request(ROUTER, "10.0.0.5", Method::POST, PLACE);
    request.headers.clear();
    request.body = password.into().into();
    let seen = seen(embedded.answer(&request));
    (seen.status.as_u16(), seen.body)
}

#[test]
fn a_password_is_stored_once() {
    let embedded = TestFile::yaml(&one_instance(&[])).open();
    assert_eq!(post(&embedded, ""), (200, String::new()));
    assert_eq!(get(&embedded, PLACE).body, "");
    assert_eq!(post(&embedded, "sécret"), (200, String::new()));
    let kept = get(&embedded, PLACE);
    assert_eq!(
        (&*kept.body, &*kept.kind),
        ("sécret", "text/html; charset=UTF-8")
    );
    let conflict =
        "409 Conflict\n\nThere was a conflict when trying to complete your request.\n\n   ";
    assert_eq!(post(&embedded, "other"), (409, conflict.to_owned()));
    assert_eq!(
        get(&embedded, "/openstack/2013-04-04/password").body,
        "sécret"
    );
}

#[test]
fn what_nova_would_not_store_is_refused() {
    let embedded = TestFile::yaml(&one_instance(&[])).open();
    let too_large = "400 Bad Request\n\nRequest is too large.\n\n   ";
    assert_eq!(post(&embedded, [b'a'; 1021]), (400, too_large.to_owned()));
    assert_eq!(post(&embedded, [0xff]).0, 400);
    assert_eq!(get(&embedded, PLACE).body, "");
    assert_eq!(post(&embedded, [b'a'; 1020]).0, 200);
}

#[test]
fn a_password_is_got_and_posted_and_nothing_else() {
    let embedded = TestFile::yaml(&one_instance(&[])).open();
    for method in [Method::PUT, Method::DELETE, Method::HEAD] {
        let answer = seen(embedded.answer(&request(ROUTER, "10.0.0.5", method, PLACE)));
        assert_eq!(answer.status.as_u16(), 400);
    }
}

#[test]
fn a_reload_keeps_the_passwords_of_instances_that_stay() {
    let keys = ["uuid: b65cee2f-8c69-4aeb-be2f-f79742548fc2"];
    let file = TestFile::yaml(&one_instance(&keys));
    let embedded = file.open();
    post(&embedded, "secret");

    file.write_beside(
        "instances.yaml",
        one_instance(&keys).replace("web-1", "web-2"),
    );
    assert!(embedded.reload().unwrap());
    assert_eq!(get(&embedded, PLACE).body, "secret");

    let other = ["uuid: 1f0e7a52-6a8f-4a63-8a0c-1d6c0b9e4f77"];
    file.write_beside("instances.yaml", one_instance(&other));
    assert!(embedded.reload().unwrap());
    assert_eq!(
        get(&embedded, PLACE).body,
        "",
        "another instance has the address now"
    );

    file.write_beside("instances.yaml", one_instance(&keys));
    assert!(embedded.reload().unwrap());
    assert_eq!(get(&embedded, PLACE).body, "", "what has gone is forgotten");
}
