//! One event and one set of metrics for each request: the access event *is* the metric.
//!
//! Neither holds a body, a query or a header: those may be secrets.

pub mod line;

use std::{
    pin::Pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Method, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use tracing::{Level, enabled, warn};

use crate::{
    admin::api::LastError,
    identity::{GuestAddress, Tenant},
    upstream::{Answer, AnswerBody, Spent, UpstreamError},
};

/// Bounds of the duration histograms, seconds.
const BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    kind: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// What is counted and timed for the whole node.
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    failures: Family<ReasonLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    connection_failures: Counter,
    sent_bytes: Counter,
    duration: Histogram,
    upstream_duration: Histogram,
    queue_duration: Histogram,
    last_exhausted: AtomicU64,
    last_upstream_failure: AtomicU64,
    last_error: Mutex<Option<LastError>>,
}

impl Metrics {
    /// Makes the metrics and registers them.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let histogram = || Histogram::new(BUCKETS);
        let metrics = Self {
            requests: Family::default(),
            failures: Family::default(),
            refused: Family::default(),
            connection_failures: Counter::default(),
            sent_bytes: Counter::default(),
            duration: histogram(),
            upstream_duration: histogram(),
            queue_duration: histogram(),
            last_exhausted: AtomicU64::new(0),
            last_upstream_failure: AtomicU64::new(0),
            last_error: Mutex::default(),
        };
        registry.register("requests", "Requests answered", metrics.requests.clone());
        registry.register(
            "request_failures",
            "Requests that we answered with an error of our own",
            metrics.failures.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections refused before a byte was read",
            metrics.refused.clone(),
        );
        registry.register(
            "connection_failures",
            "Connections that broke or spoke no HTTP",
            metrics.connection_failures.clone(),
        );
        registry.register_with_unit(
            "sent",
            "Body bytes sent to guests",
            Unit::Bytes,
            metrics.sent_bytes.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "From a request's head to the end of its answer",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register_with_unit(
            "upstream_duration",
            "From a connection to the upstream to its answer",
            Unit::Seconds,
            metrics.upstream_duration.clone(),
        );
        registry.register_with_unit(
            "queue_duration",
            "Spent in the queue for the upstream",
            Unit::Seconds,
            metrics.queue_duration.clone(),
        );
        metrics
    }

    /// Counts a connection that was refused before a byte was read.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts a connection that broke.
    pub fn connection_failed(&self, _: &hyper::Error) {
        self.connection_failures.inc();
    }

    /// Counts a failure to accept; true if it is to be logged, once a second at most.
    #[must_use]
    pub fn accept_failed(&self) -> bool {
        self.refused("exhausted");
        once_a_second(&self.last_exhausted)
    }

    /// Remembers that the upstream failed, and logs it, once a second at most: each is in the access
    /// log anyway.
    pub fn upstream_failed(&self, tenant: Tenant, error: &dyn std::error::Error) {
        if once_a_second(&self.last_upstream_failure) {
            warn!(%tenant, %error, "no answer from the upstream");
            let last = LastError {
                message: error.to_string(),
                at_unix: now_unix(),
            };
            *self
                .last_error
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(last);
        }
    }

    /// The last thing that went wrong with the upstream.
    #[must_use]
    pub fn last_upstream_error(&self) -> Option<LastError> {
        self.last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Has an answer recorded when its last byte is given to the guest, or it is dropped.
    pub fn record(&self, access: Access, answer: Answer) -> Response<Recorded> {
        let labels = RequestLabels {
            kind: access.tenant.kind_name(),
            code: access.status.as_u16(),
        };
        self.requests.get_or_create(&labels).inc();
        if let Some(reason) = access.error {
            self.failures.get_or_create(&ReasonLabel { reason }).inc();
        }
        if let Some(spent) = access.spent {
            self.upstream_duration.observe(spent.upstream.as_secs_f64());
            self.queue_duration.observe(spent.queued.as_secs_f64());
        }
        let record = Record {
            access,
            bytes: 0,
            duration: self.duration.clone(),
            sent_bytes: self.sent_bytes.clone(),
        };
        answer.map(|body| Recorded { body, record })
    }
}

/// True if the last time was more than a second ago.
fn once_a_second(last: &AtomicU64) -> bool {
    let now = now_unix();
    last.swap(now, Ordering::Relaxed) != now
}

fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// What is known of a request when its answer begins.
pub struct Access {
    /// Who asked.
    pub tenant: Tenant,
    /// From which address.
    pub guest: GuestAddress,
    /// How.
    pub method: Method,
    /// For what; only the path is logged.
    pub uri: Uri,
    /// What it got.
    pub status: StatusCode,
    /// Why we answered ourselves, if we did for an error.
    pub error: Option<&'static str>,
    /// When its head was read.
    pub started: Instant,
    /// Where its time went, if an upstream was asked.
    pub spent: Option<Spent>,
    /// Whether it is logged.
    pub is_logged: bool,
}

struct Record {
    access: Access,
    bytes: u64,
    duration: Histogram,
    sent_bytes: Counter,
}

impl Drop for Record {
    fn drop(&mut self) {
        let total = self.access.started.elapsed();
        self.duration.observe(total.as_secs_f64());
        self.sent_bytes.inc_by(self.bytes);
        if self.access.is_logged && enabled!(target: "access", Level::INFO) {
            line::write(&self.access, total, self.bytes);
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The body of an answer that is recorded when it ends.
pub struct Recorded {
    body: AnswerBody,
    record: Record,
}

impl Body for Recorded {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.record.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
