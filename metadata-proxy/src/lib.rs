//! One process per node that answers every tenant's metadata requests.
//!
//! The modules stand in the order in which a request meets them; ARCHITECTURE.md tells the story.

// What brings a connection here.
pub mod identity;
pub mod neutron;
pub mod register;
pub mod rewrite;
pub mod upstream;
