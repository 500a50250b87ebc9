//! Which path is what.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use serde::Serialize;
use uuid::Uuid;

use super::{
    Control, ControlError,
    api::{AddTenant, Done, ErrorBody, TenantList},
};
use crate::identity::kind_from_name;

/// Largest body of a request, bytes: many times what adding a tenant takes.
const MAX_BODY: usize = 16 << 10;

/// What Prometheus wants its text format called.
pub(super) const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// An answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// Answers one request.
pub(super) async fn answer<C, B>(control: &C, request: Request<B>) -> Answer
where
    C: Control,
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    // A HEAD is a GET whose body hyper leaves away.
    let method = if head.method == Method::HEAD {
        Method::GET
    } else {
        head.method
    };
    match (&*segments, &method) {
        (["healthz"], &Method::GET) => text(StatusCode::OK, "text/plain", String::from("ok\n")),
        (["readyz"], &Method::GET) => match control.ready().await {
            Ok(()) => text(StatusCode::OK, "text/plain", String::from("ready\n")),
            Err(missing) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                "text/plain",
                format!("{missing}\n"),
            ),
        },
        (["metrics"], &Method::GET) => text(StatusCode::OK, METRICS_TYPE, control.metrics().await),
        (["v1", "status"], &Method::GET) => json(StatusCode::OK, &control.status().await),
        (["v1", "tenants"], &Method::GET) => json(
            StatusCode::OK,
            &TenantList {
                tenants: control.tenants().await,
            },
        ),
        (["v1", "tenants"], &Method::POST) => match read_body(body).await {
            Ok(bytes) => add(control, &bytes).await,
            Err((status, message)) => error(status, message),
        },
        (["v1", "tenants", kind, id], &Method::DELETE) => remove(control, kind, id).await,
        (["v1", "config"], &Method::GET) => {
            text(StatusCode::OK, "application/toml", control.config().await)
        }
        (["v1", "reload"], &Method::POST) => match control.reload().await {
            Ok(message) => json(StatusCode::OK, &Done { message }),
            Err(message) => error(StatusCode::UNPROCESSABLE_ENTITY, message),
        },
        (segments, _) => match methods(segments) {
            Some(allowed) => {
                let message = format!("{method} is not allowed on {path}, only {allowed}");
                let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, message);
                answer
                    .headers_mut()
                    .insert(header::ALLOW, HeaderValue::from_static(allowed));
                answer
            }
            None => error(StatusCode::NOT_FOUND, format!("there is nothing at {path}")),
        },
    }
}

/// The methods of a path; `None` if nothing is there.
fn methods(segments: &[&str]) -> Option<&'static str> {
    match segments {
        ["healthz" | "readyz" | "metrics"] | ["v1", "status" | "config"] => Some("GET, HEAD"),
        ["v1", "tenants"] => Some("GET, HEAD, POST"),
        ["v1", "tenants", _, _] => Some("DELETE"),
        ["v1", "reload"] => Some("POST"),
        _ => None,
    }
}

async fn add(control: &impl Control, body: &[u8]) -> Answer {
    let request: AddTenant = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(reason) => {
            let message = format!("the body does not say which tenant to add: {reason}");
            return error(StatusCode::BAD_REQUEST, message);
        }
    };
    if let Err(reason) = request.namespace.validate() {
        return error(StatusCode::BAD_REQUEST, reason);
    }
    match control.add(request).await {
        Ok(tenant) => json(StatusCode::CREATED, &tenant),
        Err(reason) => refused(&reason),
    }
}

async fn remove(control: &impl Control, kind: &str, id: &str) -> Answer {
    let Some(kind) = kind_from_name(kind) else {
        let message =
            format!("{kind:?} is no kind of tenant: there are router, network and ovn-network");
        return error(StatusCode::BAD_REQUEST, message);
    };
    let Ok(id) = Uuid::try_parse(id) else {
        return error(StatusCode::BAD_REQUEST, format!("{id:?} is no UUID"));
    };
    match control.remove(kind, id).await {
        Ok(()) => {
            let tenant = crate::identity::Tenant { kind, id };
            json(
                StatusCode::OK,
                &Done {
                    message: format!("{tenant} is no longer served"),
                },
            )
        }
        Err(reason) => refused(&reason),
    }
}

async fn read_body<B>(body: B) -> Result<Bytes, (StatusCode, String)>
where
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err((
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is longer than {MAX_BODY} bytes"),
        )),
        Err(error) => Err((
            StatusCode::BAD_REQUEST,
            format!("the body broke off: {error}"),
        )),
    }
}

fn refused(reason: &ControlError) -> Answer {
    let status = match reason {
        ControlError::Invalid(_) => StatusCode::BAD_REQUEST,
        ControlError::NotFound(_) => StatusCode::NOT_FOUND,
        ControlError::Conflict(_) => StatusCode::CONFLICT,
        ControlError::Impossible(_) => StatusCode::UNPROCESSABLE_ENTITY,
        ControlError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    error(status, reason.to_string())
}

/// An answer that says what went wrong.
pub(super) fn error(status: StatusCode, error: String) -> Answer {
    json(status, &ErrorBody { error })
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(body) => text(status, "application/json", body + "\n"),
        // Cannot happen to these types; an empty body is better than a panic in the agent.
        Err(_) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain",
            String::new(),
        ),
    }
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
