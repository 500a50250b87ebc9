//! What is no request, or two at once, is refused; nothing of it is forwarded.

use metadata_proxy_tests::{Connection, Kind, TenantFixture};

use metadata_proxy_tests::stage::{Stage, assert_served};

/// Sends bytes; asserts the status, that the connection is closed, and that nobody upstream heard.
fn assert_refused(stage: &Stage, tenant: &TenantFixture, bytes: &[u8], status: u16) {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    // A refusal may come before all was sent.
    let _ = connection.send(bytes);
    let reply = connection
        .answer()
        .unwrap_or_else(|error| panic!("{shown:?}: {error:#}"));
    assert_eq!(reply.status, status, "{shown:?}: {reply:?}");
    assert_eq!(connection.rest().unwrap(), b"", "{shown:?}");
    assert_eq!(stage.take_requests(), [], "{shown:?}");
}

#[test]
fn garbage_is_answered_400_and_never_forwarded() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    for garbage in [
        &b"garbage\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/3.7\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nNo colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: \x00\r\n\r\n",
        b"GET /a\x7fb HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET latest HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ] {
        assert_refused(&stage, &tenant, garbage, 400);
    }
    assert_served(&tenant);
}

#[test]
fn methods_that_make_no_sense_here_are_refused() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    for request in [
        &b"TRACE / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"[..],
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ] {
        assert_refused(&stage, &tenant, request, 405);
    }
}

#[test]
fn conflicting_lengths_are_refused() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    for lengths in [
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 4",
        "Content-Length: 4, 5",
        "Content-Length: -1",
        "Content-Length: +4",
        "Content-Length: 4x",
        "Content-Length: 99999999999999999999999",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{lengths}\r\n\r\nbody");
        assert_refused(&stage, &tenant, request.as_bytes(), 400);
    }
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n";
    assert_refused(&stage, &tenant, request.as_bytes(), 501);
    // HTTP/1.0 knows no chunks.
    let request = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_refused(&stage, &tenant, request.as_bytes(), 400);
    assert_served(&tenant);
}

#[test]
fn broken_chunks_are_refused() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Network);
    for chunks in [
        "zz\r\nabc\r\n0\r\n\r\n",
        "-1\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "ffffffffffffffff1\r\nabc\r\n",
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        assert_refused(&stage, &tenant, request.as_bytes(), 400);
    }
}

#[test]
fn a_length_beside_chunks_is_refused_and_smuggles_nothing() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\nX-Neutron-Router-ID: spoofed\r\n\r\n";
    for both in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
    ] {
        let mut connection = Connection::v4(tenant.guest()).unwrap();
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{both}\r\n\r\n0\r\n\r\n{hidden}");
        connection.send(request).unwrap();
        let reply = connection.answer().unwrap();
        assert_eq!(reply.status, 400, "{both}: {reply:?}");
        assert_eq!(
            connection.rest().unwrap(),
            b"",
            "{both}: nothing after it is read"
        );
        let requests = stage.take_requests();
        assert!(requests.is_empty(), "{both}: {requests:?}");
    }
}

#[test]
fn too_large_a_head_is_answered_431() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    // More than the upstream reads at once, more than we read, and more headers than we count.
    for filler in [
        format!("Accept: {}\r\n", "x".repeat(5_000)),
        format!("Accept: {}\r\n", "x".repeat(20_000)),
        "A: b\r\n".repeat(200),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{filler}\r\n");
        assert_refused(&stage, &tenant, request.as_bytes(), 431);
    }
    let target = "x".repeat(70_000);
    let request = format!("GET /{target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    let _ = connection.send(request);
    let status = connection.answer().unwrap().status;
    assert!([414, 431].contains(&status), "{status}");
    assert_eq!(stage.take_requests(), []);
    assert_served(&tenant);
}

#[test]
fn too_large_a_body_is_answered_413() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    // More than the upstream reads at once would arrive cut, and nobody would notice.
    for size in [4_097, 70_000] {
        let body = "x".repeat(size);
        for request in [
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n{body}"
            ),
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                 {size:x}\r\n{body}\r\n0\r\n\r\n"
            ),
        ] {
            assert_refused(&stage, &tenant, request.as_bytes(), 413);
        }
    }
    assert_served(&tenant);
}

#[test]
fn a_request_that_does_not_come_is_given_up_on() {
    let stage = Stage::with(|agent| {
        agent
            .set("timeouts.request_head", "\"300ms\"")
            .set("timeouts.client", "\"300ms\"")
    });
    let tenant = stage.tenant(Kind::Router);
    for beginning in [
        "GET / HTTP/1.1\r\nHo",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc",
    ] {
        let mut connection = Connection::v4(tenant.guest()).unwrap();
        connection.send(beginning).unwrap();
        assert_eq!(connection.answer().unwrap().status, 408, "{beginning:?}");
        assert_eq!(connection.rest().unwrap(), b"");
    }
    assert_eq!(stage.take_requests(), []);
}
