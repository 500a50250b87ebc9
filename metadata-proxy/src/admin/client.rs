//! Asks a running agent over its admin socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use metadata_proxy_common::TenantKind;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, task::JoinSet, time::timeout};
use uuid::Uuid;

use super::api::{AddTenant, Done, ErrorBody, NodeStatus, TenantList, TenantStatus};
use crate::identity::kind_name;

/// Largest answer that is read, bytes: 16,384 tenants with many interfaces fit many times.
const MAX_ANSWER: usize = 256 << 20;

/// Why there is no answer from the agent.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "the agent is not running: nobody answers on {} ({source}). Start it with `metadata-proxy \
         run` or `systemctl start metadata-proxy`, or name its socket with --admin-socket",
        socket.display()
    )]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// What connecting said.
        source: io::Error,
    },
    /// This user may not ask.
    #[error("{} may be used by root only, and by the user the agent runs as", socket.display())]
    Denied {
        /// The socket.
        socket: PathBuf,
    },
    /// It did not answer in time.
    #[error("the agent on {} gave no answer within {waited:?}", socket.display())]
    TimedOut {
        /// The socket.
        socket: PathBuf,
        /// How long it was given.
        waited: Duration,
    },
    /// What it answered is not what an agent answers.
    #[error("what answers on {} is not this agent: {reason}", socket.display())]
    Garbled {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with the answer.
        reason: String,
    },
    /// It did not do it; the message is the agent's.
    #[error("{message}")]
    Refused {
        /// The answer's status.
        status: StatusCode,
        /// Why.
        message: String,
    },
}

/// Asks one agent; each question is a connection of its own.
#[derive(Clone, Debug)]
pub struct AdminClient {
    socket: PathBuf,
    patience: Duration,
}

impl AdminClient {
    /// A client of the agent on this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            patience: Duration::from_secs(30),
        }
    }

    /// Gives the agent another time to answer than 30 s.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The agent as a whole.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<NodeStatus, ClientError> {
        self.json(Method::GET, "/v1/status", None).await
    }

    /// Every tenant.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn tenants(&self) -> Result<Vec<TenantStatus>, ClientError> {
        let list: TenantList = self.json(Method::GET, "/v1/tenants", None).await?;
        Ok(list.tenants)
    }

    /// Asks for a tenant to be served.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn add(&self, request: &AddTenant) -> Result<TenantStatus, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| self.garbled(&error))?;
        self.json(Method::POST, "/v1/tenants", Some(body)).await
    }

    /// Asks for a tenant to be served no longer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove(&self, kind: TenantKind, id: Uuid) -> Result<Done, ClientError> {
        let path = format!("/v1/tenants/{}/{id}", kind_name(kind));
        self.json(Method::DELETE, &path, None).await
    }

    /// Whether guests are served; if not, what is missing.
    ///
    /// # Errors
    /// [`ClientError`] if the agent does not answer.
    pub async fn ready(&self) -> Result<Result<(), String>, ClientError> {
        let (status, body) = self.ask(Method::GET, "/readyz", None).await?;
        Ok(if status == StatusCode::OK {
            Ok(())
        } else {
            Err(body.trim_end().to_owned())
        })
    }

    /// The metrics in Prometheus' text format.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        self.text("/metrics").await
    }

    /// The configuration that holds, as TOML.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn config(&self) -> Result<String, ClientError> {
        self.text("/v1/config").await
    }

    /// Makes the agent read its configuration again.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reload(&self) -> Result<Done, ClientError> {
        self.json(Method::POST, "/v1/reload", None).await
    }

    async fn text(&self, path: &str) -> Result<String, ClientError> {
        let (status, body) = self.ask(Method::GET, path, None).await?;
        if status.is_success() {
            Ok(body)
        } else {
            Err(self.refused(status, &body))
        }
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, ClientError> {
        let (status, body) = self.ask(method, path, body).await?;
        if !status.is_success() {
            return Err(self.refused(status, &body));
        }
        serde_json::from_str(&body).map_err(|error| self.garbled(&error))
    }

    fn refused(&self, status: StatusCode, body: &str) -> ClientError {
        if status == StatusCode::FORBIDDEN {
            return ClientError::Denied {
                socket: self.socket.clone(),
            };
        }
        match serde_json::from_str::<ErrorBody>(body) {
            Ok(ErrorBody { error }) => ClientError::Refused {
                status,
                message: error,
            },
            Err(_) => self.garbled(&format!("status {status} without a reason")),
        }
    }

    fn garbled(&self, reason: &dyn std::fmt::Display) -> ClientError {
        ClientError::Garbled {
            socket: self.socket.clone(),
            reason: reason.to_string(),
        }
    }

    /// One exchange: status and body.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(StatusCode, String), ClientError> {
        timeout(self.patience, self.exchange(method, path, body))
            .await
            .unwrap_or_else(|_| {
                Err(ClientError::TimedOut {
                    socket: self.socket.clone(),
                    waited: self.patience,
                })
            })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(StatusCode, String), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            let socket = self.socket.clone();
            match source.kind() {
                io::ErrorKind::PermissionDenied => ClientError::Denied { socket },
                _ => ClientError::NotRunning { socket, source },
            }
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.garbled(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| self.garbled(&error))?;
        // Driven beside the exchange, and gone with it.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let exchange = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, body.to_bytes()))
        };
        let (status, body) = exchange.await.map_err(|error| self.garbled(&error))?;
        let body = String::from_utf8(body.to_vec()).map_err(|error| self.garbled(&error))?;
        Ok((status, body))
    }
}
