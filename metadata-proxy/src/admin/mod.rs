//! The agent's own door: HTTP over a unix socket, for the command line, Prometheus and operators.
//!
//! Only root and the agent's own user are served: the socket's mode says so, and the peer's
//! credentials are checked too. Guests never get here, and nothing here takes part in answering
//! them; whatever a client of this socket does must not disturb a tenant.

pub mod api;
mod client;
mod control;
#[cfg(test)]
pub(crate) mod fake;
mod routes;
mod server;
#[cfg(test)]
mod tests;

pub(crate) use self::server::connect_now;
pub use self::{
    client::{AdminClient, ClientError},
    control::{Control, ControlError},
    server::{AdminServer, BindError},
};
