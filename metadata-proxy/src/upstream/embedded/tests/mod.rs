//! What all tests of this upstream share.

mod declarations;
mod isolation;
mod passwords;
mod problems;
mod recorded;
mod reload;
mod watch;

use std::{fs, net::IpAddr, path::PathBuf};

use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use http_body::Body as _;
use metadata_proxy_common::TenantKind;
use tempfile::TempDir;
use uuid::Uuid;

use super::Embedded;
use crate::{
    identity::{Identity, Tenant},
    rewrite::Outgoing,
    upstream::{Answer, AnswerBody},
};

pub(super) const ROUTER: Tenant = Tenant {
    kind: TenantKind::Router,
    id: Uuid::from_u128(0x6c3f_1c9e_0d6b_4a57_9d0c_3f0f_6d0c_5a11),
};

/// A file in a directory of its own, which goes with it.
pub(super) struct TestFile {
    pub(super) directory: TempDir,
    pub(super) path: PathBuf,
}

impl TestFile {
    pub(super) fn named(name: &str, text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        Self { directory, path }
    }

    pub(super) fn yaml(text: &str) -> Self {
        Self::named("instances.yaml", text)
    }

    pub(super) fn write_beside(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.directory.path().join(name), content).unwrap();
    }

    pub(super) fn open(&self) -> Embedded {
        Embedded::open(&self.path).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The problems of the file as `line:column: message`.
    pub(super) fn problems(&self) -> Vec<String> {
        let error = Embedded::open(&self.path)
            .err()
            .expect("the file is broken")
            .to_string();
        let prefix = format!("{}:", self.path.display());
        error
            .lines()
            .map(|line| line.strip_prefix(&prefix).unwrap_or(line).to_owned())
            .collect()
    }
}

/// A file with one instance at 10.0.0.5 behind [`ROUTER`]; `more` are its other keys, a line each.
pub(super) fn one_instance(more: &[&str]) -> String {
    let mut text = format!(
        "tenants:\n  - router: {}\n    instances:\n      - addresses: [10.0.0.5]\n        name: web-1\n",
        ROUTER.id
    );
    for line in more {
        text.push_str("        ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

pub(super) fn request(tenant: Tenant, guest: &str, method: Method, target: &str) -> Outgoing {
    Outgoing {
        identity: Identity::unproved(tenant),
        guest: guest.parse::<IpAddr>().unwrap().into(),
        method,
        target: target.to_owned(),
        headers: vec![accept("*/*")],
        body: bytes::Bytes::new(),
    }
}

pub(super) fn accept(kinds: &'static str) -> (HeaderName, HeaderValue) {
    (header::ACCEPT, HeaderValue::from_static(kinds))
}

/// What a guest sees of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) status: StatusCode,
    pub(super) kind: String,
    pub(super) len: usize,
    pub(super) body: String,
}

pub(super) fn seen(answer: Answer) -> Seen {
    let text = |name: HeaderName| answer.headers()[name].to_str().unwrap().to_owned();
    let (kind, len) = (
        text(header::CONTENT_TYPE),
        text(header::CONTENT_LENGTH).parse().unwrap(),
    );
    let status = answer.status();
    let body = answer.into_body();
    assert!(body.is_end_stream() || body.size_hint().exact() == Some(len as u64));
    let AnswerBody::Full(body) = body else {
        panic!("a body that is not all here")
    };
    Seen {
        status,
        kind,
        len,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

pub(super) fn get(embedded: &Embedded, target: &str) -> Seen {
    seen(embedded.answer(&request(ROUTER, "10.0.0.5", Method::GET, target)))
}

/// The body of a page that must be there.
pub(super) fn body(embedded: &Embedded, target: &str) -> String {
    let seen = get(embedded, target);
    assert_eq!(seen.status, StatusCode::OK, "{target}: {seen:?}");
    seen.body
}
