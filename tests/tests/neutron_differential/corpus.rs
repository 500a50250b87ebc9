//! What guests send: well-formed, odd, malformed, spoofed, slow, large; as data.

use std::time::Duration;

/// What a guest does next.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Writes these bytes at once.
    Send(Vec<u8>),
    /// Writes nothing for a while.
    Pause(Duration),
    /// Reads one answer to a request with this method.
    Read(&'static str),
    /// Says that it will write nothing more.
    Finish,
}

/// What a guest does when it has got its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Sends another request, to see whether the connection still carries one.
    Ask,
    /// Waits for the other side to do something.
    Wait,
}

/// One case.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// What it is called, in the document too.
    pub(crate) name: &'static str,
    /// What the guest does.
    pub(crate) steps: Vec<Step>,
    /// And then.
    pub(crate) end: End,
}

impl Case {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            steps: Vec::new(),
            end: End::Ask,
        }
    }

    fn send(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.steps.push(Step::Send(bytes.into()));
        self
    }

    fn read(mut self, method: &'static str) -> Self {
        self.steps.push(Step::Read(method));
        self
    }

    fn finish(mut self) -> Self {
        self.steps.push(Step::Finish);
        self
    }

    fn pause(mut self) -> Self {
        self.steps.push(Step::Pause(Duration::from_millis(100)));
        self
    }

    fn wait(mut self) -> Self {
        self.end = End::Wait;
        self
    }
}

/// A case of one write and one answer.
fn one(name: &'static str, bytes: impl Into<Vec<u8>>) -> Case {
    Case::new(name).send(bytes).read("GET")
}

/// A GET with these header lines.
fn get(name: &'static str, headers: &str) -> Case {
    one(
        name,
        format!("GET /meta HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n"),
    )
}

/// A GET of this target.
fn target(name: &'static str, target: &str) -> Case {
    one(
        name,
        format!("GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"),
    )
}

/// A POST with these header lines and what follows them.
fn post(name: &'static str, headers: &str, body: &str) -> Case {
    let text = format!("POST /meta HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n{body}");
    Case::new(name).send(text).read("POST")
}

/// A GET that the upstream answers in this way.
fn answered(name: &'static str, how: &str) -> Case {
    target(name, &format!("/answer/{how}"))
}

/// All cases.
pub(crate) fn corpus() -> Vec<Case> {
    let groups = [
        methods(),
        connections(),
        hosts(),
        targets(),
        versions(),
        lines(),
        claims(),
        headers(),
        bodies(),
        slow(),
        answers(),
    ];
    groups.into_iter().flatten().collect()
}

