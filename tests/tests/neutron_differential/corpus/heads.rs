//! Heads: hosts, targets, versions, line ends, headers.

use super::{Case, get, one, target};

pub(super) fn hosts() -> Vec<Case> {
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

pub(super) fn targets() -> Vec<Case> {
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

pub(super) fn versions() -> Vec<Case> {
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

pub(super) fn lines() -> Vec<Case> {
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

pub(super) fn headers() -> Vec<Case> {
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
