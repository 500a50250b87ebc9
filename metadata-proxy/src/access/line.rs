//! The line that tells of one request, as the subscriber for all other events would write it.
//!
//! Written by hand because it is most of what a request costs here otherwise: going through
//! `tracing` took 17,300 of 44,500 instructions.

use std::{
    cell::RefCell,
    io::Write as _,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use uuid::Uuid;

use super::{Access, micros};

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Text that begins with the time.
    Text,
    /// Text without the time, which whoever reads it adds.
    TextWithoutTime,
    /// A JSON object.
    Json,
}

/// Takes one line, its end included.
type Write = Box<dyn Fn(&[u8]) + Send + Sync>;

/// Where access lines go: one for the process, as there is one subscriber for other events.
static LOG: OnceLock<(Style, Write)> = OnceLock::new();

/// Has access lines written, from now on; without effect if they are already.
pub fn start(style: Style, write: impl Fn(&[u8]) + Send + Sync + 'static) {
    let _ = LOG.set((style, Box::new(write)));
}

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes the line of a request that is over.
pub(super) fn write(access: &Access, total: Duration, bytes: u64) {
    let Some((style, write)) = LOG.get() else {
        return;
    };
    LINE.with_borrow_mut(|line| {
        line.clear();
        let mut line = Line {
            out: line,
            style: *style,
        };
        line.begin(SystemTime::now());
        line.fields(access, total, bytes);
        line.end();
        write(line.out);
    });
}

struct Line<'a> {
    out: &'a mut Vec<u8>,
    style: Style,
}

impl Line<'_> {
    fn begin(&mut self, now: SystemTime) {
        // Writing to memory does not fail, here and below.
        match self.style {
            Style::Text => {
                let _ = write!(self.out, "{}", humantime::format_rfc3339_micros(now));
                self.out.extend_from_slice(b"  INFO access:");
            }
            Style::TextWithoutTime => self.out.extend_from_slice(b" INFO access:"),
            Style::Json => {
                let time = humantime::format_rfc3339_micros(now);
                let _ = write!(self.out, "{{\"timestamp\":\"{time}\"");
                self.out.extend_from_slice(b",\"level\":\"INFO\"");
            }
        }
    }

    fn fields(&mut self, access: &Access, total: Duration, bytes: u64) {
        let mut id = Uuid::encode_buffer();
        self.quoted("kind", access.tenant.kind_name());
        let id = access.tenant.id.as_hyphenated().encode_lower(&mut id);
        self.plain("id", id.as_bytes());
        self.name("guest");
        self.quote();
        access.guest.write_to(self.out);
        self.quote();
        self.plain("method", access.method.as_str().as_bytes());
        self.quoted("path", access.uri.path());
        self.number("status", access.status.as_u16().into());
        if let Some(error) = access.error {
            self.quoted("error", error);
        }
        if let Some(spent) = access.spent {
            self.number("queue_us", micros(spent.queued));
            self.number("upstream_us", micros(spent.upstream));
            self.number("retries", spent.retries.into());
        }
        self.number("total_us", micros(total));
        self.number("bytes", bytes);
    }

    fn end(&mut self) {
        self.out.extend_from_slice(match self.style {
            Style::Json => b",\"target\":\"access\"}\n",
            Style::Text | Style::TextWithoutTime => b"\n",
        });
    }

    fn name(&mut self, name: &str) {
        match self.style {
            Style::Json => {
                self.out.extend_from_slice(b",\"");
                self.out.extend_from_slice(name.as_bytes());
                self.out.extend_from_slice(b"\":");
            }
            Style::Text | Style::TextWithoutTime => {
                self.out.push(b' ');
                self.out.extend_from_slice(name.as_bytes());
                self.out.push(b'=');
            }
        }
    }

    /// A quote where text is always quoted.
    fn quote(&mut self) {
        if self.style == Style::Json {
            self.out.push(b'"');
        }
    }

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        self.out
            .extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// Text that holds nothing to be escaped.
    fn plain(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        self.quote();
        self.out.extend_from_slice(value);
        self.quote();
    }

    /// Text that may hold anything.
    fn quoted(&mut self, name: &str, value: &str) {
        self.name(name);
        let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        if value.bytes().all(is_plain) {
            self.out.push(b'"');
            self.out.extend_from_slice(value.as_bytes());
            self.out.push(b'"');
        } else if self.style == Style::Json {
            let _ = serde_json::to_writer(&mut *self.out, value);
        } else {
            let _ = write!(self.out, "{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http::{Method, StatusCode};
    use metadata_proxy_common::TenantKind;

    use super::*;
    use crate::{identity::Tenant, upstream::Spent};

    fn line(style: Style, path: &'static str, error: Option<&'static str>) -> String {
        let access = Access {
            tenant: Tenant {
                kind: TenantKind::Router,
                id: Uuid::from_u128(0xabc),
            },
            guest: "10.0.0.255".parse::<std::net::IpAddr>().unwrap().into(),
            method: Method::GET,
            uri: path.parse().unwrap(),
            status: StatusCode::OK,
            error,
            started: Instant::now(),
            spent: error.is_none().then(|| Spent {
                queued: Duration::from_micros(1),
                upstream: Duration::from_micros(20),
                retries: 3,
            }),
            is_logged: true,
        };
        let mut out = Vec::new();
        let mut line = Line {
            out: &mut out,
            style,
        };
        line.begin(SystemTime::UNIX_EPOCH);
        line.fields(&access, Duration::from_micros(45), 678);
        line.end();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_is_as_the_subscriber_writes_it() {
        assert_eq!(
            line(Style::Text, "/a?secret", None),
            "1970-01-01T00:00:00.000000Z  INFO access: kind=\"router\" \
             id=00000000-0000-0000-0000-000000000abc guest=10.0.0.255 method=GET path=\"/a\" \
             status=200 queue_us=1 upstream_us=20 retries=3 total_us=45 bytes=678\n"
        );
        let line = line(Style::TextWithoutTime, "/\"", Some("bad_request"));
        assert!(line.starts_with(" INFO access: kind="), "{line}");
        assert!(
            line.contains(" path=\"/\\\"\" status=200 error=\"bad_request\" total_us="),
            "{line}"
        );
    }

    #[test]
    fn json_is_an_object_with_the_same_fields() {
        for path in ["/a", "/\"%\\"] {
            let text = line(Style::Json, path, None);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["timestamp"], "1970-01-01T00:00:00.000000Z");
            assert_eq!(value["level"], "INFO");
            assert_eq!(value["target"], "access");
            assert_eq!(value["path"], path);
            assert_eq!(value["guest"], "10.0.0.255");
            assert_eq!(value["upstream_us"], 20);
            assert_eq!(value["total_us"], 45);
        }
    }
}