fn methods() -> Vec<Case> {
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

fn connections() -> Vec<Case> {
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

fn hosts() -> Vec<Case> {
    let host = |name, lines: &str| one(name, format!("GET /meta HTTP/1.1\r\n{lines}\r\n"));
    vec![
        host("no Host", ""),
        one("no Host in HTTP/1.0", "GET /meta HTTP/1.0\r\n\r\n"),
        host("an empty Host", "Host:\r\n"),
        host("the same Host twice", "Host: a\r\nHost: a\r\n"),
        host("two Hosts", "Host: a\r\nHost: b\r\n"),
        host("Host with a port", "Host: 169.254.169.254:80\r\n"),
        host("Host of IPv6", "Host: [fe80::a9fe:a9fe]\r\n"),
        host(
            "Host of IPv6 with a zone",
            "Host: [fe80::a9fe:a9fe%25eth0]\r\n",
        ),
        host("a Host that is none", "Host: a b\r\n"),
        host("a Host with user and path", "Host: u@a/b\r\n"),
    ]
}

fn targets() -> Vec<Case> {
    vec![
        target("a query", "/meta?a=1&b=%20;c"),
        target("an empty query", "/meta?"),
        target("a fragment", "/meta#part"),
        target("two slashes", "//meta//data"),
        target("dot segments", "/a/../b/./c"),
        target("escaped bytes", "/%2e%2e/%00%0d%0a/%zz"),
        target("characters that URLs escape", "/a|b{c}d\"e^f`g<h>i\\j"),
        target("bytes beyond ASCII", "/m\u{e9}ta"),
        one(
            "a control byte in the target",
            "GET /me\x01ta HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        one(
            "NUL in the target",
            "GET /me\0ta HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        target("a space in the target", "/meta data"),
        target("no slash", "meta"),
        target("only a query", "?meta"),
        one("no target", "GET  HTTP/1.1\r\nHost: a\r\n\r\n"),
        target("a URL", "http://169.254.169.254/meta"),
        target("a URL of another host", "http://other.example/meta"),
        target("a URL without a path", "http://169.254.169.254"),
        target(
            "a URL without a path, with a query",
            "http://169.254.169.254?a=1",
        ),
        target("a URL with a user", "http://user:word@169.254.169.254/meta"),
        target("an https URL", "https://169.254.169.254/meta"),
        target("an ftp URL", "ftp://169.254.169.254/meta"),
        target("a host and port", "169.254.169.254:80"),
        target("a long target", &format!("/{}", "x".repeat(3000))),
        target("a target of 6,000 bytes", &format!("/{}", "x".repeat(6000))),
        target(
            "a target of 20,000 bytes",
            &format!("/{}", "x".repeat(20000)),
        ),
    ]
}

fn versions() -> Vec<Case> {
    let version =
        |name, version: &str| one(name, format!("GET /meta {version}\r\nHost: a\r\n\r\n"));
    vec![
        one("HTTP/0.9", "GET /meta\r\n"),
        version("HTTP/1.2", "HTTP/1.2"),
        version("HTTP/2.0 in text", "HTTP/2.0"),
        version("HTTP/3.1", "HTTP/3.1"),
        version("HTTP/1.10", "HTTP/1.10"),
        version("HTTP/11", "HTTP/11"),
        version("http/1.1 in lower case", "http/1.1"),
        version("ICY/1.1", "ICY/1.1"),
        version("RTSP/1.0", "RTSP/1.0"),
        one(
            "the preface of HTTP/2",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        ),
        one(
            "hello of TLS",
            [
                &b"\x16\x03\x01\x00\x61\x01\x00\x00\x5d\x03\x03"[..],
                &[7; 90],
            ]
            .concat(),
        )
        .wait(),
        one("hello of SSH", "SSH-2.0-OpenSSH_9.2\r\n").wait(),
        one(
            "garbage",
            (128..=255_u8).cycle().take(300).collect::<Vec<_>>(),
        )
        .wait(),
        one("NUL bytes", vec![0; 100]).wait(),
    ]
}

fn lines() -> Vec<Case> {
    vec![
        one(
            "an empty line before the request",
            "\r\nGET /meta HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        one(
            "many empty lines before it",
            format!("{}GET /meta HTTP/1.1\r\nHost: a\r\n\r\n", "\r\n".repeat(20)),
        ),
        one("bare LF", "GET /meta HTTP/1.1\nHost: a\n\n"),
        one(
            "bare LF and CRLF",
            "GET /meta HTTP/1.1\nHost: a\r\nAccept: x\n\r\n",
        ),
        one("bare CR", "GET /meta HTTP/1.1\rHost: a\r\r").wait(),
        get("CR inside a value", "Accept: a\rb\r\n"),
        get("NUL in a value", "Accept: a\0b\r\n"),
        get("NUL in a name", "Acc\0ept: a\r\n"),
        get("a control byte in a value", "Accept: a\x01b\r\n"),
        get("DEL in a value", "Accept: a\x7fb\r\n"),
        get("a tab in a value", "Accept: a\tb\r\n"),
        one(
            "bytes beyond ASCII in a value",
            b"GET /meta HTTP/1.1\r\nHost: a\r\nAccept: \xff\xe9\r\n\r\n",
        ),
        get("white space around a value", "Accept: \t a b \t \r\n"),
        get("no white space before a value", "Accept:a\r\n"),
        get("an empty value", "Accept:\r\n"),
        get("a folded header", "Accept: a\r\n b\r\n\tc\r\n"),
        one(
            "white space before the first header",
            "GET /meta HTTP/1.1\r\n Host: a\r\n\r\n",
        ),
        get("white space before a colon", "Accept : a\r\n"),
        get("a header without a colon", "Accept\r\n"),
        get("a header without a name", ": a\r\n"),
        get("a name that is no token", "Acc(ept): a\r\n"),
        one(
            "two spaces in the request line",
            "GET  /meta  HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        one(
            "a tab in the request line",
            "GET\t/meta\tHTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        one(
            "a space behind the version",
            "GET /meta HTTP/1.1 \r\nHost: a\r\n\r\n",
        ),
        one(
            "a space before the method",
            " GET /meta HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
    ]
}

/// The tenant whose identity guests claim.
pub(crate) const OTHER: &str = "11111111-2222-4333-8444-555555555555";

fn claims() -> Vec<Case> {
    vec![
        get("claims another address", "X-Forwarded-For: 10.9.9.9\r\n"),
        get(
            "claims several addresses",
            "X-Forwarded-For: 10.9.9.9, 10.9.9.8\r\nX-Forwarded-For: 10.9.9.7\r\n",
        ),
        get(
            "claims another router",
            &format!("X-Neutron-Router-ID: {OTHER}\r\n"),
        ),
        get(
            "claims another network",
            &format!("X-Neutron-Network-ID: {OTHER}\r\n"),
        ),
        get(
            "claims another network of OVN",
            &format!("X-OVN-Network-ID: {OTHER}\r\n"),
        ),
        get(
            "claims everything, with capitals",
            &format!(
                "X-NEUTRON-ROUTER-ID: {OTHER}\r\nx-neutron-network-id: {OTHER}\r\n\
                 X-Ovn-Network-Id: {OTHER}\r\nX-FORWARDED-FOR: 10.9.9.9\r\n"
            ),
        ),
        get(
            "claims with underscores",
            &format!(
                "X_Neutron_Router_ID: {OTHER}\r\nX_Forwarded_For: 10.9.9.9\r\n\
                 X-Neutron_Network-ID: {OTHER}\r\n"
            ),
        ),
        get(
            "claims an instance",
            &format!(
                "X-Instance-ID: {OTHER}\r\nX-Tenant-ID: {OTHER}\r\n\
                 X-Instance-ID-Signature: 00\r\nX-Metadata-Provider: {OTHER}\r\n\
                 X-Metadata-Provider-Signature: 00\r\n"
            ),
        ),
        get(
            "claims to be a proxy",
            "Forwarded: for=10.9.9.9\r\nX-Real-IP: 10.9.9.9\r\nX-Forwarded-Host: b\r\n\
             X-Forwarded-Proto: https\r\nVia: 1.1 b\r\n",
        ),
        get(
            "has the tag taken for a hop's",
            "Connection: X-Neutron-Router-ID, X-Neutron-Network-ID, X-OVN-Network-ID\r\n",
        ),
        get(
            "has its address taken for a hop's",
            "Connection: keep-alive, X-Forwarded-For\r\n",
        ),
        get("has Host taken for a hop's", "Connection: Host\r\n"),
        get(
            "claims in a folded line",
            &format!("Accept: a\r\n X-Neutron-Router-ID: {OTHER}\r\n"),
        ),
        get(
            "claims behind a bare CR",
            &format!("Accept: a\rX-Neutron-Router-ID: {OTHER}\r\n"),
        ),
        get(
            "claims behind a bare LF",
            &format!("Accept: a\nX-Neutron-Router-ID: {OTHER}\r\n"),
        ),
        target(
            "claims in the target",
            &format!("/meta%0d%0aX-Neutron-Router-ID:%20{OTHER}"),
        ),
        post(
            "smuggles a request: Content-Length and chunks",
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            &format!("0\r\n\r\nGET /smuggled HTTP/1.1\r\nX-Neutron-Router-ID: {OTHER}\r\n\r\n"),
        ),
    ]
}

fn headers() -> Vec<Case> {
    let many = |count: usize| "Accept: a\r\n".repeat(count);
    vec![
        get(
            "what clients send",
            "User-Agent: Cloud-Init/22.4.2\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n\
             Accept-Language: en\r\nAccept-Charset: utf-8\r\nCache-Control: no-cache\r\n\
             Pragma: no-cache\r\n",
        ),
        get("a session token (EC2)", "X-aws-ec2-metadata-token: abc\r\n"),
        get(
            "conditions and ranges",
            "Range: bytes=0-1\r\nIf-None-Match: \"a\"\r\nIf-Match: \"a\"\r\n\
             If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
             If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
        ),
        get(
            "credentials",
            "Authorization: Basic YTpi\r\nCookie: a=b\r\nX-Auth-Token: t\r\n",
        ),
        get(
            "headers nobody knows",
            "X-Custom: a\r\nX-Other: b\r\nReferer: c\r\nDNT: 1\r\n",
        ),
        get("a header twice", "Accept: a\r\nAccept: b\r\n"),
        get(
            "Upgrade: websocket",
            "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        ),
        get(
            "Upgrade: h2c",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        ),
        get("TE: trailers", "Connection: TE\r\nTE: trailers\r\n"),
        get(
            "Proxy-Connection",
            "Proxy-Connection: keep-alive\r\nKeep-Alive: 5\r\n",
        ),
        get("90 headers", &many(89)),
        get("100 headers", &many(99)),
        get("110 headers", &many(109)),
        get("500 headers", &many(499)),
        get(
            "a head of 3,000 bytes",
            &format!("Accept: {}\r\n", "a".repeat(2900)),
        ),
        get(
            "a head of 5,000 bytes",
            &format!("Accept: {}\r\n", "a".repeat(4900)),
        ),
        get(
            "a head of 5,000 bytes of no use",
            &format!("X-Custom: {}\r\n", "a".repeat(4900)),
        ),
        get(
            "a head of 15,000 bytes",
            &format!("Accept: {}\r\n", "a".repeat(14900)),
        ),
        get(
            "a head of 17,000 bytes",
            &format!("Accept: {}\r\n", "a".repeat(16900)),
        ),
        get(
            "a head of 100,000 bytes",
            &format!("Accept: {}\r\n", "a".repeat(99_900)),
        ),
    ]
}

fn bodies() -> Vec<Case> {
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

fn slow() -> Vec<Case> {
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

fn answers() -> Vec<Case> {
    vec![
        answered("the answer is 404 of nova's", "nova/404"),
        answered("the answer is 409 of nova's", "nova/409"),
        answered("the answer is 500 of nova's", "nova/500"),
        answered("the answer is 503 of nova's", "nova/503"),
        answered("the answer is the agent's own page (bare LF)", "page/404"),
        answered("no answer (the agent closes)", "silence"),
        answered("the answer has no length", "unmeasured"),
        answered("the answer is of HTTP/1.0", "old"),
        answered("the answer is in chunks", "chunks"),
        answered("the answer comes after 100 Continue", "interim"),
        answered("the answer comes after 103 Early Hints", "hints"),
        answered("the answer is 204", "204"),
        answered("the answer is 304", "304"),
        answered("the answer is cut", "cut"),
        answered("the answer's chunks are cut", "cut-chunks"),
        answered("the answer's head is cut", "cut-head"),
        answered("the answer is no HTTP", "garbage"),
        answered("the answer is of HTTP/2.0 in text", "http2"),
        answered("the answer has two lengths", "two-lengths"),
        answered("the answer has a length and chunks", "length-and-chunks"),
        answered("the answer's status is 099", "status/099"),
        answered("the answer's status is 700", "status/700"),
        answered("the answer's status is 1000", "status/1000"),
        answered("the answer is 101", "101"),
        answered("the answer has words of its own", "words"),
        answered("the answer has a folded header", "folded"),
        answered("the answer has headers of a hop", "hop"),
        answered("the answer has headers of all kinds", "headers"),
        answered("the answer has bytes beyond its length", "beyond"),
        answered("the answer is long", "long"),
        answered("the answer is long, without a length", "long-unmeasured"),
        answered("the answer comes in pieces", "pieces"),
        answered("the answer is slow", "slow"),
        answered("the answer is too slow", "too-slow"),
        answered("the answer stops", "stops"),
        Case::new("HEAD, and the answer has a length")
            .send("HEAD /answer/head HTTP/1.1\r\nHost: a\r\n\r\n")
            .read("HEAD"),
        Case::new("HEAD, and the answer is 404")
            .send("HEAD /answer/nova/404 HTTP/1.1\r\nHost: a\r\n\r\n")
            .read("HEAD"),
        Case::new("HEAD of HTTP/1.0")
            .send("HEAD /meta HTTP/1.0\r\nHost: a\r\n\r\n")
            .read("HEAD"),
    ]
}
