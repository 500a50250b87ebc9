//! What guests send: well-formed, odd, malformed, spoofed, slow, large; as data.

mod answers;
mod claims;
mod heads;
mod transfers;

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
        transfers::methods(),
        transfers::connections(),
        heads::hosts(),
        heads::targets(),
        heads::versions(),
        heads::lines(),
        claims::claims(),
        heads::headers(),
        transfers::bodies(),
        transfers::slow(),
        answers::answers(),
    ];
    groups.into_iter().flatten().collect()
}
