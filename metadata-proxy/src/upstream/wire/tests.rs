mod properties;
mod streaming;

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderValue, StatusCode};
use tokio::io::ReadBuf;

use super::*;

/// A connection on which prepared pieces come, one for each read.
struct Script {
    pieces: VecDeque<Bytes>,
    end: End,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Close,
    Reset,
    Hang,
}

impl Script {
    fn new(pieces: impl IntoIterator<Item = impl Into<Bytes>>, end: End) -> Self {
        Self {
            pieces: pieces.into_iter().map(Into::into).collect(),
            end,
        }
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let end = self.end;
        let Some(piece) = self.pieces.front_mut() else {
            return match end {
                End::Close => Poll::Ready(Ok(())),
                End::Reset => Poll::Ready(Err(io::Error::from_raw_os_error(libc::ECONNRESET))),
                End::Hang => Poll::Pending,
            };
        };
        let len = piece.len().min(buffer.remaining());
        buffer.put_slice(&piece.split_to(len));
        if piece.is_empty() {
            self.pieces.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

const SERVER: Duration = Duration::from_millis(50);

async fn ask(method: &Method, script: &mut Script) -> Result<Received, Fault> {
    exchange(script, b"", method, SERVER).await
}

/// What an answer to GET that ends with a close is read as.
async fn read_whole(bytes: &[u8]) -> Result<(StatusCode, Bytes, bool), Fault> {
    let mut script = Script::new([Bytes::copy_from_slice(bytes)], End::Close);
    let received = ask(&Method::GET, &mut script).await?;
    match received.body {
        Body::Whole { bytes, reusable } => Ok((received.head.status, bytes, reusable)),
        Body::Rest(_) => panic!("not whole"),
    }
}

#[tokio::test]
async fn what_haproxy_reads_from_the_agent_is_read() {
    /// Name, answer; status, body, whether the connection can be used again.
    type Case = (&'static str, &'static [u8], u16, &'static [u8], bool);
    let cases: [Case; 13] = [
        ("length", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, b"abc", true),
        (
            "bare LF, as the agent's own error pages have it",
            b"HTTP/1.1 404 Not Found\nContent-Type: text/plain; charset=UTF-8\nConnection: close\n\
              Content-Length: 7\n\n<html>\n",
            404,
            b"<html>\n",
            false,
        ),
        ("until close", b"HTTP/1.1 200 OK\r\n\r\nabc", 200, b"abc", false),
        ("HTTP/1.0", b"HTTP/1.0 200 OK\r\n\r\nabc", 200, b"abc", false),
        ("no reason", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, b"", true),
        (
            "an empty answer with two superfluous line ends",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n\r\n\r\n",
            200,
            b"",
            false,
        ),
        ("empty lines before", b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", 200, b"a", true),
        (
            "surplus bytes",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n\r\n",
            200,
            b"abc",
            false,
        ),
        (
            "interim answers",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n\
              HTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\na",
            201,
            b"a",
            true,
        ),
        (
            "chunked",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
              3;x=y\r\nabc\r\n0A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n",
            200,
            b"abc0123456789",
            true,
        ),
        (
            "chunked with bare LF",
            b"HTTP/1.1 200 OK\nTransfer-Encoding: Chunked\n\n3\nabc\n0\n\n",
            200,
            b"abc",
            true,
        ),
        (
            "chunked beside a length, which does not count",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            200,
            b"a",
            false,
        ),
        (
            "the same length twice",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\nContent-Length: 1\r\n\r\na",
            200,
            b"a",
            true,
        ),
    ];
    for (name, bytes, status, body, reusable) in cases {
        let read = read_whole(bytes)
            .await
            .unwrap_or_else(|fault| panic!("{name}: {fault:?}"));
        assert_eq!(
            (read.0.as_u16(), &read.1[..], read.2),
            (status, body, reusable),
            "{name}"
        );
    }
}

#[tokio::test]
async fn what_is_no_answer_is_refused_with_502() {
    let long = [
        b"HTTP/1.1 200 OK\r\nx: ".as_slice(),
        &vec![b'a'; 40_000],
        b"\r\n\r\n",
    ]
    .concat();
    let many = [
        b"HTTP/1.1 200 OK\r\n".as_slice(),
        &b"a: b\r\n".repeat(200),
        b"\r\n",
    ]
    .concat();
    let cases: [(&str, &[u8]); 18] = [
        ("silence", b""),
        ("garbage", b"\x16\x03\x01\x02\x00"),
        ("HTTP/0.9", b"<html>hello</html>\r\n"),
        ("HTTP/2", b"HTTP/2 200 OK\r\n\r\n"),
        ("no head end", b"HTTP/1.1 200 OK\r\nContent-Length: 0"),
        (
            "short body",
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc",
        ),
        (
            "two lengths",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        ),
        (
            "signed length",
            b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
        ),
        (
            "huge length",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nabc",
        ),
        (
            "unknown coding",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        ),
        (
            "two codings",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "unfinished chunks",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ),
        (
            "signed chunk",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
        ),
        (
            "sizeless chunk",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n",
        ),
        (
            "overlong chunk",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
        ),
        (
            "protocol switch",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        ),
        ("long head", &long),
        ("many headers", &many),
    ];
    for (name, bytes) in cases {
        let Err(fault) = read_whole(bytes).await else {
            panic!("{name} was taken for an answer")
        };
        let error = fault.into_error("/socket", SERVER);
        assert_eq!(error.status(), StatusCode::BAD_GATEWAY, "{name}: {error}");
        assert!(error.to_string().contains("/socket"), "{error}");
    }
}

#[tokio::test]
async fn answers_without_a_body_end_with_their_head() {
    for (method, head) in [
        (Method::HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"),
        (
            Method::HEAD,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        (Method::HEAD, "HTTP/1.1 200 OK\r\n\r\n"),
        (Method::GET, "HTTP/1.1 204 No Content\r\n\r\n"),
        (
            Method::GET,
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n",
        ),
    ] {
        let mut script = Script::new([head], End::Hang);
        let received = ask(&method, &mut script).await.unwrap();
        let Body::Whole { bytes, reusable } = received.body else {
            panic!("{head}")
        };
        assert!(bytes.is_empty() && reusable, "{head}");
        let length = received
            .head
            .headers
            .get("content-length")
            .map(HeaderValue::as_bytes);
        let kept = method == Method::HEAD && head.contains("Content-Length");
        assert_eq!(length, kept.then_some(b"3".as_slice()), "{head}");
    }
}

#[tokio::test]
async fn only_end_to_end_headers_are_passed_on() {
    let head = "HTTP/1.1 200 Fine\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\n\
                X-Hop: 1\r\nProxy-Authenticate: x\r\nTE: trailers\r\nTrailer: x\r\nUpgrade: h2c\r\n\
                Content-Length: 0\r\nContent-Type: text/plain\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\
                X-Folded: one\r\n two\r\n\r\n";
    let mut script = Script::new([head], End::Close);
    let received = ask(&Method::GET, &mut script).await.unwrap();
    let mut headers: Vec<String> = received
        .head
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    headers.sort();
    assert_eq!(
        headers,
        [
            "content-type: text/plain",
            "set-cookie: a",
            "set-cookie: b",
            "x-folded: one   two"
        ]
    );
    assert_eq!(received.head.reason.unwrap().as_bytes(), b"Fine");
}

#[tokio::test]
async fn connections_are_reusable_only_where_both_sides_know() {
    for (head, reusable) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", true),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Close\r\n\r\na",
            false,
        ),
        ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", false),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\na",
            true,
        ),
    ] {
        assert_eq!(
            read_whole(head.as_bytes()).await.unwrap().2,
            reusable,
            "{head}"
        );
    }
}

#[tokio::test]
async fn how_a_connection_ended_is_told_apart() {
    let ends = [
        (vec![], End::Close, false, true, false),
        (vec![], End::Reset, true, true, false),
        (
            vec!["HTTP/1.1 200 OK\r\nContent-Le"],
            End::Close,
            false,
            false,
            true,
        ),
        (
            vec!["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"],
            End::Reset,
            false,
            false,
            true,
        ),
    ];
    for (pieces, end, unread, unanswered, began) in ends {
        let mut script = Script::new(pieces, end);
        let Err(fault) = ask(&Method::GET, &mut script).await else {
            panic!("an answer")
        };
        assert!(fault.is_gone());
        assert_eq!(
            (fault.is_unread(), fault.is_unanswered()),
            (unread, unanswered)
        );
        assert_eq!(!fault.is_unanswered(), began);
    }
}

#[tokio::test]
async fn an_upstream_that_says_nothing_more_is_given_up() {
    for pieces in [
        vec![],
        vec!["HTTP/1.1 200 OK\r\nContent-Le"],
        vec!["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"],
    ] {
        let mut script = Script::new(pieces, End::Hang);
        let Err(fault) = ask(&Method::GET, &mut script).await else {
            panic!("an answer")
        };
        let error = fault.into_error("/socket", SERVER);
        assert_eq!(error.status(), StatusCode::GATEWAY_TIMEOUT);
    }
}

#[tokio::test]
async fn answers_up_to_the_limit_are_collected() {
    let body = vec![b'x'; COLLECT_LIMIT];
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let read = read_whole(&[head.as_bytes(), &body].concat())
        .await
        .unwrap();
    assert_eq!(read.1, body);
}
