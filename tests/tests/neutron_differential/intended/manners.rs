//! Differences in how a request is passed on and how an answer is worded; what becomes of both is
//! the same.

use metadata_proxy_tests::stage::CLAIMS;

use super::{
    Applies::{Absent, Agent, Answered, Server},
    Covers::Aspects,
    Intended,
    Scope::{Anywhere, Cases},
};
use crate::{difference::Difference, observe::TENANT};

/// Headers of a guest that reach the upstream, when it sends them.
const PASSED_ON: &[&str] = &[
    "host",
    "user-agent",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "content-encoding",
    "content-type",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-unmodified-since",
    "pragma",
    "range",
    "x-aws-ec2-metadata-token",
    "x-aws-ec2-metadata-token-ttl-seconds",
];

/// Headers that are written by whoever forwards, each with a row of its own.
const WRITTEN: &[&str] = &[
    "connection",
    "content-length",
    "transfer-encoding",
    "x-forwarded-for",
    "x-ovn-network-id",
];

/// The name of a header that haproxy passes on and we do not.
fn dropped<'a>(difference: &'a Difference<'_>) -> Option<&'a str> {
    let name = difference.aspect.strip_prefix("request header ")?;
    (difference.theirs.is_some() && difference.ours.is_none()).then_some(name)
}

fn is_claim(name: &str) -> bool {
    let name = name.replace('_', "-");
    CLAIMS.iter().any(|claim| name.starts_with(claim))
}

