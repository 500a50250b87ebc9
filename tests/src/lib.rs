//! Fixtures of the integration tests and of the demo.
//!
//! Every fixture undoes in `Drop` what it did, after a panic too; what a killed process left is
//! removed by the next [`Node`]. Nothing here touches namespaces, cgroups, pins or processes it did
//! not make, and nothing sends traffic beyond them. It must not depend on the agent's crates: tests
//! see the agent as its users do.

pub mod agent;
pub mod cloud_init;
pub mod connection;
pub mod crowd;
pub mod curl;
pub mod document;
pub mod footprint;
pub mod gate;
pub mod haproxy;
pub mod http_agent;
pub mod kept;
pub mod metadata_agent;
pub mod mountinfo;
pub mod netns;
pub mod neutron;
pub mod node;
pub mod process;
pub mod raw_http;
pub mod stage;
pub mod subnet;
pub mod tenant;
pub mod tenant_map;
pub mod wait;
pub mod web;

pub use agent::Agent;
pub use connection::Connection;
pub use curl::Reply;
pub use footprint::Footprint;
pub use gate::Gate;
pub use haproxy::Haproxy;
pub use http_agent::HttpAgent;
pub use metadata_agent::MetadataAgent;
pub use netns::Netns;
pub use neutron::NeutronProxy;
pub use node::Node;
pub use process::Running;
pub use stage::Stage;
pub use subnet::{Guest, Subnet};
pub use tenant::{Kind, METADATA_V4, TenantFixture};
pub use wait::{wait_for, wait_until};
pub use web::Web;
