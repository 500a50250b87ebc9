//! Cases that end in another way than with haproxy.

use super::{
    Applies::{self, Agent, Answered, Server},
    Covers::Fate,
    Intended,
    Scope::Cases,
};

pub(super) const SERVED: &[&str] = &["200; asked 1; carries on"];
pub(super) const SERVED_LAST: &[&str] = &["200; asked 1; ends"];
const REFUSED: &str = "400; asked 0; ends";

/// What haproxy serves and we refuse with 400.
const fn refused(
    what: &'static str,
    why: &'static str,
    theirs: &'static [&'static str],
    cases: &'static [&'static str],
) -> Intended {
    let (theirs_said, ours_said) = ("passed on", "400");
    row(
        what,
        theirs_said,
        ours_said,
        why,
        Answered,
        cases,
        theirs,
        REFUSED,
    )
}

#[expect(
    clippy::too_many_arguments,
    reason = "a row of a table has as many columns"
)]
pub(super) const fn row(
    what: &'static str,
    theirs_said: &'static str,
    ours_said: &'static str,
    why: &'static str,
    applies: Applies,
    cases: &'static [&'static str],
    theirs: &'static [&'static str],
    ours: &'static str,
) -> Intended {
    Intended {
        what,
        theirs: theirs_said,
        ours: ours_said,
        why,
        scope: Cases(cases),
        applies,
        covers: Fate { theirs, ours },
    }
}

