use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex},
};

use http_body_util::BodyExt as _;

use super::*;
use crate::admission::{BoundPolicy, Queue, QueueLimits};

/// Remembers what is kept.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Vec<Script>>>);

impl Keep<Script> for Kept {
    fn keep(&self, stream: Script) {
        self.0.lock().unwrap().push(stream);
    }
}

pub(super) fn streaming(script: Script, rest: Rest) -> (Streaming, Kept, Arc<Queue>) {
    streaming_within(script, rest, Room::default())
}

fn streaming_within(script: Script, rest: Rest, room: Room) -> (Streaming, Kept, Arc<Queue>) {
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
    let terms = Terms {
        keep: kept.clone(),
        permit,
        room,
        upstream: "/socket".into(),
        server: SERVER,
    };
    let body = Streaming::new(script, rest, terms);
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
async fn a_guest_that_takes_nothing_keeps_no_place_with_the_upstream() {
    let body = vec![b'x'; 3 * COLLECT_LIMIT];
    let length = format!("Content-Length: {}", body.len());
    let (script, rest) = long_answer(&length, body.clone(), End::Hang).await;
    let (mut streaming, kept, queue) = streaming(script, rest);
    timeout(SERVER, async {
        while queue.snapshot().in_flight > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(kept.0.lock().unwrap().len(), 1);
    let taken = (&mut streaming).collect().await.unwrap().to_bytes();
    assert_eq!(taken, body, "all of it is there still");
}

#[tokio::test]
async fn an_answer_beyond_what_is_read_ahead_is_cut_if_nobody_takes_it() {
    let patience = Duration::from_millis(100);
    for (room, size) in [(64 << 20, 2 << 20), (COLLECT_LIMIT, 4 * COLLECT_LIMIT)] {
        let length = format!("Content-Length: {size}");
        let (script, rest) = long_answer(&length, vec![b'x'; size], End::Hang).await;
        let room = Room::of(room, patience);
        let (mut streaming, kept, queue) = streaming_within(script, rest, room);
        let began = Instant::now();
        while queue.snapshot().in_flight > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(began.elapsed() >= patience);
        assert!(kept.0.lock().unwrap().is_empty());
        (&mut streaming).collect().await.unwrap_err();
    }
}

#[tokio::test]
async fn a_guest_that_takes_is_served_where_others_have_used_up_all_room() {
    let body = vec![b'x'; 3 << 20];
    let length = format!("Content-Length: {}", body.len());
    let (script, rest) = long_answer(&length, body.clone(), End::Hang).await;
    let (mut streaming, _, _) = streaming_within(script, rest, Room::of(0, Duration::from_secs(5)));
    let taken = (&mut streaming).collect().await.unwrap().to_bytes();
    assert_eq!(taken.len(), body.len());
}
