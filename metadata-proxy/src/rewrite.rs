//! Builds the request that goes upstream, from an allow-list; the tag comes first.
//!
//! Nothing a guest sends can name an identity, claim a forwarding, or frame a message: what is not
//! on the list never leaves, and what frames the message is written here.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};

use uuid::Uuid;

use crate::identity::{GuestAddress, Identity};

/// A request as it goes upstream: rebuilt, never edited.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Who asks.
    pub identity: Identity,
    /// The guest's address, which replaces whatever `X-Forwarded-For` the guest sent.
    pub guest: GuestAddress,
    /// The method, any token.
    pub method: Method,
    /// Path and query in origin form: starts with `/`, holds no control byte, space or fragment.
    pub target: String,
    /// Allowed headers the guest sent, in its order, without `Content-Length` and without anything
    /// that names an identity or frames a message.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The whole body; empty when there is none.
    pub body: Bytes,
}

impl Outgoing {
    /// Whether a `Content-Length` is to be sent although the body is empty.
    fn announces_body(&self) -> bool {
        !self.body.is_empty() || matches!(self.method, Method::POST | Method::PUT | Method::PATCH)
    }

    /// Appends head and body, the tag first, to `out`: one message for one write.
    ///
    /// `connection` is the value of the `Connection` header, `close` or `keep-alive`.
    pub fn encode(&self, connection: &'static str, out: &mut BytesMut) {
        let tenant = self.identity.tenant();
        out.put_slice(self.method.as_str().as_bytes());
        out.put_u8(b' ');
        out.put_slice(self.target.as_bytes());
        out.put_slice(b" HTTP/1.1\r\n");
        let mut id = Uuid::encode_buffer();
        let id = tenant.id.hyphenated().encode_lower(&mut id);
        put_header(out, tenant.tag_text(), id.as_bytes());
        out.put_slice(b"X-Forwarded-For: ");
        self.guest.write_to(out);
        out.put_slice(b"\r\n");
        for (name, value) in &self.headers {
            put_header(out, name.as_str(), value.as_bytes());
        }
        if self.announces_body() {
            put_header(
                out,
                "content-length",
                self.body.len().to_string().as_bytes(),
            );
        }
        put_header(out, "connection", connection.as_bytes());
        out.put_slice(b"\r\n");
        out.put_slice(&self.body);
    }
}

fn put_header(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// Headers that guests may send upstream. Whatever is not here is dropped: headers that claim an
/// identity or a forwarding, that frame the message or concern this hop, and names with `_`, which
/// some servers take for names with `-`.
static ALLOWED: [HeaderName; 17] = [
    header::HOST,
    header::USER_AGENT,
    header::ACCEPT,
    header::ACCEPT_CHARSET,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_UNMODIFIED_SINCE,
    header::PRAGMA,
    header::RANGE,
    // EC2's session tokens (IMDSv2), which clients send whether or not the upstream knows them.
    HeaderName::from_static("x-aws-ec2-metadata-token"),
    HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds"),
];

/// Why a request that parsed is still not one to forward.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// The target is neither a path nor an `http` URL.
    #[error("the request target is neither a path nor an http URL")]
    Target,
    /// `CONNECT` and `TRACE` make no sense here.
    #[error("the method {0} is not served")]
    Method(Method),
    /// More than one `Host`.
    #[error("there is more than one Host header")]
    Host,
    /// A transfer coding besides `chunked`: the body would be forwarded undecoded.
    #[error("no transfer coding but chunked is known here")]
    Coding,
    /// `Content-Length` beside `Transfer-Encoding`, or more than one of either.
    #[error("the length of the body is given in conflicting ways")]
    Length,
}

impl BadRequest {
    /// The status the guest gets.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            // RFC 9112, 6.1.
            Self::Coding => StatusCode::NOT_IMPLEMENTED,
            Self::Target | Self::Host | Self::Length => StatusCode::BAD_REQUEST,
        }
    }
}

/// A request head that [`check`] found nothing wrong with: only such a one can be rebuilt.
#[derive(Clone, Copy, Debug)]
pub struct Checked<'a> {
    head: &'a http::request::Parts,
    target: &'a str,
}

