//! What the agent answers, and how that looks on the wire.

use std::{io, thread, time::Duration};

use super::Request;

/// What the agent does about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nova's answer, passed on.
    Nova {
        /// The status.
        status: u16,
        /// The body.
        body: Vec<u8>,
    },
    /// The agent's own page: bare line feeds, HTML that says it is plain text.
    OwnPage {
        /// The status.
        status: u16,
        /// The title.
        title: &'static str,
    },
    /// Closes without a byte, as for a status of nova's that it does not know.
    Silence,
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// One piece after the other with a pause between any two, then the end of the connection.
    Pieces {
        /// The pieces.
        pieces: Vec<Vec<u8>>,
        /// The pause.
        pause: Duration,
    },
}

impl Answer {
    /// A `200 OK` of nova's.
    #[must_use]
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::Nova {
            status: 200,
            body: body.into(),
        }
    }

    /// Writes the answer. Who does not read it, is gone: that is no fault of the agent's.
    pub(crate) fn write(&self, request: &Request, stream: &mut impl io::Write) -> io::Result<()> {
        if let Self::Pieces { pieces, pause } = self {
            for (number, piece) in pieces.iter().enumerate() {
                if number > 0 {
                    thread::sleep(*pause);
                }
                stream.write_all(piece)?;
            }
            return Ok(());
        }
        stream.write_all(&self.encode(request))
    }

    /// The bytes on the wire. The status line echoes the request's version.
    fn encode(&self, request: &Request) -> Vec<u8> {
        match self {
            Self::Nova { status, body } => {
                // webob gives the response to HEAD no body, and says so.
                let body: &[u8] = if request.method == "HEAD" { b"" } else { body };
                let mut bytes = format!(
                    "{} {status} {}\r\nContent-Type: text/plain; charset=UTF-8\r\n\
                     Content-Length: {}\r\n\r\n",
                    request.version,
                    reason(*status),
                    body.len(),
                )
                .into_bytes();
                bytes.extend_from_slice(body);
                bytes
            }
            Self::OwnPage { status, title } => {
                let page = format!(
                    "<html>\n <head>\n  <title>{title}</title>\n </head>\n <body>\n  \
                     <h1>{title}</h1>\n  <br /><br />\n\n\n </body>\n</html>"
                );
                format!(
                    "HTTP/1.1 {status} {title}\nContent-Type: text/plain; charset=UTF-8\n\
                     Connection: close\nContent-Length: {}\n\n{page}",
                    page.len(),
                )
                .into_bytes()
            }
            Self::Silence => Vec::new(),
            Self::Raw(bytes) => bytes.clone(),
            Self::Pieces { pieces, .. } => pieces.concat(),
        }
    }
}

pub(crate) const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Unknown",
    }
}