pub(super) const FATES: &[Intended] = &[
    refused(
        "Request lines that only look like HTTP",
        "RFC 9112, 3: one space between three words. What is read in one way only cannot be misread \
         behind us.",
        SERVED,
        &[
            "two spaces in the request line",
            "a tab in the request line",
        ],
    ),
    refused(
        "Versions that do not exist on such a connection",
        "There is 1.0 and 1.1.",
        SERVED,
        &["HTTP/1.2", "HTTP/2.0 in text", "HTTP/3.1"],
    ),
    refused(
        "Targets that are no path and no http URL",
        "The metadata service has nothing there.",
        SERVED,
        &[
            "OPTIONS of *",
            "an https URL",
            "an ftp URL",
            "characters that URLs escape",
        ],
    ),
    refused(
        "Control bytes in a header, folded headers",
        "RFC 9110, 5.5, and RFC 9112, 5.2: a place to hide other headers in.",
        SERVED,
        &[
            "NUL in a value",
            "a control byte in a value",
            "DEL in a value",
            "a folded header",
            "claims in a folded line",
        ],
    ),
    refused(
        "`Content-Length` as a list",
        "RFC 9110, 8.6, allows it to be refused.",
        SERVED,
        &["a list of the same length"],
    ),
    refused(
        "A length that no number holds",
        "haproxy passes it on.",
        &["200, 408; asked 1; ends", "504; asked 0; ends"],
        &["a length of 2^64"],
    ),
    refused(
        "A length beside chunks",
        "RFC 9112, 6.3, allows it to be refused: it ought to be handled as an error.",
        SERVED_LAST,
        &[
            "chunks and a length of 0",
            "smuggles a request: Content-Length and chunks",
        ],
    ),
    refused(
        "Chunks in HTTP/1.0, chunks with bare LF",
        "RFC 9112, 6.1 and 7.1: ways to smuggle a request.",
        SERVED_LAST,
        &["chunks in HTTP/1.0", "chunks that end with bare LF"],
    ),
    row(
        "TRACE",
        "passed on",
        "405",
        "It has no meaning here.",
        Answered,
        &["TRACE"],
        SERVED,
        "405; asked 0; ends",
    ),
    row(
        "CONNECT",
        "passed on",
        "405",
        "It has no meaning here.",
        Answered,
        &["CONNECT"],
        SERVED_LAST,
        "405; asked 0; ends",
    ),
    row(
        "A transfer coding besides chunks",
        "422",
        "501",
        "RFC 9112, 6.1.",
        Answered,
        &["gzip, chunked"],
        &["422; asked 0; ends"],
        "501; asked 0; ends",
    ),
    row(
        "A body beyond the 4,096 bytes the agent reads",
        "cut, silently; 200",
        "413",
        "Half a body is worse than none.",
        Agent,
        &["a body of 5,000 bytes", "a body of 60,000 bytes"],
        // The agent closes with most of the body unread: what haproxy makes of the reset that follows is
        // a matter of chance.
        &[
            "200; asked 1; carries on",
            "200; asked 1; ends",
            "nothing; asked 1; ends",
            "502; asked 1; carries on",
        ],
        "413; asked 0; carries on",
    ),
    row(
        "A body beyond 64 KiB (`limits.body_bytes`)",
        "cut, silently; 200, or nothing",
        "413",
        "As above.",
        Agent,
        &["a body of 100,000 bytes"],
        &[
            "200; asked 1; carries on",
            "200; asked 1; ends",
            "nothing; asked 1; ends",
            "502; asked 1; carries on",
        ],
        "413; asked 0; ends",
    ),
    row(
        "Bodies and heads beyond 4,096 bytes for an agent until 2024.2",
        "passed on",
        "413, 431",
        "It is not known of which release the agent is. Where all are that old, set \
         `upstream.agent.max_request_bytes`.",
        Server,
        &["a body of 5,000 bytes", "a body of 60,000 bytes"],
        SERVED,
        "413; asked 0; carries on",
    ),
    row(
        "The same, heads",
        "passed on",
        "431",
        "As above.",
        Server,
        &[
            "a target of 6,000 bytes",
            "a head of 5,000 bytes",
            "a head of 15,000 bytes",
        ],
        SERVED,
        "431; asked 0; carries on",
    ),
    row(
        "The same, bodies beyond 64 KiB (`limits.body_bytes`)",
        "passed on",
        "413",
        "As above.",
        Server,
        &["a body of 100,000 bytes"],
        SERVED,
        "413; asked 0; ends",
    ),
    row(
        "A head that, rebuilt, is beyond the 4,096 bytes the agent reads",
        "502, since the agent answers nothing",
        "431",
        "It says what is wrong.",
        Agent,
        &[
            "a target of 6,000 bytes",
            "a head of 5,000 bytes",
            "a head of 15,000 bytes",
        ],
        &["502; asked 0; carries on"],
        "431; asked 0; carries on",
    ),
    row(
        "A head beyond those bytes that fits when it is rebuilt",
        "502",
        "served",
        "What is of no use is not passed on.",
        Agent,
        &["a head of 5,000 bytes of no use"],
        &["502; asked 0; carries on"],
        "200; asked 1; carries on",
    ),
    row(
        "A head beyond 16 kB, or more than 100 headers",
        "400",
        "431",
        "RFC 6585, 5: it says what is wrong.",
        Answered,
        &[
            "a target of 20,000 bytes",
            "110 headers",
            "500 headers",
            "a head of 17,000 bytes",
            "a head of 100,000 bytes",
        ],
        &["400; asked 0; ends"],
        "431; asked 0; ends",
    ),
    row(
        "A length that is announced and absurd",
        "passed on",
        "413",
        "Nobody waits for a body that will not be taken.",
        Agent,
        &["a length of 10^18"],
        SERVED_LAST,
        "413; asked 0; ends",
    ),
    row(
        "The same, with an agent until 2024.2",
        "504",
        "413",
        "As above.",
        Server,
        &["a length of 10^18"],
        &["504; asked 0; ends"],
        "413; asked 0; ends",
    ),
    row(
        "`Expect: 100-continue`",
        "passed on; the agent answers without having seen the body",
        "100, then the answer",
        "RFC 9110, 10.1.1.",
        Agent,
        &[
            "Expect: 100-continue, and waits",
            "Expect: 100-continue, and does not wait",
        ],
        SERVED_LAST,
        "100, 200; asked 1; carries on",
    ),
    row(
        "A body that stops half-way",
        "the agent gets what there is",
        "408, and the agent gets nothing",
        "Half a body is worse than none.",
        Agent,
        &["a body that stops", "chunks that stop"],
        SERVED_LAST,
        "408; asked 0; ends",
    ),
    row(
        "The same, with an agent until 2024.2",
        "504",
        "408",
        "The guest is late, not the agent.",
        Server,
        &["a body that stops", "chunks that stop"],
        &["504; asked 0; ends", "408; asked 0; ends"],
        "408; asked 0; ends",
    ),
    row(
        "A guest that ends its side within a body",
        "the agent gets what there is, the guest its answer or nothing",
        "400, and the agent gets nothing",
        "As above.",
        Answered,
        &["half-close inside a body"],
        &[
            "nothing; asked 1; ends",
            "nothing; asked 0; ends",
            "200; asked 1; ends",
        ],
        "400; asked 0; ends",
    ),
    row(
        "A guest that ends its side before or within a head",
        "400",
        "closed without a word",
        "It has asked for nothing; most such guests are gone.",
        Answered,
        &["half-close inside a head", "half-close before anything"],
        &["400; asked 0; ends"],
        "nothing; asked 0; ends",
    ),
    row(
        "Odd things that are harmless",
        "400",
        "served: a fragment and a foreign host are left out, an upgrade is not taken up",
        "Nothing here or behind depends on them.",
        Answered,
        &["a fragment", "a URL of another host", "Upgrade: websocket"],
        &["400; asked 0; ends"],
        "200; asked 1; carries on",
    ),
];
