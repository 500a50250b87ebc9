//! The head of an answer: status, headers fit to pass on, and how its body is framed.

use std::{borrow::Cow, mem::MaybeUninit};

use bytes::{Buf as _, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use httparse::{Header, ParserConfig, Status};
use hyper::ext::ReasonPhrase;

use super::Garbled;

/// More than haproxy takes (101).
const MAX_HEADERS: usize = 128;

/// How long the body is, and how to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    Empty,
    /// So many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
    /// Until the upstream closes.
    UntilClose,
}

/// The head of a final answer.
#[derive(Debug)]
pub(in super::super) struct Head {
    pub(in super::super) status: StatusCode,
    /// Without hop-by-hop headers; with `Content-Length` only in an answer to HEAD.
    pub(in super::super) headers: HeaderMap,
    /// The words after the status, where they are not the usual ones.
    pub(in super::super) reason: Option<ReasonPhrase>,
    pub(super) framing: Framing,
    /// Whether the connection may carry another request after the body.
    pub(super) reusable: bool,
}

/// Takes the head of the final answer out of `input`; `None` if it has not come whole.
///
/// Interim answers before it are skipped.
pub(super) fn parse(input: &mut BytesMut, method: &Method) -> Result<Option<Head>, Garbled> {
    loop {
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut []);
        let parsed = ParserConfig::default()
            .allow_obsolete_multiline_headers_in_responses(true)
            .parse_response_with_uninit_headers(&mut response, input, &mut headers)
            .map_err(|error| Garbled(Cow::Owned(format!("its head does not parse: {error}"))))?;
        let Status::Complete(len) = parsed else {
            return Ok(None);
        };
        let code = response.code.unwrap_or_default();
        match code {
            101 => return Err("it switches to a protocol nobody asked for".into()),
            100..=199 => input.advance(len),
            _ => {
                let head = head(&response, code, method)?;
                input.advance(len);
                return Ok(Some(head));
            }
        }
    }
}

fn head(
    response: &httparse::Response<'_, '_>,
    code: u16,
    method: &Method,
) -> Result<Head, Garbled> {
    let status =
        StatusCode::from_u16(code).map_err(|_| Garbled::from("its status is no status"))?;
    let mut lengths = Lengths::default();
    let mut hops = Hops::default();
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| Garbled::from("a header's name is none"))?;
        match name {
            header::CONTENT_LENGTH => {
                lengths.announce(field)?;
                if method == Method::HEAD {
                    headers.insert(name, value(field)?);
                }
            }
            header::TRANSFER_ENCODING => lengths.transfer(field)?,
            header::CONNECTION => hops.read(field),
            _ if is_hop_by_hop(&name) => {}
            _ => {
                headers.append(name, value(field)?);
            }
        }
    }
    hops.strip(&mut headers);

    let framing = if method == Method::HEAD || matches!(code, 204 | 304) {
        Framing::Empty
    } else {
        lengths.framing()
    };
    let keeps = if response.version == Some(1) {
        !hops.close
    } else {
        hops.keep_alive
    };
    let reason = response
        .reason
        .filter(|reason| Some(*reason) != status.canonical_reason());
    Ok(Head {
        status,
        headers,
        reason: reason.and_then(|reason| ReasonPhrase::try_from(reason.as_bytes()).ok()),
        framing,
        reusable: keeps && framing != Framing::UntilClose && !lengths.contradict(),
    })
}

fn value(field: &Header<'_>) -> Result<HeaderValue, Garbled> {
    let invalid = |_| Garbled::from("a header's value is none");
    if memchr::memchr2(b'\r', b'\n', field.value).is_some() {
        // A folded line; one line again, as haproxy makes it.
        let line = field.value.iter().map(|byte| match byte {
            b'\r' | b'\n' => b' ',
            byte => *byte,
        });
        return HeaderValue::from_bytes(&line.collect::<Vec<_>>()).map_err(invalid);
    }
    HeaderValue::from_bytes(field.value).map_err(invalid)
}

/// Elements of a comma-separated list.
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(*name, header::TE | header::TRAILER | header::UPGRADE)
        || name.as_str() == "keep-alive"
        || name.as_str().starts_with("proxy-")
}

/// What `Connection` says.
#[derive(Default)]
struct Hops {
    close: bool,
    keep_alive: bool,
    named: Vec<HeaderName>,
}

impl Hops {
    fn read(&mut self, field: &Header<'_>) {
        for element in elements(field.value) {
            if element.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if element.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if let Ok(name) = HeaderName::from_bytes(element) {
                self.named.push(name);
            }
        }
    }

    fn strip(&self, headers: &mut HeaderMap) {
        for name in &self.named {
            headers.remove(name);
        }
    }
}

/// What the head says of the body's length.
#[derive(Default)]
struct Lengths {
    announced: Option<u64>,
    chunked: bool,
}

impl Lengths {
    fn announce(&mut self, field: &Header<'_>) -> Result<(), Garbled> {
        for element in elements(field.value) {
            let digits = std::str::from_utf8(element)
                .ok()
                .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let length = digits
                .and_then(|text| text.parse().ok())
                .ok_or(Garbled::from("its Content-Length is no length"))?;
            if self
                .announced
                .replace(length)
                .is_some_and(|other| other != length)
            {
                return Err("it has more than one Content-Length".into());
            }
        }
        Ok(())
    }

    fn transfer(&mut self, field: &Header<'_>) -> Result<(), Garbled> {
        if self.chunked || !field.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err("it has a transfer coding other than chunked".into());
        }
        self.chunked = true;
        Ok(())
    }

    /// `Transfer-Encoding` wins (RFC 9112, 6.3).
    const fn framing(&self) -> Framing {
        match (self.chunked, self.announced) {
            (true, _) => Framing::Chunked,
            (false, Some(0)) => Framing::Empty,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::UntilClose,
        }
    }

    const fn contradict(&self) -> bool {
        self.chunked && self.announced.is_some()
    }
}
