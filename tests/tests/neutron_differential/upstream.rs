//! The recording upstream: answers by what is asked for, in all the ways an agent may.

use std::{path::Path, time::Duration};

use metadata_proxy_tests::{
    HttpAgent, MetadataAgent,
    metadata_agent::{Answer, Request},
};

/// How an upstream behaves towards the proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Neutron's agent since 2025.1: one read of 4,096 bytes, one request per connection.
    Agent,
    /// Neutron's agent until 2024.2: an ordinary HTTP server.
    Server,
    /// None at all.
    Absent,
}

/// A recording upstream.
pub(crate) enum Upstream {
    /// One of [`Style::Agent`].
    Agent(MetadataAgent),
    /// One of [`Style::Server`].
    Server(HttpAgent),
    /// Nobody.
    Absent,
}

/// How many requests it serves at a time: one may still sit over an answer that nobody awaits.
const WORKERS: usize = 16;

/// Longer than any proxy in the test waits.
const TOO_LONG: Duration = Duration::from_secs(4);

impl Upstream {
    pub(crate) fn start(style: Style, socket: &Path) -> Self {
        match style {
            Style::Agent => Self::Agent(
                MetadataAgent::builder()
                    .workers(WORKERS)
                    .respond(answer)
                    .start(socket)
                    .unwrap(),
            ),
            Style::Server => Self::Server(HttpAgent::start(socket, true, answer).unwrap()),
            Style::Absent => Self::Absent,
        }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        match self {
            Self::Agent(agent) => agent.requests(),
            Self::Server(agent) => agent.requests(),
            Self::Absent => Vec::new(),
        }
    }

    pub(crate) fn forget(&self) {
        match self {
            Self::Agent(agent) => agent.forget(),
            Self::Server(agent) => agent.forget(),
            Self::Absent => {}
        }
    }
}

/// What every body of the upstream's begins with.
pub(crate) const MARK: &str = "upstream";

/// What answers that only differ in their form have in common.
const BODY: &str = "upstream says\n";

fn raw(text: &str) -> Answer {
    Answer::Raw(text.as_bytes().to_vec())
}

fn pieces(pause: Duration, pieces: &[&str]) -> Answer {
    let pieces = pieces
        .iter()
        .map(|piece| piece.as_bytes().to_vec())
        .collect();
    Answer::Pieces { pieces, pause }
}

fn answer(request: &Request) -> Answer {
    let Some((_, how)) = request.target.split_once("/answer/") else {
        return Answer::ok(BODY);
    };
    let whole = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let long = format!("{MARK} {}", "long ".repeat(60_000));
    if let Some(status) = how.strip_prefix("nova/") {
        return Answer::Nova {
            status: status.parse().unwrap_or(500),
            body: BODY.into(),
        };
    }
    if let Some(status) = how.strip_prefix("status/") {
        return raw(&whole.replace("200 OK", &format!("{status} Odd")));
    }
    match how {
        "page/404" => Answer::OwnPage {
            status: 404,
            title: "upstream: Not Found",
        },
        "silence" => Answer::Silence,
        "unmeasured" => raw(&format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n{BODY}"
        )),
        "old" => raw(&format!(
            "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n{BODY}"
        )),
        "chunks" => raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
             8\r\nupstream\r\n6\r\n says\n\r\n0\r\n\r\n"),
        "interim" => raw(&format!("HTTP/1.1 100 Continue\r\n\r\n{whole}")),
        "hints" => raw(&format!(
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{whole}"
        )),
        "204" => raw("HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n"),
        "304" => raw("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"),
        "cut" => raw(&format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{BODY}"
        )),
        "cut-chunks" => {
            raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nupstream\r\n6\r\n sa")
        }
        "cut-head" => raw("HTTP/1.1 200 OK\r\nContent-Le"),
        "garbage" => raw("upstream talks in tongues\r\n\r\n"),
        "http2" => raw(&whole.replace("HTTP/1.1", "HTTP/2.0")),
        "two-lengths" => raw(&whole.replace("\r\n\r\n", "\r\nContent-Length: 3\r\n\r\n")),
        "length-and-chunks" => raw(
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
             8\r\nupstream\r\n0\r\n\r\n",
        ),
        "101" => {
            raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
        }
        "words" => raw(&whole.replace("200 OK", "200 Quite Right")),
        "folded" => raw(&whole.replace("\r\n\r\n", "\r\nX-A: b\r\n c\r\n\r\n")),
        "hop" => raw(&whole.replace(
            "\r\n\r\n",
            "\r\nConnection: close, X-Hop\r\nX-Hop: a\r\nKeep-Alive: timeout=5\r\n\
             Proxy-Authenticate: Basic\r\nTE: a\r\nTrailer: b\r\nUpgrade: c\r\n\r\n",
        )),
        "headers" => raw(&whole.replace(
            "\r\n\r\n",
            "\r\nServer: nova\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nSet-Cookie: a=b\r\n\
             Set-Cookie: c=d\r\nX-UPPER: e\r\nLocation: /x\r\nVia: 1.1 nova\r\nX_Under: f\r\n\r\n",
        )),
        "beyond" => raw(&format!(
            "{whole}HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        )),
        "long" => Answer::ok(long),
        "long-unmeasured" => raw(&format!("HTTP/1.1 200 OK\r\n\r\n{long}")),
        "pieces" => pieces(
            Duration::from_millis(20),
            &[
                "HTTP/1.1 200",
                " OK\r\nContent-Length: 14\r\n",
                "\r\n",
                "upstream",
                " says\n",
            ],
        ),
        "slow" => pieces(Duration::from_millis(400), &["", &whole]),
        "too-slow" => pieces(TOO_LONG, &["", &whole]),
        "stops" => pieces(TOO_LONG, &[&whole[..whole.len() - 4], "ays\n"]),
        "head" => raw("HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n"),
        other => panic!("nobody knows how to answer {other:?}"),
    }
}
