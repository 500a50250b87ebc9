//! One process per node that answers every tenant's metadata requests.
//!
//! The modules stand in the order in which a request meets them; ARCHITECTURE.md tells the story.

pub mod config;

pub mod kernel;
pub mod netlink;
pub mod netns;

pub mod listener;

pub mod identity;
pub mod rewrite;
pub mod upstream;
