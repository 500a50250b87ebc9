//! Runs a case and writes down what the guest got and what the upstream saw, aspect by aspect.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use metadata_proxy_tests::{
    metadata_agent::Request,
    raw_http::{Answer, Connection, Framing, Read},
};

use super::{
    corpus::{Case, End, Step},
    upstream::{MARK, Upstream},
};

/// What was seen of one case: from an aspect's name to its value.
pub type Observation = BTreeMap<String, String>;

/// Longer than any time-out of a proxy in the test.
const PATIENCE: Duration = Duration::from_secs(10);

const ASK_AGAIN: &[u8] = b"GET /again HTTP/1.1\r\nHost: again\r\nConnection: close\r\n\r\n";

/// Runs a case from inside the guest's namespace.
pub fn run(case: &Case, upstream: &Upstream) -> Observation {
    upstream.forget();
    let mut seen = Observation::new();
    let mut connection = Connection::open(None, PATIENCE).unwrap();
    let mut answers = 0;
    let mut is_over = false;
    for step in &case.steps {
        match step {
            // The other side may have closed already: what it answered is still read.
            Step::Send(bytes) => drop(connection.send(bytes)),
            Step::Pause(pause) => std::thread::sleep(*pause),
            Step::Finish => drop(connection.finish()),
            Step::Read(_) if is_over => {}
            Step::Read(method) => {
                let read = connection
                    .answer(method, Instant::now() + PATIENCE)
                    .unwrap();
                is_over = !matches!(read, Read::Answer(_));
                if let Read::Answer(answer) | Read::Cut(answer) = &read {
                    answers += 1;
                    note_answer(&mut seen, answers, answer);
                }
                note_end(&mut seen, &read);
            }
        }
    }
    if !is_over {
        if case.end == End::Ask {
            let _ = connection.send(ASK_AGAIN);
        }
        let read = connection.answer("GET", Instant::now() + PATIENCE).unwrap();
        note_end(&mut seen, &read);
        match &read {
            Read::Answer(answer) if case.end == End::Wait => {
                note_answer(&mut seen, answers + 1, answer);
                let read = connection.answer("GET", Instant::now() + PATIENCE).unwrap();
                note_end(&mut seen, &read);
            }
            Read::Answer(answer) if answer.status != 200 => {
                note(
                    &mut seen,
                    "connection",
                    format!("carries on, with {}", answer.status),
                );
            }
            _ => {}
        }
    }
    let asked = upstream.requests();
    let asked: Vec<_> = asked
        .iter()
        .filter(|request| request.target != "/again")
        .collect();
    note(&mut seen, "requests", asked.len().to_string());
    for (number, request) in (1..).zip(asked) {
        note_request(&mut seen, number, request);
    }
    note(&mut seen, "answers", answers.to_string());
    seen
}

fn note(seen: &mut Observation, aspect: impl Into<String>, value: impl Into<String>) {
    seen.insert(aspect.into(), value.into());
}

/// Whether a close came in order or as a reset depends on what crossed it on the way.
fn note_end(seen: &mut Observation, read: &Read) {
    let end = match read {
        Read::Answer(_) => "carries on",
        Read::Cut(_) => "ends within the answer",
        Read::Closed | Read::Reset => "ends",
        Read::NotHttp(bytes) => {
            let text = String::from_utf8_lossy(bytes).into_owned();
            note(seen, "answer that is no HTTP", text);
            "ends"
        }
        Read::Nothing => "stands still",
    };
    note(seen, "connection", end);
}

fn note_answer(seen: &mut Observation, number: usize, answer: &Answer) {
    let aspect = |what: &str| format!("answer {number} {what}");
    let words = if answer.reason.is_empty() { "" } else { " " };
    let line = format!("{}{words}{}", answer.status, answer.reason);
    note(seen, aspect("status"), line);
    note(seen, aspect("version"), answer.version.clone());
    let framing = match answer.framing {
        Framing::Empty => "no body",
        Framing::Length => "length",
        Framing::Chunked => "chunks",
        Framing::UntilClose => "until the end",
    };
    note(seen, aspect("framing"), framing);
    for (name, values) in grouped(&answer.headers) {
        if ["content-length", "transfer-encoding"].contains(&&*name.to_ascii_lowercase())
            && answer.framing != Framing::Empty
        {
            continue;
        }
        let is_date = name.eq_ignore_ascii_case("date");
        let value = if is_date {
            "(a date)".to_owned()
        } else {
            values
        };
        note(seen, aspect(&format!("header {name}")), value);
    }
    let body = String::from_utf8_lossy(&answer.body);
    let body = match body.len() {
        0 => "nothing".to_owned(),
        _ if !body.contains(MARK) => "a page of the proxy's".to_owned(),
        0..100 => body.into_owned(),
        long => format!("{long} bytes of the upstream's"),
    };
    note(seen, aspect("body"), body);
}

fn note_request(seen: &mut Observation, number: usize, request: &Request) {
    let aspect = |what: &str| format!("request {number} {what}");
    note(seen, aspect("method"), request.method.clone());
    note(seen, aspect("target"), shown(&request.target));
    note(seen, aspect("version"), request.version.clone());
    for (name, values) in grouped(&request.headers) {
        note(seen, aspect(&format!("header {name}")), shown(&values));
    }
    note(
        seen,
        aspect("body"),
        shown(&String::from_utf8_lossy(&request.body)),
    );
}

/// Values of each name, in their order.
fn grouped(headers: &[(String, String)]) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, value) in headers {
        all.entry(name.clone()).or_default().push(value);
    }
    all.into_iter()
        .map(|(name, values)| (name, values.join(" | ")))
        .collect()
}

/// Short enough to be read.
fn shown(text: &str) -> String {
    if text.len() <= 200 {
        text.to_owned()
    } else {
        format!("{} bytes", text.len())
    }
}
