//! Runs a case and writes down what the guest got and what the upstream saw, aspect by aspect.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use metadata_proxy_tests::{
    metadata_agent::Request,
    raw_http::{Answer, Connection, Framing, Read},
};

use crate::{
    corpus::{Case, End, Step},
    upstream::{MARK, Upstream},
};

/// Stands for the tenant's UUID.
pub(crate) const TENANT: &str = "(the tenant)";

/// What was seen of one case: from an aspect's name to its value.
pub(crate) type Observation = BTreeMap<String, String>;

/// Longer than any time-out of a proxy in the test.
const PATIENCE: Duration = Duration::from_secs(10);

/// From here on a proxy has waited for the upstream to come back.
const A_WHILE: Duration = Duration::from_secs(1);

const ASK_AGAIN: &[u8] = b"GET /again HTTP/1.1\r\nHost: again\r\nConnection: close\r\n\r\n";

/// What is put into the paths of a case, so that a request that reaches the upstream late is not
/// taken for another case's.
fn mark(number: usize) -> String {
    format!("/case{number:03}")
}

/// The paths that cases ask for.
const PATHS: [&str; 2] = ["/meta", "/answer/"];

/// Runs all cases, one after the other, from inside the guest's namespace.
pub(crate) fn run_all(cases: &[Case], tag: &str, upstream: &Upstream) -> Vec<Observation> {
    upstream.forget();
    let mut seen = Vec::new();
    let mut asked: Vec<Vec<Request>> = vec![Vec::new(); cases.len()];
    let mut heard = 0;
    for (number, case) in cases.iter().enumerate() {
        seen.push(run(case, number));
        let requests = upstream.requests();
        for request in &requests[heard..] {
            if request.target != "/again" {
                let (number, request) = attributed(request, number);
                asked[number].push(request);
            }
        }
        heard = requests.len();
    }
    for (seen, requests) in seen.iter_mut().zip(&asked) {
        note(seen, "requests", requests.len().to_string());
        for (number, request) in (1..).zip(requests) {
            note_request(seen, number, request, tag);
        }
    }
    seen
}

/// Finds which case a request is of, and takes its mark out.
fn attributed(request: &Request, running: usize) -> (usize, Request) {
    let mut request = request.clone();
    let Some(at) = request.target.find("/case") else {
        return (running, request);
    };
    let number = request.target[at + 5..at + 8].parse().unwrap();
    request.target.replace_range(at..at + 8, "");
    (number, request)
}

/// Runs one case.
fn run(case: &Case, number: usize) -> Observation {
    let mut seen = Observation::new();
    let started = Instant::now();
    let mut connection = Connection::open(None, PATIENCE).unwrap();
    let mut answers = 0;
    let mut is_over = false;
    for step in &case.steps {
        match step {
            // The other side may have closed already: what it answered is still read.
            Step::Send(bytes) => drop(connection.send(&marked(bytes, number))),
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
                    if answer.status == 503 && !answer.body.starts_with(MARK.as_bytes()) {
                        let is_late = started.elapsed() >= A_WHILE;
                        note(
                            &mut seen,
                            "patience",
                            if is_late { "a while" } else { "none" },
                        );
                    }
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
                answers += 1;
                note_answer(&mut seen, answers, answer);
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
    note(&mut seen, "answers", answers.to_string());
    seen
}

fn marked(bytes: &[u8], number: usize) -> Vec<u8> {
    let mut marked = bytes.to_vec();
    for path in PATHS {
        let mut from = 0;
        while let Some(at) = marked[from..]
            .windows(path.len())
            .position(|window| window == path.as_bytes())
        {
            let mark = mark(number);
            marked.splice(from + at..from + at, mark.bytes());
            from += at + mark.len() + path.len();
        }
    }
    marked
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
    let is_lower = answer
        .headers
        .iter()
        .all(|(name, _)| *name == name.to_ascii_lowercase());
    note(
        seen,
        aspect("names"),
        if is_lower {
            "lower case"
        } else {
            "with capitals"
        },
    );
    for (name, values) in grouped(&answer.headers) {
        if ["content-length", "transfer-encoding"].contains(&&*name)
            && answer.framing != Framing::Empty
        {
            continue;
        }
        let is_date = name == "date";
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
        1..100 => body.into_owned(),
        long => format!("{long} bytes of the upstream's"),
    };
    note(seen, aspect("body"), body);
}

fn note_request(seen: &mut Observation, number: usize, request: &Request, tag: &str) {
    let aspect = |what: &str| format!("request {number} {what}");
    note(seen, aspect("method"), request.method.clone());
    note(seen, aspect("target"), shown(&request.target));
    note(seen, aspect("version"), request.version.clone());
    for (name, values) in grouped(&request.headers) {
        note(
            seen,
            aspect(&format!("header {name}")),
            shown(&values).replace(tag, TENANT),
        );
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
        all.entry(name.to_ascii_lowercase())
            .or_default()
            .push(value);
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
