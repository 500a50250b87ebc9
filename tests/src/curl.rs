//! Asking as guests do, with curl.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::output;

/// What curl got.
#[derive(Clone, Debug)]
pub struct Reply {
    /// How curl ended: 0, or its number of what went wrong (7 refused, 28 timed out, 52 empty
    /// reply, 56 reset).
    pub exit: i32,
    /// The status, 0 when there was no answer.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// What curl said about an error.
    pub error: String,
}

impl Reply {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The first value of a header, named in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(its, _)| its == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Completes a curl command with the usual arguments and runs it; one that gets no answer is a
/// [`Reply`] too.
pub(crate) fn curl(command: &mut Command, url: &str, arguments: &[&str]) -> Result<Reply> {
    // -q, --noproxy: whatever the machine has configured for curl is not for these tests.
    command.args([
        "-q",
        "--noproxy",
        "*",
        "-sS",
        "--include",
        "--max-time",
        "10",
    ]);
    let output = output(command.args(arguments).arg(url))?;
    let exit = output.status.code().context("curl was killed")?;
    let mut reply = parse(&output.stdout);
    reply.exit = exit;
    String::from_utf8_lossy(&output.stderr)
        .trim()
        .clone_into(&mut reply.error);
    Ok(reply)
}

/// Takes apart what `curl --include` prints: heads, of which all but the last are interim ones.
fn parse(bytes: &[u8]) -> Reply {
    let mut reply = Reply {
        exit: 0,
        status: 0,
        headers: Vec::new(),
        body: Vec::new(),
        error: String::new(),
    };
    let mut rest = bytes;
    while let Some((head, after)) = split_head(rest) {
        let head = String::from_utf8_lossy(head);
        let mut lines = head.lines();
        reply.status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1)?.parse().ok())
            .unwrap_or_default();
        reply.headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        rest = after;
        if reply.status >= 200 {
            break;
        }
    }
    rest.clone_into(&mut reply.body);
    reply
}

/// Splits at the first empty line; the metadata agent ends lines of its own pages with a bare LF.
fn split_head(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut line_start = 0;
    for (index, byte) in bytes.iter().enumerate() {
        if *byte == b'\n' {
            if matches!(&bytes[line_start..index], [] | [b'\r']) {
                return Some((&bytes[..line_start], &bytes[index + 1..]));
            }
            line_start = index + 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interim_response_is_not_the_answer() {
        let reply =
            parse(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nA: b\r\n\r\nno\r\n\r\n");
        assert_eq!(reply.status, 404);
        assert_eq!(reply.header("a"), Some("b"));
        assert_eq!(reply.text(), "no\r\n\r\n");
    }

    #[test]
    fn bare_line_feeds_end_a_head() {
        let reply = parse(b"HTTP/1.1 404 Not Found\nContent-Length: 2\n\nno");
        assert_eq!((reply.status, reply.text()), (404, "no".to_owned()));
    }

    #[test]
    fn no_answer_has_no_status() {
        assert_eq!(parse(b"").status, 0);
    }
}
