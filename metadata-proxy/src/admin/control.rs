//! What the admin socket asks of the agent: one small trait, so that it can be tested with a fake.

use metadata_proxy_common::TenantKind;
use uuid::Uuid;

use super::api::{AddTenant, NodeStatus, TenantStatus};

/// Why the agent did not do what it was asked to. Each message says what, on what, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// What was asked makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// It is about something that is not there.
    #[error("{0}")]
    NotFound(String),
    /// It contradicts what is there.
    #[error("{0}")]
    Conflict(String),
    /// It makes sense, but the node does not allow it.
    #[error("{0}")]
    Impossible(String),
    /// The agent itself failed.
    #[error("{0}")]
    Internal(String),
}

/// The agent, as the admin socket sees it.
pub trait Control: Send + Sync + 'static {
    /// The agent as a whole.
    fn status(&self) -> impl Future<Output = NodeStatus> + Send;

    /// Every tenant.
    fn tenants(&self) -> impl Future<Output = Vec<TenantStatus>> + Send;

    /// Begins to serve a tenant. The namespace reference was validated.
    fn add(
        &self,
        request: AddTenant,
    ) -> impl Future<Output = Result<TenantStatus, ControlError>> + Send;

    /// Ceases to serve a tenant that was added here.
    fn remove(
        &self,
        kind: TenantKind,
        id: Uuid,
    ) -> impl Future<Output = Result<(), ControlError>> + Send;

    /// The metrics in Prometheus' text format.
    fn metrics(&self) -> impl Future<Output = String> + Send;

    /// Whether guests are served; if not, what is missing.
    fn ready(&self) -> impl Future<Output = Result<(), String>> + Send;

    /// Reads the configuration again; tells what changed, or what is wrong.
    fn reload(&self) -> impl Future<Output = Result<String, String>> + Send;

    /// The configuration that holds, as TOML.
    fn config(&self) -> impl Future<Output = String> + Send;
}
