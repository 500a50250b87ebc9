//! Who may go on, and in which order: connection caps, rate limits, and the fair queue in front of
//! an upstream.
//!
//! Everything here is shared by all worker threads, does no I/O and keeps bounded memory whatever
//! guests do. It decides from the proved identity and the guest's address only, never from a
//! header.

pub mod bound;
pub mod limits;
mod lines;
mod list;
pub mod queue;
pub mod rate;
mod window;

pub use bound::BoundPolicy;
pub use limits::{Caps, ConnectionToken, Limits, LimitsSnapshot, Refusal, RequestToken};
pub use queue::{Permit, Queue, QueueError, QueueLimits, QueueSnapshot};
pub use rate::{Families, RateLimiter, RateLimits, RateSnapshot, Verdict, WindowLimit};
