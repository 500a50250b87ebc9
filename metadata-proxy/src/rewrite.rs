//! Builds the request that goes upstream, from an allow-list; the tag comes first.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method};

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
        put_header(
            out,
            tenant.tag_name().as_str(),
            tenant.tag_value().as_bytes(),
        );
        put_header(out, "x-forwarded-for", self.guest.to_string().as_bytes());
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
