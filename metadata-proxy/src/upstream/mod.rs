//! Who answers: a small closed set of kinds behind one function, [`Upstream::ask`].

pub mod embedded;

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};

use crate::rewrite::Outgoing;

/// An answer on its way to the guest. Headers hold no hop-by-hop header and no `Content-Length`
/// unless it is true of the body (an answer to HEAD keeps the one it came with).
pub type Answer = Response<AnswerBody>;

/// The body of an answer.
pub enum AnswerBody {
    /// All of it is here.
    Full(Bytes),
    /// More comes from the upstream.
    Streaming(Pin<Box<dyn Body<Data = Bytes, Error = UpstreamError> + Send>>),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        match &mut *self {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Streaming(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_empty(),
            Self::Streaming(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Streaming(body) => body.size_hint(),
        }
    }
}

/// Why an upstream gave no answer. [`UpstreamError::status`] is what the guest gets for it.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nobody listens, or the socket may not be opened.
    #[error("cannot reach the upstream at {upstream}: {source}")]
    Unreachable {
        /// Which upstream: a socket path or an address.
        upstream: String,
        /// What the connect said.
        source: std::io::Error,
    },
    /// No answer within the time allowed.
    #[error("the upstream at {upstream} gave no answer within {waited:?}")]
    TimedOut {
        /// Which upstream.
        upstream: String,
        /// How long it was given.
        waited: std::time::Duration,
    },
    /// Closed without an answer, or what came is not HTTP.
    #[error("the upstream at {upstream} gave no valid answer: {reason}")]
    Garbled {
        /// Which upstream.
        upstream: String,
        /// What is wrong with it.
        reason: String,
    },
    /// As many requests wait as may.
    #[error("too many requests wait for the upstream at {upstream}")]
    QueueFull {
        /// Which upstream.
        upstream: String,
    },
    /// The request's head does not fit what this upstream can take.
    #[error("a head of {len} bytes does not fit the {limit} bytes the upstream takes")]
    HeadTooLarge {
        /// Length of the encoded head, bytes.
        len: usize,
        /// What fits, bytes.
        limit: usize,
    },
    /// The request's head fits, its body does not.
    #[error("a body of {len} bytes does not fit the {limit} bytes the upstream takes")]
    BodyTooLarge {
        /// Length of the body, bytes.
        len: usize,
        /// What fits, bytes.
        limit: usize,
    },
}

impl UpstreamError {
    /// The status the guest gets.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Unreachable { .. } | Self::QueueFull { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Garbled { .. } => StatusCode::BAD_GATEWAY,
            Self::HeadTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

/// Who answers.
pub enum Upstream {}

impl Upstream {
    /// Asks, and waits for the head of the answer at least.
    ///
    /// # Errors
    /// [`UpstreamError`] if there is no answer to give.
    pub async fn ask(&self, request: Outgoing) -> Result<Answer, UpstreamError> {
        let _ = request;
        match *self {}
    }
}
