use http_body_util::BodyExt as _;
use proptest::prelude::*;

use super::{streaming::streaming, *};

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
