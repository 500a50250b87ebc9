//! Why there is no answer, and which status the guest gets for it.

use std::{io, time::Duration};

use http::StatusCode;

/// Why an upstream gave no answer. [`UpstreamError::status`] is what the guest gets for it.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nobody listens, or the socket may not be opened.
    #[error("cannot reach the upstream at {upstream}: {source}")]
    Unreachable {
        /// Which upstream: a socket path or an address.
        upstream: String,
        /// What the connect said.
        source: io::Error,
    },
    /// No answer within the time allowed.
    #[error("the upstream at {upstream} gave no answer within {waited:?}")]
    TimedOut {
        /// Which upstream.
        upstream: String,
        /// How long it was given.
        waited: Duration,
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
    /// Its turn did not come in the time allowed.
    #[error("the upstream at {upstream} had no room for the request within {waited:?}")]
    QueueTimedOut {
        /// Which upstream.
        upstream: String,
        /// How long the request waited for its turn.
        waited: Duration,
    },
    /// The guest closed its side while the request waited.
    #[error("the guest left while its request waited for the upstream at {upstream}")]
    GuestLeft {
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
    /// The status the guest gets: the same as from haproxy, where haproxy has the case.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Unreachable { .. }
            | Self::QueueFull { .. }
            | Self::QueueTimedOut { .. }
            | Self::GuestLeft { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Garbled { .. } => StatusCode::BAD_GATEWAY,
            Self::HeadTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}
