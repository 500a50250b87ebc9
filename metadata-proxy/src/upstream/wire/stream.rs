//! The body of an answer that is too long, or too slow, to be waited for.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    time::{Instant, Sleep, sleep},
};

use super::{Fault, Rest, body::Piece};
use crate::{admission::Permit, upstream::UpstreamError};

/// What becomes of a connection after a proper end.
pub(in super::super) trait Keep<S>: Send + Unpin + 'static {
    /// Takes a connection that may carry another request.
    fn keep(&self, stream: S);
}

/// Passes a body on as it comes; at most one read of it is held here.
pub(in super::super) struct Streaming<S, K> {
    stream: Option<S>,
    rest: Rest,
    keep: K,
    /// The upstream is busy with this answer until its end.
    permit: Option<Permit>,
    upstream: Arc<str>,
    server: Duration,
    timer: Pin<Box<Sleep>>,
    timer_runs: bool,
}

impl<S, K> Streaming<S, K> {
    pub(in super::super) fn new(
        stream: S,
        rest: Rest,
        keep: K,
        permit: Permit,
        upstream: Arc<str>,
        server: Duration,
    ) -> Self {
        Self {
            stream: Some(stream),
            rest,
            keep,
            permit: Some(permit),
            upstream,
            server,
            timer: Box::pin(sleep(server)),
            timer_runs: false,
        }
    }
}

impl<S: AsyncRead + Unpin, K: Keep<S>> Streaming<S, K> {
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(None);
        };
        let rest = &mut self.rest;
        if !rest.collected.is_empty() {
            return Poll::Ready(Some(Ok(rest.collected.split().freeze())));
        }
        loop {
            match rest.decoder.next(&mut rest.inbox) {
                Err(garbled) => return Poll::Ready(Some(Err(garbled.into()))),
                Ok(Piece::Data(piece)) => return Poll::Ready(Some(Ok(piece.freeze()))),
                Ok(Piece::End) => {
                    let stream = self.stream.take().filter(|_| rest.reusable);
                    if let Some(stream) = stream.filter(|_| rest.inbox.is_empty()) {
                        self.keep.keep(stream);
                    }
                    return Poll::Ready(None);
                }
                Ok(Piece::More) => {}
            }
            rest.inbox.reserve(rest.decoder.room());
            match pin!(stream.read_buf(&mut rest.inbox)).poll(cx) {
                Poll::Ready(Ok(0)) if rest.decoder.ends_with_close() => return Poll::Ready(None),
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Some(Err(Fault::Closed { began: true })));
                }
                Poll::Ready(Ok(_)) => self.timer_runs = false,
                Poll::Ready(Err(source)) => {
                    return Poll::Ready(Some(Err(Fault::Broken {
                        began: true,
                        source,
                    })));
                }
                Poll::Pending => {
                    if !self.timer_runs {
                        self.timer.as_mut().reset(Instant::now() + self.server);
                        self.timer_runs = true;
                    }
                    return match self.timer.as_mut().poll(cx) {
                        Poll::Ready(()) => Poll::Ready(Some(Err(Fault::TimedOut))),
                        Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin, K: Keep<S>> http_body::Body for Streaming<S, K> {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let outcome = std::task::ready!(self.poll_bytes(cx));
        if !matches!(outcome, Some(Ok(_))) {
            // Nothing comes after the end or a fault: the connection and the place are free.
            self.stream = None;
            self.permit = None;
        }
        Poll::Ready(outcome.map(|outcome| match outcome {
            Ok(bytes) => Ok(Frame::data(bytes)),
            Err(fault) => Err(fault.into_error(&self.upstream, self.server)),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.rest.decoder.left() {
            Some(left) => SizeHint::with_exact(left + self.rest.collected.len() as u64),
            None => SizeHint::default(),
        }
    }
}
