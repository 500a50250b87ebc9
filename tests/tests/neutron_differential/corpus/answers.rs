//! What upstreams answer.

use super::{Case, answered};

pub(super) fn answers() -> Vec<Case> {
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
