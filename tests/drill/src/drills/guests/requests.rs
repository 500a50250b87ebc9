//! What guests have sent to slip a request past a proxy, or to break its parser.

/// Something a guest sends on a connection of its own, and what of it may be asked upstream.
pub(crate) struct Sent {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    /// Targets that may be asked, each once and in this order.
    pub(crate) admitted: &'static [&'static str],
    /// Whether they must be: the request is as it should be.
    pub(crate) must: bool,
}

const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a\r\nX-Neutron-Router-ID: claimed\r\n\r\n";

/// All of them.
pub(crate) fn all() -> Vec<Sent> {
    let mut all = lengths();
    all.extend(heads());
    all.extend(targets());
    all.extend(strangers());
    all.extend(proper());
    all
}

fn refused(name: &'static str, bytes: impl Into<Vec<u8>>) -> Sent {
    Sent {
        name,
        bytes: bytes.into(),
        admitted: &[],
        must: false,
    }
}

fn maybe(name: &'static str, bytes: impl Into<Vec<u8>>, admitted: &'static [&'static str]) -> Sent {
    Sent {
        name,
        bytes: bytes.into(),
        admitted,
        must: false,
    }
}

fn served(
    name: &'static str,
    bytes: impl Into<Vec<u8>>,
    admitted: &'static [&'static str],
) -> Sent {
    Sent {
        name,
        bytes: bytes.into(),
        admitted,
        must: true,
    }
}

fn post(headers: &str, rest: &str) -> String {
    format!("POST /seen HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n{rest}")
}

/// Lengths that two readers may understand in two ways.
fn lengths() -> Vec<Sent> {
    let chunks = format!("0\r\n\r\n{HIDDEN}");
    let mut all = Vec::new();
    for (name, headers) in [
        ("CL.TE", "Content-Length: 6\r\nTransfer-Encoding: chunked"),
        ("TE.CL", "Transfer-Encoding: chunked\r\nContent-Length: 6"),
        (
            "CL.TE, length 0",
            "Content-Length: 0\r\nTransfer-Encoding: chunked",
        ),
        (
            "CL.TE, case",
            "content-LENGTH: 6\r\nTRANSFER-encoding: Chunked",
        ),
        ("two lengths", "Content-Length: 5\r\nContent-Length: 6"),
        ("a list of lengths", "Content-Length: 5, 6"),
        ("a signed length", "Content-Length: +5"),
        ("a hexadecimal length", "Content-Length: 0x5"),
        ("a length with a unit", "Content-Length: 5 bytes"),
        (
            "a length that overflows",
            "Content-Length: 18446744073709551621",
        ),
        ("an empty length", "Content-Length: "),
        ("TE.TE, xchunked", "Transfer-Encoding: xchunked"),
        (
            "TE.TE, identity last",
            "Transfer-Encoding: chunked, identity",
        ),
        (
            "TE.TE, identity first",
            "Transfer-Encoding: identity, chunked",
        ),
        (
            "TE.TE, twice",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ),
        (
            "TE.TE, other second",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow",
        ),
        ("TE.TE, quoted", "Transfer-Encoding: \"chunked\""),
        (
            "TE.TE, space before the colon",
            "Transfer-Encoding : chunked",
        ),
        ("TE.TE, vertical tab", "Transfer-Encoding: \x0bchunked"),
        ("TE.TE, folded", "Transfer-Encoding:\r\n chunked"),
        (
            "TE.TE, folded behind another",
            "X: a\r\n Transfer-Encoding: chunked",
        ),
        ("TE.TE, NUL", "Transfer-Encoding: chunked\0"),
        ("TE.TE, bare CR", "X: a\rTransfer-Encoding: chunked"),
        ("TE.TE, empty", "Transfer-Encoding: "),
    ] {
        all.push(refused(name, post(headers, &chunks)));
    }
    for (name, chunks) in [
        ("a chunk's size is empty", "\r\nabc\r\n0\r\n\r\n"),
        ("a chunk's size is signed", "+3\r\nabc\r\n0\r\n\r\n"),
        ("a chunk's size is 0x3", "0x3\r\nabc\r\n0\r\n\r\n"),
        (
            "a chunk's size overflows",
            "10000000000000003\r\nabc\r\n0\r\n\r\n",
        ),
        ("a chunk is longer than it says", "3\r\nabcd\r\n0\r\n\r\n"),
        (
            "a line feed in a chunk's extension",
            "3;a\nb\r\nabc\r\n0\r\n\r\n",
        ),
        ("a chunk ends with a bare line feed", "3\r\nabc\n0\r\n\r\n"),
    ] {
        let rest = format!("{chunks}{HIDDEN}");
        all.push(refused(name, post("Transfer-Encoding: chunked", &rest)));
    }
    // HTTP/1.0 has no chunks.
    let old = "POST /seen HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    all.push(refused("chunks in HTTP/1.0", format!("{old}{chunks}")));
    // An underscore is no hyphen to us; to whoever thinks it is, the request has no body either.
    all.push(maybe(
        "Transfer_Encoding",
        format!("GET /seen HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer_Encoding: chunked\r\n\r\n{chunks}"),
        &["/seen"],
    ));
    all
}

