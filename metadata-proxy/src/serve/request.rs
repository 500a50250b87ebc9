//! One request: admit, rebuild, ask, answer.

use std::{convert::Infallible, sync::atomic::Ordering, time::Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use super::{connection::Guest, in_flight::InFlight};
use crate::{
    access::{Access, Recorded},
    admission::{Refusal, RequestToken, Verdict},
    rewrite::{self, BadRequest},
    tenants::Settings,
    upstream::{Answer, AnswerBody, Spent, UpstreamError},
};

/// Why a request got no answer from an upstream.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error(transparent)]
    Bad(#[from] BadRequest),
    #[error("the body is larger than {limit} bytes")]
    BodyTooLarge { limit: usize },
    #[error("the body did not arrive in time")]
    BodyTimedOut,
    #[error("the body is broken: {0}")]
    BodyBroken(hyper::Error),
    #[error("too many requests: more than the rate limit allows")]
    RateLimited { retry_after_seconds: u64 },
    #[error("too many requests at once: {0}")]
    TooManyAtOnce(#[from] Refusal),
    #[error("this router has no internal network with an address")]
    NoInternalNetwork,
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

/// Whose fault an error is: decides whether an operator should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Guest,
    Upstream,
}

impl RequestError {
    /// The one table from error to status, metric label and whose fault it is.
    const fn verdict(&self) -> (StatusCode, &'static str, Fault) {
        match self {
            Self::Bad(bad) => (bad.status(), "bad_request", Fault::Guest),
            Self::BodyTooLarge { .. } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                Fault::Guest,
            ),
            Self::BodyTimedOut => (StatusCode::REQUEST_TIMEOUT, "body_timeout", Fault::Guest),
            Self::BodyBroken(_) => (StatusCode::BAD_REQUEST, "body_broken", Fault::Guest),
            Self::RateLimited { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limited", Fault::Guest)
            }
            Self::TooManyAtOnce(_) => (
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_at_once",
                Fault::Guest,
            ),
            Self::NoInternalNetwork => (StatusCode::NOT_FOUND, "no_internal_network", Fault::Guest),
            Self::Upstream(error) => match error {
                UpstreamError::HeadTooLarge { .. } => {
                    (error.status(), "head_too_large", Fault::Guest)
                }
                UpstreamError::BodyTooLarge { .. } => {
                    (error.status(), "body_too_large", Fault::Guest)
                }
                UpstreamError::Unreachable { .. } => {
                    (error.status(), "upstream_unreachable", Fault::Upstream)
                }
                UpstreamError::TimedOut { .. } => {
                    (error.status(), "upstream_timeout", Fault::Upstream)
                }
                UpstreamError::Garbled { .. } => {
                    (error.status(), "upstream_garbled", Fault::Upstream)
                }
                UpstreamError::QueueFull { .. } => (error.status(), "queue_full", Fault::Upstream),
                UpstreamError::QueueTimedOut { .. } => {
                    (error.status(), "queue_timeout", Fault::Upstream)
                }
                UpstreamError::GuestLeft { .. } => (error.status(), "guest_left", Fault::Guest),
            },
        }
    }

    /// Whether the connection cannot go on: what follows on it may be the rest of a broken request.
    const fn ends_connection(&self) -> bool {
        match self {
            Self::Bad(_) | Self::BodyTooLarge { .. } | Self::BodyTimedOut | Self::BodyBroken(_) => {
                true
            }
            Self::RateLimited { .. }
            | Self::TooManyAtOnce(_)
            | Self::NoInternalNetwork
            | Self::Upstream(_) => false,
        }
    }

    /// What the guest is told: a short plain text that says which.
    fn into_answer(self) -> Answer {
        let (status, _, _) = self.verdict();
        let body = format!("{} {}\n", status.as_u16(), self.for_guest());
        let mut answer = Response::new(AnswerBody::Full(Bytes::from(body)));
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if self.ends_connection() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Self::RateLimited {
            retry_after_seconds,
        } = self
        {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_seconds));
        }
        answer
    }

    /// The text without what a guest has no business to know: the node's paths and addresses.
    fn for_guest(&self) -> String {
        let text = match self {
            Self::Upstream(UpstreamError::Unreachable { .. }) => {
                "the metadata service cannot be reached"
            }
            Self::Upstream(
                UpstreamError::QueueFull { .. }
                | UpstreamError::QueueTimedOut { .. }
                | UpstreamError::GuestLeft { .. },
            ) => "the metadata service is overloaded",
            Self::Upstream(UpstreamError::TimedOut { .. }) => {
                "the metadata service gave no answer in time"
            }
            Self::Upstream(UpstreamError::Garbled { .. }) => {
                "the metadata service gave no valid answer"
            }
            other => return other.to_string(),
        };
        text.to_owned()
    }
}