pub(super) const MANNERS: &[Intended] = &[
    Intended {
        what: "A guest's claims about who it is",
        theirs: "all but two tags are passed on",
        ours: "none is passed on, whatever its spelling",
        why: "Identity is proved by the connection, never by a header.",
        scope: Cases(&[
            "claims another network of OVN",
            "claims everything, with capitals",
            "claims with underscores",
            "claims an instance",
            "claims to be a proxy",
        ]),
        applies: Answered,
        covers: Aspects(|difference| {
            dropped(difference).is_some_and(is_claim)
                // OVN's haproxy adds its tag to the guest's.
                || (difference.is("request header x-ovn-network-id")
                    && difference.ours == Some(TENANT)
                    && difference.theirs.is_some_and(|theirs| theirs.ends_with(TENANT)))
        }),
    },
    Intended {
        what: "A router's or a network's tag sent by a guest of OVN",
        theirs: "passed on",
        ours: "not passed on",
        why: "As above; the OVN agent would take it for a claim of its own kind.",
        scope: Anywhere,
        applies: Agent,
        covers: Aspects(|difference| {
            dropped(difference)
                .is_some_and(|name| ["x-neutron-router-id", "x-neutron-network-id"].contains(&name))
        }),
    },
    Intended {
        what: "`X-Forwarded-For` sent by a guest",
        theirs: "passed on, the guest's address behind it",
        ours: "replaced by the guest's address",
        why: "With the guest's own the agent finds no port, and the guest gets 404.",
        scope: Cases(&[
            "claims another address",
            "claims several addresses",
            "claims everything, with capitals",
        ]),
        applies: Answered,
        covers: Aspects(|difference| {
            difference.is("request header x-forwarded-for")
                && difference.ours == Some("10.0.0.5")
                && difference
                    .theirs
                    .is_some_and(|theirs| theirs.ends_with(" | 10.0.0.5"))
        }),
    },
    Intended {
        what: "Headers that are of no use to the agent",
        theirs: "passed on",
        ours: "not passed on",
        why: "Requests are rebuilt from a list of what is useful: the agent reads 4,096 bytes only, \
              and credentials are nobody else's business.",
        scope: Cases(&[
            "credentials",
            "headers nobody knows",
            "Upgrade: h2c",
            "TE: trailers",
            "Proxy-Connection",
            "Expect: something else",
        ]),
        applies: Answered,
        covers: Aspects(|difference| {
            dropped(difference).is_some_and(|name| {
                !is_claim(name) && !PASSED_ON.contains(&name) && !WRITTEN.contains(&name)
            })
        }),
    },
    Intended {
        what: "A long header of no use to an agent until 2024.2",
        theirs: "passed on",
        ours: "not passed on",
        why: "As above.",
        scope: Cases(&["a head of 5,000 bytes of no use"]),
        applies: Server,
        covers: Aspects(|difference| dropped(difference) == Some("x-custom")),
    },
    Intended {
        what: "`Expect` of a guest",
        theirs: "passed on",
        ours: "answered by us where there is a body, and not passed on",
        why: "The body is read before anything is passed on.",
        scope: Cases(&["Expect: 100-continue without a body"]),
        applies: Answered,
        covers: Aspects(|difference| dropped(difference) == Some("expect")),
    },
    Intended {
        what: "`Expect: 100-continue` with an agent until 2024.2",
        theirs: "passed on",
        ours: "answered by us, and not passed on",
        why: "As above.",
        scope: Cases(&[
            "Expect: 100-continue, and waits",
            "Expect: 100-continue, and does not wait",
        ]),
        applies: Server,
        covers: Aspects(|difference| dropped(difference) == Some("expect")),
    },
    Intended {
        what: "`Connection` sent by a guest",
        theirs: "what it names is passed on, besides `close`",
        ours: "`Connection: close`",
        why: "It concerns one hop only; and no guest has a header taken away by naming it there.",
        scope: Cases(&[
            "has the tag taken for a hop's",
            "has its address taken for a hop's",
            "has Host taken for a hop's",
            "Upgrade: h2c",
            "TE: trailers",
        ]),
        applies: Answered,
        covers: Aspects(|difference| {
            difference.is("request header connection") && difference.ours == Some("close")
        }),
    },
    Intended {
        what: "The version upstream of an HTTP/1.0 request",
        theirs: "HTTP/1.0",
        ours: "HTTP/1.1 and `Connection: close`, as for any other",
        why: "The guest's version is the guest's; one form of request is easier to reason about.",
        scope: Cases(&[
            "HTTP/1.0",
            "HTTP/1.0 and keep-alive",
            "no Host in HTTP/1.0",
            "HEAD of HTTP/1.0",
        ]),
        applies: Answered,
        covers: Aspects(|difference| {
            (difference.is("request version")
                && difference.goes(Some("HTTP/1.0"), Some("HTTP/1.1")))
                || (difference.is("request header connection")
                    && difference.goes(None, Some("close")))
        }),
    },
    Intended {
        what: "The version of the answer to HTTP/1.0, from an agent until 2024.2",
        theirs: "the agent's HTTP/1.1",
        ours: "HTTP/1.0, as the guest asked",
        why: "It is what a guest of that version understands.",
        scope: Cases(&[
            "HTTP/1.0",
            "HTTP/1.0 and keep-alive",
            "no Host in HTTP/1.0",
            "HEAD of HTTP/1.0",
        ]),
        applies: Server,
        covers: Aspects(|difference| {
            (difference.is("answer version") && difference.goes(Some("HTTP/1.1"), Some("HTTP/1.0")))
                || (difference.is("answer header connection")
                    && difference.goes(Some("close"), None))
        }),
    },
    Intended {
        what: "A body in chunks",
        theirs: "passed on in chunks",
        ours: "put together, passed on with `Content-Length`, without trailer and extensions",
        why: "The agent does not decode chunks: it takes their framing for the body.",
        scope: Cases(&[
            "a body in chunks",
            "an empty body in chunks",
            "chunks with extensions and a trailer",
            "Transfer-Encoding: Chunked",
            "chunked in a tab",
        ]),
        applies: Answered,
        covers: Aspects(|difference| {
            (difference.is("request header transfer-encoding") && difference.ours.is_none())
                || (difference.is("request header content-length") && difference.theirs.is_none())
                || (difference.is("request body")
                    && difference
                        .theirs
                        .is_some_and(|theirs| theirs.ends_with("\r\n\r\n")))
        }),
    },
    Intended {
        what: "A body that comes later than its head",
        theirs: "passed on as it comes; the agent reads once, so the rest is lost",
        ours: "passed on with the head, in one write",
        why: "The agent reads once.",
        scope: Cases(&["a body in two writes", "a body behind its head"]),
        applies: Agent,
        covers: Aspects(|difference| {
            difference.is("request body")
                && difference.ours.is_some_and(|ours| ours.ends_with("body"))
        }),
    },
    Intended {
        what: "`Content-Length`",
        theirs: "passed on as it came",
        ours: "written from the length of the body, for POST also if that is 0",
        why: "What frames the message is written by us.",
        scope: Cases(&["POST without body or length", "a length with leading zeros"]),
        applies: Answered,
        covers: Aspects(|difference| {
            difference.is("request header content-length")
                && (difference.goes(None, Some("0")) || difference.goes(Some("0004"), Some("4")))
        }),
    },
    Intended {
        what: "A URL as the target",
        theirs: "passed on",
        ours: "its path and query are passed on",
        why: "Neutron's agent takes everything for a path.",
        scope: Cases(&["a URL", "a URL without a path", "a URL with a user"]),
        applies: Answered,
        covers: Aspects(|difference| {
            difference.is("request target")
                && difference
                    .theirs
                    .is_some_and(|theirs| theirs.starts_with("http://"))
                && difference.ours.is_some_and(|ours| ours.starts_with('/'))
        }),
    },
    Intended {
        what: "How names of headers are written in answers",
        theirs: "`content-type`",
        ours: "`Content-Type`",
        why: "As they are usually written; they mean the same.",
        scope: Anywhere,
        applies: Answered,
        covers: Aspects(|difference| {
            difference.is("answer names")
                && difference.goes(Some("lower case"), Some("with capitals"))
        }),
    },
    Intended {
        what: "`Date` in answers",
        theirs: "as the upstream has it",
        ours: "added where the upstream has none",
        why: "RFC 9110, 6.6.1.",
        scope: Anywhere,
        applies: Answered,
        covers: Aspects(|difference| {
            difference.is("answer header date") && difference.goes(None, Some("(a date)"))
        }),
    },
    Intended {
        what: "Error pages of the proxy's own",
        theirs: "HTML; `400 Bad request`, `408 Request Time-out`, `504 Gateway Time-out`",
        ours: "one line of plain text that says why, or nothing where no request could be read; \
               the usual words for the status",
        why: "They are read by programs and in logs.",
        scope: Anywhere,
        applies: Answered,
        covers: Aspects(|difference| {
            let is_html = difference.theirs == Some("text/html");
            (difference.is("answer header content-type") && is_html)
                || (difference.is("answer header cache-control")
                    && difference.goes(Some("no-cache"), None))
                || (difference.is("answer body")
                    && difference.goes(Some("a page of the proxy's"), Some("nothing")))
                || (difference.is("answer status")
                    && [
                        ("400 Bad request", "400 Bad Request"),
                        ("408 Request Time-out", "408 Request Timeout"),
                        ("504 Gateway Time-out", "504 Gateway Timeout"),
                    ]
                    .contains(&(
                        difference.theirs.unwrap_or_default(),
                        difference.ours.unwrap_or_default(),
                    )))
        }),
    },
    Intended {
        what: "How the end of a short answer in chunks is told",
        theirs: "in chunks",
        ours: "by `Content-Length`",
        why: "Answers of up to 64 KiB are read whole before they are passed on, so that a broken \
              one becomes an error and not half an answer.",
        scope: Cases(&[
            "the answer is in chunks",
            "the answer has a length and chunks",
        ]),
        applies: Answered,
        covers: Aspects(|difference| {
            difference.is("answer framing") && difference.goes(Some("chunks"), Some("length"))
        }),
    },
    Intended {
        what: "Headers of the hop between proxy and agent, in answers",
        theirs: "passed on",
        ours: "not passed on",
        why: "RFC 9110, 7.6.1.",
        scope: Cases(&["the answer has headers of a hop"]),
        applies: Answered,
        covers: Aspects(|difference| {
            difference.is("answer header *")
                && difference.theirs.is_some()
                && difference.ours.is_none()
        }),
    },
    Intended {
        what: "HTTP/2 without TLS",
        theirs: "spoken",
        ours: "not spoken; the connection is closed",
        why: "No client of the metadata service speaks it.",
        scope: Cases(&["the preface of HTTP/2"]),
        applies: Answered,
        covers: Aspects(|difference| {
            difference.is("answer that is no HTTP") && difference.ours.is_none()
        }),
    },
    Intended {
        what: "No agent",
        theirs: "503 at once",
        ours: "503 when the agent is not back within `timeouts.connect`",
        why: "A restart of the agent costs no guest an error.",
        scope: Cases(&["GET"]),
        applies: Absent,
        covers: Aspects(|difference| {
            (difference.is("patience") && difference.goes(Some("none"), Some("a while")))
                || difference.is("answer names")
                || difference.is("answer header date")
                || (difference.is("answer header content-type")
                    && difference.theirs == Some("text/html"))
        }),
    },
];
