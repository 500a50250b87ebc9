//! An agent that only keeps a list, for tests of server, client and command line.

use std::{collections::BTreeMap, sync::Mutex};

use metadata_proxy_common::TenantKind;
use uuid::Uuid;

use super::{
    Control, ControlError,
    api::{
        AddTenant, AuditStatus, Counts, EngineStatus, NamespaceRef, NodeStatus, QueueStatus,
        TenantCounts, TenantState, TenantStatus, UpstreamStatus,
    },
};

/// An agent that only keeps a list.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) tenants: Mutex<BTreeMap<(TenantKind, Uuid), TenantStatus>>,
    /// Answers to `reload` and `ready`.
    pub(crate) broken: bool,
}

impl Control for Fake {
    async fn status(&self) -> NodeStatus {
        let mut tenants = TenantCounts::default();
        self.tenants
            .lock()
            .unwrap()
            .values()
            .for_each(|tenant| tenants.add(tenant.state));
        NodeStatus { tenants, ..node() }
    }

    async fn tenants(&self) -> Vec<TenantStatus> {
        self.tenants.lock().unwrap().values().cloned().collect()
    }

    async fn add(&self, request: AddTenant) -> Result<TenantStatus, ControlError> {
        if request.namespace == NamespaceRef::Pid(1) {
            return Err(ControlError::Impossible(String::from("pid 1 is the host")));
        }
        let tenant = tenant(request.kind, request.id, request.namespace.to_string());
        let mut tenants = self.tenants.lock().unwrap();
        if tenants.contains_key(&(request.kind, request.id)) {
            return Err(ControlError::Conflict(String::from("it is there already")));
        }
        tenants.insert((request.kind, request.id), tenant.clone());
        Ok(tenant)
    }

    async fn remove(&self, kind: TenantKind, id: Uuid) -> Result<(), ControlError> {
        let gone = self.tenants.lock().unwrap().remove(&(kind, id));
        gone.map(drop)
            .ok_or_else(|| ControlError::NotFound(String::from("it is not there")))
    }

    async fn metrics(&self) -> String {
        String::from("# EOF\n")
    }

    async fn ready(&self) -> Result<(), String> {
        if self.broken {
            Err(String::from("no scan was finished yet"))
        } else {
            Ok(())
        }
    }

    async fn reload(&self) -> Result<String, String> {
        if self.broken {
            Err(String::from("FILE:1: x: there is no such key"))
        } else {
            Ok(String::from("nothing changed"))
        }
    }

    async fn config(&self) -> String {
        String::from("workers = 1\n")
    }
}

pub(crate) fn node() -> NodeStatus {
    NodeStatus {
        version: String::from("0.1.0"),
        abi_version: 1,
        pid: 7,
        uptime_seconds: 60,
        kernel: String::from("6.18.0"),
        engine: EngineStatus {
            name: String::from("tc"),
            reason: String::from("it is the best"),
            attach: Some(String::from("tcx")),
        },
        upstream: UpstreamStatus {
            kind: String::from("agent"),
            place: String::from("/x"),
            last_error: None,
        },
        queue: QueueStatus {
            in_flight: 1,
            bound: 4,
            waiting: 0,
        },
        tenants: TenantCounts::default(),
        connections: Counts::default(),
        requests: Counts { open: 1, total: 2 },
        outcomes: BTreeMap::from([(String::from("steered_syn"), 3)]),
        audit: AuditStatus::default(),
        warnings: Vec::new(),
    }
}

pub(crate) fn tenant(kind: TenantKind, id: Uuid, namespace: String) -> TenantStatus {
    TenantStatus {
        kind,
        id,
        namespace,
        netns_inode: 1,
        netns_cookie: 2,
        provider: String::from("admin"),
        state: TenantState::Pending,
        reason: None,
        fault: None,
        proved_unix: None,
        attempts: 0,
        since_unix: 0,
        listener: None,
        interfaces: Vec::new(),
        connections: Counts::default(),
        requests: Counts::default(),
    }
}
