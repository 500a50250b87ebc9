//! What a guest is answered and an operator told, through the whole stack: nothing here depends on
//! the kernel.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

mod framing;
mod requests;

mod crowd;
mod limits;
mod upstreams;

mod admin;
mod commands;
mod observed;
