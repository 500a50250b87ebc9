//! Guests' connections reach the agent, and only theirs: real kernel programs in real namespaces,
//! real sockets, real curl and haproxy.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

mod isolation;
mod serving;

mod syncookies;

mod coexistence;
mod neutron_rules;

mod direct;
mod processes;

mod interfaces;
