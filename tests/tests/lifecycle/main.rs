//! Tenants and the agent itself come, go, fail and are mended.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

mod namespaces;
mod repair;

mod audit;
mod confined;
mod drain;
mod reload;
mod restart;
mod takeover;

mod map;
