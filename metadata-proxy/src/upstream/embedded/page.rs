//! Pages of the trees, and the answers they become.

use std::{
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Response, StatusCode,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE},
};

use super::problem::EmbeddedError;
use crate::{
    rewrite::Outgoing,
    upstream::{Answer, AnswerBody},
};

/// What a path leads to.
#[derive(Debug)]
pub(super) enum Page<'a> {
    /// Text, or what nova serves as such.
    Text(Bytes),
    /// JSON.
    Json(Bytes),
    /// `meta_data.json`.
    MetaData(MetaData<'a>),
    /// The place of the password.
    Password,
    /// Nothing.
    Missing,
}

/// `meta_data.json`, but for the seed.
#[derive(Debug)]
pub(super) struct MetaData<'a> {
    /// Everything before the seed.
    pub(super) before_seed: &'a [u8],
    /// Whether there is a seed.
    pub(super) seeded: bool,
    /// Everything behind it.
    pub(super) after_seed: &'a [u8],
}

/// Length of a seed, bytes.
const SEED_BYTES: usize = 512;

/// Where random seeds come from.
pub(super) struct Seeds {
    source: File,
}

impl Seeds {
    pub(super) fn open() -> Result<Self, EmbeddedError> {
        let path = PathBuf::from("/dev/urandom");
        match File::open(&path) {
            Ok(source) => Ok(Self { source }),
            Err(source) => Err(EmbeddedError::Unreadable { path, source }),
        }
    }

    /// Completes `meta_data.json` with a seed of its own: as with nova, whoever asks again inside
    /// a guest does not learn what the guest's random generator was fed at boot.
    pub(super) fn complete(&self, page: &MetaData<'_>) -> io::Result<Bytes> {
        const NAME: &[u8] = br#", "random_seed": ""#;
        let text_len = base64::encoded_len(SEED_BYTES, true).unwrap_or_default();
        let len = page.before_seed.len() + NAME.len() + text_len + 1 + page.after_seed.len();
        let mut body = Vec::with_capacity(len);
        body.extend_from_slice(page.before_seed);
        if page.seeded {
            let mut seed = [0; SEED_BYTES];
            (&self.source).read_exact(&mut seed)?;
            body.extend_from_slice(NAME);
            let start = body.len();
            body.resize(start + text_len, 0);
            BASE64
                .encode_slice(seed, &mut body[start..])
                .map_err(io::Error::other)?;
            body.push(b'"');
        }
        body.extend_from_slice(page.after_seed);
        Ok(body.into())
    }
}

pub(super) fn text(request: &Outgoing, body: Bytes) -> Answer {
    answer(request, StatusCode::OK, "text/plain; charset=UTF-8", body)
}

pub(super) fn json(request: &Outgoing, body: Bytes) -> Answer {
    answer(request, StatusCode::OK, "application/json", body)
}

/// What nova's handler of passwords returns has the type its framework gives by itself.
pub(super) fn untyped(request: &Outgoing, body: Bytes) -> Answer {
    answer(request, StatusCode::OK, "text/html; charset=UTF-8", body)
}

pub(super) fn missing(request: &Outgoing) -> Answer {
    error(
        request,
        StatusCode::NOT_FOUND,
        "The resource could not be found.",
    )
}

/// An error page in the shape nova's framework gives it, which depends on what is accepted.
pub(super) fn error(request: &Outgoing, status: StatusCode, said: &str) -> Answer {
    let accepted = |kind: &str| {
        let headers = request.headers.iter().filter(|(name, _)| name == ACCEPT);
        headers
            .into_iter()
            .any(|(_, value)| value.to_str().is_ok_and(|value| value.contains(kind)))
    };
    let title = status.canonical_reason().unwrap_or_default();
    let code = status.as_u16();
    if accepted("*/*") || accepted("text/html") || accepted("text/*") {
        let body = format!(
            "<html>\n <head>\n  <title>{code} {title}</title>\n </head>\n <body>\n  \
             <h1>{code} {title}</h1>\n  {said}<br /><br />\n\n\n\n </body>\n</html>"
        );
        return answer(request, status, "text/html; charset=UTF-8", body.into());
    }
    if accepted("application/json") || accepted("application/*") {
        let body = format!(
            "{{\"message\": \"{said}<br /><br />\\n\\n\\n\", \"code\": \"{code} {title}\", \
             \"title\": \"{title}\"}}"
        );
        return answer(request, status, "application/json", body.into());
    }
    let body = format!("{code} {title}\n\n{said}\n\n   ");
    answer(request, status, "text/plain; charset=UTF-8", body.into())
}

fn answer(request: &Outgoing, status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let len = HeaderValue::from(body.len());
    let body = if request.method == Method::HEAD {
        Bytes::new()
    } else {
        body
    };
    let mut answer = Response::new(AnswerBody::Full(body));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CONTENT_LENGTH, len);
    answer
}