/// Answers one request; every way to end is an answer and one access event.
pub(super) async fn answer(
    guest: &Guest,
    request: Request<Incoming>,
) -> Result<Response<Recorded>, Infallible> {
    let started = Instant::now();
    let service = &guest.service;
    service.counters.requests.fetch_add(1, Ordering::Relaxed);
    let settings = service.settings.load();
    let (head, body) = request.into_parts();
    let mut spent = None;
    let outcome = steps(guest, &settings, &head, body, &mut spent).await;
    let (mut answer, error) = match outcome {
        Ok(answer) => (answer, None),
        Err(error) => {
            let (_, label, fault) = error.verdict();
            if fault == Fault::Upstream {
                guest.node.metrics.upstream_failed(service.tenant, &error);
            }
            (error.into_answer(), Some(label))
        }
    };
    let is_ending = guest.node.ends.stopping.is_cancelled();
    if is_ending {
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(header::CONNECTION, close);
    }
    let is_whole = matches!(answer.body(), AnswerBody::Full(_));
    let is_last = is_whole && (is_ending || ends_connection(&head));
    guest.is_last.store(is_last, Ordering::Relaxed);
    let access = Access {
        tenant: service.tenant,
        guest: guest.address,
        method: head.method,
        uri: head.uri,
        status: answer.status(),
        error,
        started,
        spent,
        is_logged: settings.log_access,
    };
    Ok(guest.node.metrics.record(access, answer))
}

/// Whether the guest wants the connection to end with this answer; says no where it is not certain.
fn ends_connection(head: &http::request::Parts) -> bool {
    let wishes = head
        .headers
        .get(header::CONNECTION)
        .map(HeaderValue::as_bytes);
    match head.version {
        Version::HTTP_11 => wishes.is_some_and(|wish| wish.eq_ignore_ascii_case(b"close")),
        Version::HTTP_10 => wishes.is_none(),
        _ => false,
    }
}

/// The steps after the proof, in their order.
async fn steps(
    guest: &Guest,
    settings: &Settings,
    head: &http::request::Parts,
    body: Incoming,
    spent: &mut Option<Spent>,
) -> Result<Answer, RequestError> {
    let checked = rewrite::check(head)?;
    check_length(guest, head)?;
    let in_flight = admit(guest, settings)?;
    if !guest.service.may_forward() {
        return Err(RequestError::NoInternalNetwork);
    }
    let body = collect(body, settings).await?;
    let outgoing = rewrite::rebuild(checked, body, guest.identity, guest.address);
    let spent = spent.insert(Spent::default());
    let answer = settings
        .upstream
        .ask(
            &outgoing,
            settings.upstream_timeouts(),
            spent,
            guest.socket.left(),
        )
        .await?;
    Ok(answer.map(|body| match body {
        AnswerBody::Full(_) => body,
        AnswerBody::Streaming(rest) => {
            AnswerBody::Streaming(Box::pin(InFlight::new(rest, in_flight)))
        }
    }))
}

/// Refuses chunks beside a length, which the parser has hidden.
fn check_length(guest: &Guest, head: &http::request::Parts) -> Result<(), BadRequest> {
    let has_chunks = head.headers.contains_key(header::TRANSFER_ENCODING);
    if has_chunks && guest.has_both_lengths.load(Ordering::Relaxed) {
        return Err(BadRequest::Length);
    }
    Ok(())
}

/// Whether this guest may ask now; counts it either way.
fn admit(guest: &Guest, settings: &Settings) -> Result<RequestToken, RequestError> {
    if let Some(limits) = &settings.rate_limits {
        let tenant = guest.identity.tenant();
        let verdict = guest
            .node
            .rates
            .check(tenant, guest.address, limits, Instant::now());
        if let Verdict::Denied { retry_after } = verdict {
            return Err(RequestError::RateLimited {
                retry_after_seconds: retry_after,
            });
        }
    }
    Ok(guest.admitted.request()?)
}

/// Reads a whole body, within its limits of size and time.
async fn collect(body: Incoming, settings: &Settings) -> Result<Bytes, RequestError> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    tokio::time::timeout(settings.timeouts.request_body, all_of(body, settings))
        .await
        .map_err(|_| RequestError::BodyTimedOut)?
}

async fn all_of(mut body: Incoming, settings: &Settings) -> Result<Bytes, RequestError> {
    let limit = settings.body_bytes;
    if body.size_hint().lower() > limit as u64 {
        return Err(RequestError::BodyTooLarge { limit });
    }
    let mut whole = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(settings.timeouts.client, body.frame())
            .await
            .map_err(|_| RequestError::BodyTimedOut)?;
        let Some(frame) = frame else {
            return Ok(whole.freeze());
        };
        if let Ok(data) = frame.map_err(RequestError::BodyBroken)?.into_data() {
            if whole.len() + data.len() > limit {
                return Err(RequestError::BodyTooLarge { limit });
            }
            whole.extend_from_slice(&data);
        }
    }
}
