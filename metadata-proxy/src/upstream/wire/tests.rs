use std::{
    collections::VecDeque,
    num::NonZeroU32,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use http::StatusCode;
use http_body_util::BodyExt as _;
use proptest::prelude::*;
use tokio::io::ReadBuf;

use super::*;
use crate::admission::{BoundPolicy, Queue, QueueLimits};

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
    let cases: [(&str, &[u8], u16, &[u8], bool); 13] = [
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
        &[b'a'; 40_000],
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
            .map(|value| value.as_bytes());
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

/// Remembers what is kept.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Script>>>);

impl Keep<Script> for Kept {
    fn keep(&self, stream: Script) {
        self.0.lock().unwrap().push(stream);
    }
}

fn streaming(script: Script, rest: Rest) -> (Streaming<Script, Kept>, Kept, Arc<Queue>) {
    let policy = BoundPolicy::Fixed(NonZeroU32::MIN);
    let queue = Queue::new(
        policy,
        QueueLimits {
            waiting: 1,
            waiting_per_tenant: 1,
        },
    );
    let permit = queue.try_acquire().unwrap();
    let kept = Kept::default();
    let body = Streaming::new(script, rest, kept.clone(), permit, "/socket".into(), SERVER);
    (body, kept, queue)
}

async fn long_answer(framing: &str, body: Vec<u8>, end: End) -> (Script, Rest) {
    let head = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n");
    let mut script = Script::new([Bytes::from(head), Bytes::from(body)], end);
    let received = ask(&Method::GET, &mut script).await.unwrap();
    let Body::Rest(rest) = received.body else {
        panic!("collected")
    };
    (script, rest)
}

#[tokio::test]
async fn long_answers_are_passed_on_as_they_come() {
    let body = vec![b'x'; 2 * COLLECT_LIMIT];
    let chunked = [b"20000\r\n".as_slice(), &body, b"\r\n0\r\n\r\n"].concat();
    let length = format!("Content-Length: {}", body.len());
    for (framing, sent, end, exact, keeps) in [
        (
            length.as_str(),
            body.clone(),
            End::Hang,
            Some(body.len() as u64),
            1,
        ),
        ("Transfer-Encoding: chunked", chunked, End::Hang, None, 1),
        ("X: until close", body.clone(), End::Close, None, 0),
    ] {
        let (script, rest) = long_answer(framing, sent, end).await;
        let (mut streaming, kept, queue) = streaming(script, rest);
        assert_eq!(
            http_body::Body::size_hint(&streaming).exact(),
            exact,
            "{framing}"
        );
        assert_eq!(queue.snapshot().in_flight, 1);
        let passed_on = (&mut streaming).collect().await.unwrap().to_bytes();
        assert_eq!(passed_on, body, "{framing}");
        assert_eq!(
            queue.snapshot().in_flight,
            0,
            "its place is free at the end"
        );
        assert_eq!(kept.0.lock().unwrap().len(), keeps, "{framing}");
    }
}

#[tokio::test]
async fn a_long_answer_that_breaks_off_is_an_error_and_frees_its_place() {
    for (end, status) in [(End::Close, 502), (End::Reset, 502), (End::Hang, 504)] {
        let length = format!("Content-Length: {}", 2 * COLLECT_LIMIT);
        let (script, rest) = long_answer(&length, vec![b'x'; COLLECT_LIMIT], end).await;
        let (mut streaming, kept, queue) = streaming(script, rest);
        let error = (&mut streaming).collect().await.unwrap_err();
        assert_eq!(error.status().as_u16(), status);
        assert_eq!(queue.snapshot().in_flight, 0);
        assert!(kept.0.lock().unwrap().is_empty());
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

/// Everything that can be told about an answer.
fn summary(bytes: &[u8], splits: &[usize], method: &Method) -> String {
    let mut pieces = Vec::new();
    let mut at = 0;
    for split in splits {
        let next = (at + split).min(bytes.len());
        if next > at {
            pieces.push(Bytes::copy_from_slice(&bytes[at..next]));
        }
        at = next;
    }
    if at < bytes.len() {
        pieces.push(Bytes::copy_from_slice(&bytes[at..]));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut script = Script::new(pieces, End::Close);
        match ask(method, &mut script).await {
            Err(Fault::Garbled(_)) => "garbled".to_owned(),
            Err(fault) => format!("{fault:?}"),
            Ok(Received {
                head,
                body: Body::Whole { bytes, .. },
            }) => {
                format!("{} {:?} {bytes:?}", head.status, head.headers)
            }
            Ok(Received {
                head,
                body: Body::Rest(rest),
            }) => {
                let body = streaming(script, rest).0.collect().await;
                let body = body.map(http_body_util::Collected::to_bytes);
                format!("{} {:?} {body:?}", head.status, head.headers)
            }
        }
    })
}

fn answers() -> impl Strategy<Value = Vec<u8>> {
    let line_end = prop_oneof![Just("\n"), Just("\r\n")];
    let body = proptest::collection::vec(any::<u8>(), 0..600);
    (
        line_end,
        body,
        0_u8..3,
        proptest::collection::vec(1_usize..90, 1..20),
    )
        .prop_map(|(end, body, framing, chunks)| {
            let mut answer = format!("HTTP/1.1 200 OK{end}X-One: 1{end}").into_bytes();
            match framing {
                0 => {
                    answer.extend(format!("Content-Length: {}{end}{end}", body.len()).bytes());
                    answer.extend(&body);
                }
                1 => {
                    answer.extend(format!("Transfer-Encoding: chunked{end}{end}").bytes());
                    let mut rest = &body[..];
                    for chunk in chunks.iter().cycle() {
                        let (now, later) = rest.split_at((*chunk).min(rest.len()));
                        answer.extend(format!("{:x}{end}", now.len()).bytes());
                        if now.is_empty() {
                            answer.extend(end.bytes());
                            break;
                        }
                        answer.extend(now);
                        answer.extend(end.bytes());
                        rest = later;
                    }
                }
                _ => {
                    answer.extend(end.bytes());
                    answer.extend(&body);
                }
            }
            answer
        })
}

proptest! {
    #[test]
    fn an_answer_is_the_same_however_it_is_split(
        answer in answers(),
        splits in proptest::collection::vec(1_usize..40, 0..60),
    ) {
        let whole = summary(&answer, &[], &Method::GET);
        prop_assert!(whole.starts_with("200 OK"), "{}", whole);
        prop_assert_eq!(summary(&answer, &splits, &Method::GET), whole);
    }

    #[test]
    fn an_altered_answer_is_the_same_however_it_is_split(
        mut answer in answers(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        splits in proptest::collection::vec(1_usize..40, 0..60),
    ) {
        let at = at.index(answer.len());
        answer[at] = byte;
        let whole = summary(&answer, &[], &Method::GET);
        prop_assert_eq!(summary(&answer, &splits, &Method::GET), whole);
    }

    #[test]
    fn no_bytes_make_it_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..2_000),
        prefix in prop_oneof![Just(""), Just("HTTP/1.1 200 OK\r\n"), Just("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")],
        splits in proptest::collection::vec(1_usize..200, 0..20),
    ) {
        let bytes = [prefix.as_bytes(), &bytes].concat();
        summary(&bytes, &splits, &Method::GET);
    }
}
