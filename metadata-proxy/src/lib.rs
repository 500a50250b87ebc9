//! One process per node that answers every tenant's metadata requests.
//!
//! The modules stand in the order in which a request meets them; ARCHITECTURE.md tells the story.

pub mod discovery;
pub mod neutron;
pub mod register;

pub mod tenants;

pub mod kernel;
pub mod netlink;
pub mod netns;

pub mod listener;

pub mod identity;

pub mod admission;
pub mod rewrite;
pub mod serve;
pub mod upstream;

pub mod access;

pub mod admin;
pub mod cli;
pub mod config;
pub mod node;

pub mod service_manager;
pub mod takeover;

mod packet;
mod socket;
