//! Methods, connections, bodies, and guests that take their time.

use super::{Case, get, one, post};

pub(super) fn methods() -> Vec<Case> {
    let simple = |name, method: &'static str| {
        let text = format!("{method} /meta HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
        Case::new(name).send(text).read(method)
    };
    vec![
        simple("GET", "GET"),
        simple("HEAD", "HEAD"),
        simple("DELETE", "DELETE"),
        simple("OPTIONS of a path", "OPTIONS"),
        one(
            "OPTIONS of *",
            "OPTIONS * HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
        ),
        simple("TRACE", "TRACE"),
        one(
            "CONNECT",
            "CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
        ),
        simple("a method of no standard", "BREW"),
        simple("a method in lower case", "get"),
        one(
            "a method that is no token",
            "G@T /meta HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        simple("POST without body or length", "POST"),
        post("POST of nothing", "Content-Length: 0\r\n", ""),
        post(
            "POST with a body",
            "Content-Length: 4\r\nContent-Type: text/plain\r\n",
            "body",
        ),
        one(
            "PUT for a session token (EC2)",
            "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\n\
             X-aws-ec2-metadata-token-ttl-seconds: 60\r\nContent-Length: 0\r\n\r\n",
        ),
        one(
            "PATCH with a body",
            "PATCH /meta HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
        ),
        one(
            "GET with a body",
            "GET /meta HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody",
        ),
    ]
}

pub(super) fn connections() -> Vec<Case> {
    const GET: &str = "GET /meta HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n";
    const POST: &str = "POST /meta HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
    let mut ten = Case::new("ten requests at once").send(GET.repeat(10));
    for _ in 0..10 {
        ten = ten.read("GET");
    }
    vec![
        Case::new("two requests, one after the other")
            .send(GET)
            .read("GET")
            .send(GET)
            .read("GET"),
        Case::new("two requests at once")
            .send(GET.repeat(2))
            .read("GET")
            .read("GET"),
        ten,
        Case::new("POST and GET at once")
            .send(format!("{POST}{GET}"))
            .read("POST")
            .read("GET"),
        Case::new("garbage behind a request")
            .send(format!("{GET}\x01\x02\r\n\r\n"))
            .read("GET")
            .read("GET"),
        get("Connection: close", "Connection: close\r\n"),
        get("Connection: keep-alive", "Connection: keep-alive\r\n"),
        get("Connection: Close, with a capital", "Connection: Close\r\n"),
        one("HTTP/1.0", "GET /meta HTTP/1.0\r\nHost: a\r\n\r\n"),
        one(
            "HTTP/1.0 and keep-alive",
            "GET /meta HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        ),
        Case::new("the guest says that it is through (half-close)")
            .send(GET)
            .finish()
            .read("GET")
            .wait(),
        Case::new("half-close, and a slow answer")
            .send("GET /answer/slow HTTP/1.1\r\nHost: a\r\n\r\n")
            .finish()
            .read("GET")
            .wait(),
        Case::new("two requests at once, then half-close")
            .send(GET.repeat(2))
            .read("GET")
            .finish()
            .read("GET")
            .wait(),
        Case::new("POST with a body, then half-close")
            .send(POST)
            .finish()
            .read("POST")
            .wait(),
        Case::new("half-close inside a head")
            .send("GET /meta HTT")
            .finish()
            .read("GET")
            .wait(),
        Case::new("half-close inside a body")
            .send("POST /meta HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nbody")
            .finish()
            .read("POST")
            .wait(),
        Case::new("half-close before anything")
            .finish()
            .read("GET")
            .wait(),
    ]
}

pub(super) fn bodies() -> Vec<Case> {
    let chunked = "Transfer-Encoding: chunked\r\n";
    let length = |length: usize| format!("Content-Length: {length}\r\n");
    let sized = |name, size: usize| post(name, &length(size), &"b".repeat(size));
    vec![
        post("a body in chunks", chunked, "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
        post("an empty body in chunks", chunked, "0\r\n\r\n"),
        post(
            "chunks with extensions and a trailer",
            chunked,
            "3;a=b\r\nabc\r\n0;c\r\nX-Neutron-Router-ID: x\r\n\r\n",
        ),
        post("chunks that end with bare LF", chunked, "3\nabc\n0\n\n").wait(),
        post("a chunk whose size is none", chunked, "x\r\nabc\r\n0\r\n\r\n").wait(),
        post("a chunk without a size", chunked, "\r\nabc\r\n0\r\n\r\n").wait(),
        post("a chunk of 2^64 bytes", chunked, "10000000000000000\r\nabc").wait(),
        post("a chunk longer than it says", chunked, "2\r\nabc\r\n0\r\n\r\n").wait(),
        post("Transfer-Encoding: Chunked", "Transfer-Encoding: Chunked\r\n", "1\r\na\r\n0\r\n\r\n"),
        post("chunked twice", &chunked.repeat(2), "1\r\na\r\n0\r\n\r\n"),
        post("gzip, chunked", "Transfer-Encoding: gzip, chunked\r\n", "1\r\na\r\n0\r\n\r\n"),
        post("chunked, gzip", "Transfer-Encoding: chunked, gzip\r\n", "1\r\na\r\n0\r\n\r\n").wait(),
        post("gzip alone", "Transfer-Encoding: gzip\r\n", "a").wait(),
        post("identity", "Transfer-Encoding: identity\r\n", "a").wait(),
        post("xchunked", "Transfer-Encoding: xchunked\r\n", "1\r\na\r\n0\r\n\r\n").wait(),
        post("white space before chunked's colon", "Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        post("chunked in a tab", "Transfer-Encoding:\tchunked\r\n", "1\r\na\r\n0\r\n\r\n"),
        post("chunks and a length of 0", &format!("Content-Length: 0\r\n{chunked}"), "1\r\na\r\n0\r\n\r\n"),
        one(
            "chunks in HTTP/1.0",
            format!("POST /meta HTTP/1.0\r\nHost: a\r\n{chunked}\r\n1\r\na\r\n0\r\n\r\n"),
        ),
        post("the same length twice", &length(4).repeat(2), "body"),
        post("two lengths", "Content-Length: 4\r\nContent-Length: 2\r\n", "body"),
        post("a list of the same length", "Content-Length: 4, 4\r\n", "body"),
        post("a negative length", "Content-Length: -1\r\n", "body"),
        post("a length with a sign", "Content-Length: +4\r\n", "body"),
        post("a length with leading zeros", "Content-Length: 0004\r\n", "body"),
        post("a length in words", "Content-Length: four\r\n", "body"),
        post("an empty length", "Content-Length:\r\n", "body"),
        post("a length of 2^64", "Content-Length: 18446744073709551616\r\n", "body").wait(),
        post("a length of 10^18", "Content-Length: 1000000000000000000\r\n", "body").wait(),
        sized("a body of 3,000 bytes", 3000),
        sized("a body of 5,000 bytes", 5000),
        sized("a body of 60,000 bytes", 60_000),
        sized("a body of 100,000 bytes", 100_000),
        Case::new("a body in two writes")
            .send("POST /meta HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nbody")
            .pause()
            .send("body")
            .read("POST"),
        Case::new("a body behind its head")
            .send("POST /meta HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
            .pause()
            .send("body")
            .read("POST"),
        Case::new("Expect: 100-continue, and waits")
            .send("POST /meta HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
            .read("POST")
            .send("body")
            .read("POST"),
        Case::new("Expect: 100-continue, and does not wait")
            .send("POST /meta HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody")
            .read("POST")
            .read("POST"),
        get("Expect: 100-continue without a body", "Expect: 100-continue\r\n"),
        get("Expect: something else", "Expect: something\r\n"),
    ]
}

pub(super) fn slow() -> Vec<Case> {
    let mut bytes = Case::new("a head byte by byte");
    for byte in b"GET /meta HTTP/1.1\r\nHost: a\r\n\r\n" {
        bytes = bytes.send([*byte]);
    }
    vec![
        bytes.read("GET"),
        Case::new("a head that stops")
            .send("GET /meta HTTP/1.1\r\nHost: a\r\n")
            .read("GET")
            .wait(),
        Case::new("a head that never starts").read("GET").wait(),
        Case::new("a request line that stops")
            .send("GET /me")
            .read("GET")
            .wait(),
        Case::new("a body that stops")
            .send("POST /meta HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nbody")
            .read("POST")
            .wait(),
        Case::new("chunks that stop")
            .send(
                "POST /meta HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            )
            .read("POST")
            .wait(),
        get("no second request", "").wait(),
        Case::new("a second head that stops")
            .send("GET /meta HTTP/1.1\r\nHost: a\r\n\r\nGET /meta HT")
            .read("GET")
            .read("GET")
            .wait(),
    ]
}
