//! What guests claim to be.

use super::{Case, get, post, target};

/// The tenant whose identity guests claim.
const OTHER: &str = "11111111-2222-4333-8444-555555555555";

pub(super) fn claims() -> Vec<Case> {
    vec![
        get("claims another address", "X-Forwarded-For: 10.9.9.9\r\n"),
        get(
            "claims several addresses",
            "X-Forwarded-For: 10.9.9.9, 10.9.9.8\r\nX-Forwarded-For: 10.9.9.7\r\n",
        ),
        get(
            "claims another router",
            &format!("X-Neutron-Router-ID: {OTHER}\r\n"),
        ),
        get(
            "claims another network",
            &format!("X-Neutron-Network-ID: {OTHER}\r\n"),
        ),
        get(
            "claims another network of OVN",
            &format!("X-OVN-Network-ID: {OTHER}\r\n"),
        ),
        get(
            "claims everything, with capitals",
            &format!(
                "X-NEUTRON-ROUTER-ID: {OTHER}\r\nx-neutron-network-id: {OTHER}\r\n\
                 X-Ovn-Network-Id: {OTHER}\r\nX-FORWARDED-FOR: 10.9.9.9\r\n"
            ),
        ),
        get(
            "claims with underscores",
            &format!(
                "X_Neutron_Router_ID: {OTHER}\r\nX_Forwarded_For: 10.9.9.9\r\n\
                 X-Neutron_Network-ID: {OTHER}\r\n"
            ),
        ),
        get(
            "claims an instance",
            &format!(
                "X-Instance-ID: {OTHER}\r\nX-Tenant-ID: {OTHER}\r\n\
                 X-Instance-ID-Signature: 00\r\nX-Metadata-Provider: {OTHER}\r\n\
                 X-Metadata-Provider-Signature: 00\r\n"
            ),
        ),
        get(
            "claims to be a proxy",
            "Forwarded: for=10.9.9.9\r\nX-Real-IP: 10.9.9.9\r\nX-Forwarded-Host: b\r\n\
             X-Forwarded-Proto: https\r\nVia: 1.1 b\r\n",
        ),
        get(
            "has the tag taken for a hop's",
            "Connection: X-Neutron-Router-ID, X-Neutron-Network-ID, X-OVN-Network-ID\r\n",
        ),
        get(
            "has its address taken for a hop's",
            "Connection: keep-alive, X-Forwarded-For\r\n",
        ),
        get("has Host taken for a hop's", "Connection: Host\r\n"),
        get(
            "claims in a folded line",
            &format!("Accept: a\r\n X-Neutron-Router-ID: {OTHER}\r\n"),
        ),
        get(
            "claims behind a bare CR",
            &format!("Accept: a\rX-Neutron-Router-ID: {OTHER}\r\n"),
        ),
        get(
            "claims behind a bare LF",
            &format!("Accept: a\nX-Neutron-Router-ID: {OTHER}\r\n"),
        ),
        target(
            "claims in the target",
            &format!("/meta%0d%0aX-Neutron-Router-ID:%20{OTHER}"),
        ),
        post(
            "smuggles a request: Content-Length and chunks",
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            &format!("0\r\n\r\nGET /smuggled HTTP/1.1\r\nX-Neutron-Router-ID: {OTHER}\r\n\r\n"),
        ),
    ]
}
