//! A long answer, whose request is in flight until the guest has taken it: else a guest that takes
//! nothing could have as many as it has connections.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::{admission::RequestToken, upstream::UpstreamError};

/// What comes of an answer, passed on as it is.
type Rest = Pin<Box<dyn Body<Data = Bytes, Error = UpstreamError> + Send>>;

/// An answer that keeps its request counted.
pub(super) struct InFlight {
    rest: Rest,
    _request: RequestToken,
}

impl InFlight {
    pub(super) const fn new(rest: Rest, request: RequestToken) -> Self {
        Self {
            rest,
            _request: request,
        }
    }
}

impl Body for InFlight {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        self.rest.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.rest.size_hint()
    }
}