/// Checks what the parser leaves to the application, before the body is read.
///
/// # Errors
/// [`BadRequest`].
pub fn check(head: &http::request::Parts) -> Result<Checked<'_>, BadRequest> {
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        return Err(BadRequest::Method(head.method.clone()));
    }
    let target = target(&head.uri)?;
    // None at all, or the same one again, is forgiven, as by haproxy: guests' scripts may rely on it,
    // and nothing here or behind depends on it.
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.any(|other| Some(other) != host) {
        return Err(BadRequest::Host);
    }
    let lengths = head.headers.get_all(header::CONTENT_LENGTH).iter().count();
    let encodings = head
        .headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .count();
    if lengths + encodings > 1 {
        return Err(BadRequest::Length);
    }
    let coding = head.headers.get(header::TRANSFER_ENCODING);
    if coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(BadRequest::Coding);
    }
    Ok(Checked { head, target })
}

/// Builds the request that goes upstream.
#[must_use]
pub fn rebuild(
    checked: Checked<'_>,
    body: Bytes,
    identity: Identity,
    guest: GuestAddress,
) -> Outgoing {
    let Checked { head, target } = checked;
    Outgoing {
        identity,
        guest,
        method: head.method.clone(),
        target: target.to_owned(),
        headers: allowed(&head.headers),
        body,
    }
}

fn allowed(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let mut kept = Vec::with_capacity(headers.len().min(ALLOWED.len()));
    for (name, value) in headers {
        let is_again = *name == header::HOST && kept.iter().any(|(its, _)| its == name);
        if ALLOWED.contains(name) && !is_again {
            kept.push((name.clone(), value.clone()));
        }
    }
    kept
}

/// Path and query. A guest that takes us for a proxy sends a whole URL; its host part counts as
/// little as the `Host` header does.
fn target(uri: &Uri) -> Result<&str, BadRequest> {
    let is_http = uri
        .scheme()
        .is_none_or(|scheme| *scheme == http::uri::Scheme::HTTP);
    let has_both_or_neither = uri.scheme().is_some() == uri.authority().is_some();
    match uri.path_and_query() {
        Some(path) if is_http && has_both_or_neither && is_origin_form(path.as_str()) => {
            Ok(path.as_str())
        }
        _ => Err(BadRequest::Target),
    }
}

/// The parser lets bytes beyond ASCII through, which are in no URL (RFC 3986).
fn is_origin_form(target: &str) -> bool {
    target.starts_with('/') && target.is_ascii()
}

#[cfg(test)]
mod tests {
    use metadata_proxy_common::TenantKind;
    use proptest::prelude::*;

    use super::*;
    use crate::identity::Tenant;

    const TENANT: Tenant = Tenant {
        kind: TenantKind::Router,
        id: Uuid::from_u128(0xabc),
    };

    fn outgoing(request: http::Request<()>, body: &'static [u8]) -> Result<Outgoing, BadRequest> {
        let (parts, ()) = request.into_parts();
        let guest = GuestAddress::from("10.0.0.5".parse::<std::net::IpAddr>().unwrap());
        let checked = check(&parts)?;
        let body = Bytes::from_static(body);
        Ok(rebuild(checked, body, Identity::unproved(TENANT), guest))
    }

