//! One process per node that answers every tenant's metadata requests.
//!
//! The modules stand in the order in which a request meets them; ARCHITECTURE.md tells the story.

// What brings a connection here.
pub mod identity;
pub mod rewrite;
pub mod upstream;

// What an operator sees.
pub mod admin;
pub mod cli;
pub mod config;
