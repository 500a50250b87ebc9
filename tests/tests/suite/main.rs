//! What the agent promises, seen from outside: real kernel programs in real namespaces, real
//! sockets, real curl and haproxy.
//!
//! One program, so that a virtual machine has one to carry. Each test has a node of its own and
//! may run beside any other.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

mod stage;

mod serving;

mod isolation;
mod syncookies;

mod coexistence;
mod neutron_rules;

mod direct;
mod processes;

mod interfaces;
mod namespaces;
mod repair;

mod drain;
mod map;
mod reload;
mod restart;

//mod framing;
//mod limits;
//mod requests;
//mod upstreams;

//mod admin;
//mod observed;
