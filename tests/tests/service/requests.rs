//! Requests as clients send them, from the guest's socket to the upstream's.

use metadata_proxy_tests::{Connection, Kind, METADATA_V4, Reply, metadata_agent::Request};

use metadata_proxy_tests::stage::{Stage, assert_identified, exchange};

/// Sends bytes from a guest of a new tenant; what came back, and what reached the upstream.
fn ask(bytes: &str) -> (Reply, Vec<Request>) {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let reply = exchange(tenant.guest(), bytes);
    let requests = stage.take_requests();
    for request in &requests {
        assert_identified(request, &tenant, tenant.guest().v4);
    }
    (reply, requests)
}

#[test]
fn http_1_0_is_answered_and_the_connection_closed() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    connection.send("GET /latest HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(connection.answer().unwrap().status, 200);
    assert_eq!(connection.rest().unwrap(), b"");
    let requests = stage.take_requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].target, "/latest");
}

#[test]
fn http_1_0_may_keep_the_connection() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    for _ in 0..2 {
        connection
            .send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            .unwrap();
        let reply = connection.answer().unwrap();
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("connection"), Some("keep-alive"));
    }
    assert_eq!(stage.take_requests().len(), 2);
}

#[test]
fn a_connection_is_kept_and_each_request_goes_upstream_by_itself() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Network);
    let mut connection = Connection::v6(tenant.guest()).unwrap();
    for number in 0..5 {
        let reply = connection.get(&format!("/{number}")).unwrap();
        assert_eq!(reply.status, 200);
    }
    let targets: Vec<_> = stage
        .take_requests()
        .into_iter()
        .map(|it| it.target)
        .collect();
    assert_eq!(targets, ["/0", "/1", "/2", "/3", "/4"]);
    let status = stage.agent.tenant(&tenant).unwrap().unwrap();
    assert_eq!(status["connections"]["total"], 1, "{status}");
    assert_eq!(status["requests"]["total"], 5, "{status}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let stage = Stage::answering(
        |agent| agent,
        |request| metadata_proxy_tests::metadata_agent::Answer::ok(request.target.clone()),
    );
    let tenant = stage.tenant(Kind::Router);
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    let requests: Vec<_> = (0..10)
        .map(|number| match number % 3 {
            0 => format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n"),
            1 => format!("POST /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nGET "),
            _ => format!(
                "PUT /{number} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                 3\r\nabc\r\n0\r\n\r\n"
            ),
        })
        .collect();
    connection.send(requests.concat()).unwrap();
    for number in 0..10 {
        let reply = connection.answer().unwrap();
        assert_eq!(reply.text(), format!("/{number}"));
    }
    assert_eq!(stage.take_requests().len(), 10);
}

#[test]
fn a_head_request_gets_a_head() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    connection
        .send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    assert_eq!(connection.head().unwrap().status, 200);
    // The connection goes on behind it, so nothing else came.
    assert_eq!(connection.get("/").unwrap().status, 200);
    let methods: Vec<_> = stage
        .take_requests()
        .into_iter()
        .map(|it| it.method)
        .collect();
    assert_eq!(methods, ["HEAD", "GET"]);
}

#[test]
fn bodies_arrive_whole() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::OvnNetwork);
    // As cloud-init posts a password: in one write, or head and body apart.
    for method in ["POST", "PUT"] {
        let body = "x".repeat(2_000);
        let url = format!("{METADATA_V4}/openstack/latest/password");
        let arguments = ["-X", method, "--data-binary", &body];
        let reply = tenant.guest().curl(&url, &arguments).unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        let requests = stage.take_requests();
        assert_eq!(requests[0].method, method);
        assert_eq!(requests[0].body, body.as_bytes());
        assert_eq!(requests[0].header("content-length"), Some("2000"));
    }
}

#[test]
fn a_body_that_comes_in_pieces_arrives_whole() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    connection
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
        .unwrap();
    for piece in ["abc", "def", "ghi"] {
        connection.send(piece).unwrap();
    }
    assert_eq!(connection.answer().unwrap().status, 200);
    assert_eq!(stage.take_requests()[0].body, b"abcdefghi");
}

#[test]
fn chunks_are_put_together_and_their_length_is_told() {
    let (reply, requests) = ask(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
         4;extension=\"1\"\r\nwiki\r\n5\r\npedia\r\n0\r\nX-Neutron-Router-ID: trailer\r\n\r\n",
    );
    assert_eq!(reply.status, 200);
    assert_eq!(requests[0].body, b"wikipedia");
    assert_eq!(requests[0].header("content-length"), Some("9"));
    assert_eq!(requests[0].header("transfer-encoding"), None);
}

#[test]
fn who_expects_to_continue_is_told_to() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    connection
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    assert_eq!(connection.head().unwrap().status, 100);
    connection.send("body").unwrap();
    assert_eq!(connection.answer().unwrap().status, 200);
    let requests = stage.take_requests();
    assert_eq!(requests[0].body, b"body");
    assert_eq!(requests[0].header("expect"), None);
}

#[test]
fn who_expects_to_continue_with_too_much_is_told_so_at_once() {
    let stage = Stage::new();
    let tenant = stage.tenant(Kind::Router);
    let mut connection = Connection::v4(tenant.guest()).unwrap();
    connection
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    let reply = connection.answer().unwrap();
    assert_eq!(reply.status, 413, "{reply:?}");
    assert_eq!(connection.rest().unwrap(), b"");
    assert_eq!(stage.take_requests(), []);
}

#[test]
fn a_whole_url_is_taken_for_its_path() {
    let (reply, requests) =
        ask("GET http://somewhere.else/latest?a=b HTTP/1.1\r\nHost: somewhere.else\r\n\r\n");
    assert_eq!(reply.status, 200);
    assert_eq!(requests[0].target, "/latest?a=b");
}

#[test]
fn an_answer_larger_than_any_buffer_arrives_whole() {
    const SIZE: usize = 3 << 20;
    let stage = Stage::answering(
        |agent| agent,
        |_| metadata_proxy_tests::metadata_agent::Answer::ok(vec![b'y'; SIZE]),
    );
    let tenant = stage.tenant(Kind::Network);
    for url in [METADATA_V4.to_owned(), tenant.guest().metadata_v6()] {
        let reply = tenant.guest().curl(&url, &[]).unwrap();
        assert_eq!((reply.exit, reply.body.len()), (0, SIZE), "{}", reply.error);
        assert!(reply.body.iter().all(|byte| *byte == b'y'));
    }
}

#[test]
fn ipv4_mapped_guests_are_told_as_ipv4() {
    let (_, requests) = ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    // The listener is dual-stack; what the kernel calls ::ffff:10.0.0.5 is 10.0.0.5 upstream.
    assert_eq!(requests[0].header("x-forwarded-for"), Some("10.0.0.5"));
}