    fn encode(outgoing: &Outgoing) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        outgoing.encode("close", &mut bytes);
        bytes.to_vec()
    }

    #[test]
    fn the_tag_comes_first_and_the_guest_s_claims_are_gone() {
        let request = http::Request::get("/openstack?a=b")
            .header("x-neutron-router-id", "spoofed")
            .header("host", "169.254.169.254")
            .header("X-Forwarded-For", "1.2.3.4")
            .header("x_neutron_router_id", "spoofed")
            .header("user-agent", "curl/8")
            .body(())
            .unwrap();
        let bytes = encode(&outgoing(request, b"").unwrap());
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "GET /openstack?a=b HTTP/1.1\r\n\
             X-Neutron-Router-ID: 00000000-0000-0000-0000-000000000abc\r\n\
             X-Forwarded-For: 10.0.0.5\r\n\
             host: 169.254.169.254\r\n\
             user-agent: curl/8\r\n\
             connection: close\r\n\r\n"
        );
    }

    #[test]
    fn a_body_is_announced_by_its_true_length() {
        let request = http::Request::post("/openstack/latest/password")
            .header("host", "a")
            .header("content-length", "4")
            .body(())
            .unwrap();
        let text = String::from_utf8(encode(&outgoing(request, b"1234").unwrap())).unwrap();
        assert!(text.contains("\r\ncontent-length: 4\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\n1234"), "{text}");
        assert_eq!(text.matches("content-length").count(), 1);
    }

    #[test]
    fn what_cannot_be_forwarded_is_refused() {
        let get = || http::Request::get("/").header("host", "a");
        let refused =
            |request: http::request::Builder| outgoing(request.body(()).unwrap(), b"").unwrap_err();
        assert_eq!(refused(get().header("host", "b")), BadRequest::Host);
        let both = get()
            .header("content-length", "1")
            .header("transfer-encoding", "chunked");
        assert_eq!(refused(both), BadRequest::Length);
        let coded = get().header("transfer-encoding", "gzip, chunked");
        assert_eq!(refused(coded), BadRequest::Coding);
        assert_eq!(refused(get().uri("https://a/")), BadRequest::Target);
        assert_eq!(refused(get().uri("*")), BadRequest::Target);
        let beyond_ascii = Uri::from_maybe_shared(&b"/m\xc3\xa9ta"[..]).unwrap();
        assert_eq!(refused(get().uri(beyond_ascii)), BadRequest::Target);
        assert_eq!(
            refused(get().method("CONNECT").uri("a:80")),
            BadRequest::Method(Method::CONNECT)
        );
        assert!(outgoing(get().uri("http://a/x").body(()).unwrap(), b"").is_ok());
    }

    #[test]
    fn host_may_be_missing_or_said_twice_and_leaves_once() {
        let without = http::Request::get("/").body(()).unwrap();
        assert!(outgoing(without, b"").is_ok());
        let twice = http::Request::get("/")
            .header("host", "a")
            .header("host", "a");
        let bytes = encode(&outgoing(twice.body(()).unwrap(), b"").unwrap());
        assert_eq!(
            String::from_utf8(bytes).unwrap().matches("host: a").count(),
            1
        );
    }

    proptest! {
        /// Whatever a guest sends, the upstream reads exactly one request, whose first header is
        /// the true tag, and no other header names an identity or a forwarding.
        #[test]
        fn rewriting_yields_one_request_with_one_true_identity(
            method in "(GET|HEAD|POST|PUT|DELETE|OPTIONS|[A-Z]{1,9})",
            path in "/[!-~]{0,40}",
            headers in prop::collection::vec(
                (
                    "(x-neutron-(router|network)-id|X-OVN-Network-ID|x-instance-id|x-tenant-id\
                      |x-metadata-provider|x-forwarded-(for|host)|forwarded|x-real-ip|host\
                      |transfer-encoding|content-length|connection|accept|user[-_]agent|[a-z_-]{1,20})",
                    prop::collection::vec(prop_oneof![Just(9_u8), 32..=126_u8, 128..=255_u8], 0..40),
                ),
                0..12,
            ),
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut request = http::Request::builder().method(method.as_str());
            let Ok(uri) = path.parse::<Uri>() else { return Ok(()) };
            request = request.uri(uri);
            for (name, value) in &headers {
                let Ok(value) = HeaderValue::from_bytes(value) else { continue };
                request = request.header(name.as_str(), value);
            }
            let Ok(request) = request.body(()) else { return Ok(()) };
            let (parts, ()) = request.into_parts();
            let guest = GuestAddress::from("10.0.0.5".parse::<std::net::IpAddr>().unwrap());
            let identity = Identity::unproved(TENANT);
            let Ok(checked) = check(&parts) else {
                return Ok(());
            };
            let outgoing = rebuild(checked, body.clone().into(), identity, guest);
            let bytes = encode(&outgoing);
            let mut storage = [httparse::EMPTY_HEADER; 64];
            let mut parsed = httparse::Request::new(&mut storage);
            let httparse::Status::Complete(head) = parsed.parse(&bytes).unwrap() else {
                return Err(TestCaseError::fail("the head is incomplete"));
            };
            prop_assert_eq!(&bytes[head..], &body[..]);
            prop_assert_eq!(parsed.headers[0].name, "X-Neutron-Router-ID");
            let tag = TENANT.tag_value();
            prop_assert_eq!(parsed.headers[0].value, tag.as_bytes());
            prop_assert_eq!(parsed.headers[1].name, "X-Forwarded-For");
            prop_assert_eq!(parsed.headers[1].value, b"10.0.0.5");
            let mut lengths = 0;
            for header in &parsed.headers[2..] {
                let name = header.name.to_ascii_lowercase().replace('_', "-");
                for claim in ["x-neutron", "x-ovn", "x-instance", "x-tenant", "x-metadata",
                              "x-forwarded", "forwarded", "x-real-ip", "transfer-encoding"] {
                    prop_assert!(!name.starts_with(claim), "{} left", header.name);
                }
                if name == "content-length" {
                    lengths += 1;
                    let length = body.len().to_string();
                    prop_assert_eq!(header.value, length.as_bytes());
                }
            }
            prop_assert!(lengths <= 1);
            prop_assert!(body.is_empty() || lengths == 1);
        }
    }
}