/// Heads that are none.
fn heads() -> Vec<Sent> {
    let get = |headers: &str| format!("GET /seen HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n{HIDDEN}");
    vec![
        refused("a folded header", get("X: a\r\n b")),
        refused(
            "a folded first header",
            "GET /seen HTTP/1.1\r\n folded: a\r\nHost: a\r\n\r\n",
        ),
        refused("an empty name", get(": a")),
        refused("a line without a colon", get("nothing")),
        refused("a space in a name", get("X Y: a")),
        refused("NUL in a value", get("X: a\0b")),
        refused("NUL in a name", get("X\0: a")),
        refused("a control byte in a value", get("X: a\x01b")),
        refused("DEL in a name", get("X\x7f: a")),
        refused("a bare CR in a value", get("X: a\rb")),
        refused("two different hosts", get("Host: b")),
        refused("a name beyond ASCII", get("X\u{fc}: a")),
        maybe(
            "bare line feeds",
            "GET /seen HTTP/1.1\nHost: a\nConnection: close\n\n",
            &["/seen"],
        ),
        served(
            "claims of an identity",
            "GET /seen HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Neutron-Router-ID: claimed\r\n\
             X_Neutron_Router_ID: claimed\r\nX-OVN-Network-ID: claimed\r\nX-Forwarded-For: 1.2.3.4\r\n\
             X-Instance-ID: claimed\r\nX-Tenant-ID: claimed\r\n\r\n",
            &["/seen"],
        ),
        served(
            "the tag is said to concern this hop only",
            "GET /seen HTTP/1.1\r\nHost: a\r\nConnection: close, X-Neutron-Router-ID, X-Forwarded-For\
             \r\n\r\n",
            &["/seen"],
        ),
        served(
            "an empty value and the same header twice",
            "GET /seen HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAccept:\r\nAccept: a\r\n\r\n",
            &["/seen"],
        ),
    ]
}

/// Targets of other forms.
fn targets() -> Vec<Sent> {
    let line = |line: &str| format!("{line}\r\nHost: a\r\nConnection: close\r\n\r\n");
    vec![
        served(
            "absolute form",
            line("GET http://elsewhere/seen HTTP/1.1"),
            &["/seen"],
        ),
        refused(
            "absolute form, https",
            line("GET https://elsewhere/hidden HTTP/1.1"),
        ),
        refused(
            "absolute form, ftp",
            line("GET ftp://elsewhere/hidden HTTP/1.1"),
        ),
        refused("authority form", line("CONNECT elsewhere:80 HTTP/1.1")),
        refused("authority form, GET", line("GET elsewhere:80 HTTP/1.1")),
        refused("asterisk form", line("OPTIONS * HTTP/1.1")),
        refused("TRACE", line("TRACE /hidden HTTP/1.1")),
        refused("no target", line("GET  HTTP/1.1")),
        refused("a relative target", line("GET hidden HTTP/1.1")),
        refused("a space in the target", line("GET /hid den HTTP/1.1")),
        refused("NUL in the target", line("GET /hidden\0 HTTP/1.1")),
        refused("CR in the target", line("GET /hidden\r HTTP/1.1")),
        refused("DEL in the target", line("GET /hidden\x7f HTTP/1.1")),
        refused("a target beyond ASCII", line("GET /hidd\u{e9}n HTTP/1.1")),
        refused("HTTP/2 in the line", line("GET /hidden HTTP/2.0")),
        refused("HTTP/1.2", line("GET /hidden HTTP/1.2")),
        refused("HTTP/0.9", "GET /hidden\r\n\r\n"),
        refused("lower case", line("GET /hidden http/1.1")),
    ]
}

/// What belongs to another protocol.
fn strangers() -> Vec<Sent> {
    let hello = b"\x16\x03\x01\x00\x46\x01\x00\x00\x42\x03\x03"
        .iter()
        .copied();
    let hello: Vec<u8> = hello.chain((0..65).map(|byte| byte * 3)).collect();
    vec![
        refused(
            "HTTP/2 preface",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        ),
        refused("TLS client hello", hello),
        refused(
            "PROXY protocol",
            format!("PROXY TCP4 1.2.3.4 1.2.3.4 1 80\r\n{HIDDEN}"),
        ),
        refused("SSH", "SSH-2.0-OpenSSH_9.2\r\n"),
        refused("zeroes", vec![0; 512]),
    ]
}

/// What is as it should be, and easily taken for something else.
fn proper() -> Vec<Sent> {
    vec![
        served(
            "pipelined: a length, then chunks",
            "POST /seen HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
             POST /again HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
             3\r\nabc\r\n0\r\n\r\n",
            &["/seen", "/again"],
        ),
        served(
            "a request inside a body",
            format!(
                "POST /seen HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{HIDDEN}",
                HIDDEN.len()
            ),
            &["/seen"],
        ),
        served(
            "chunk extensions and a trailer",
            "POST /seen HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
             3;name=value\r\nabc\r\n0;last\r\nX-Neutron-Router-ID: claimed\r\n\r\n",
            &["/seen"],
        ),
        served(
            "empty lines first",
            "\r\n\r\nGET /seen HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            &["/seen"],
        ),
    ]
}
