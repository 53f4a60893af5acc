//! Why a request was not done, as a status and a sentence.

use axum::Json;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::BODY_LIMIT;
use super::types::Failure;

/// Everything that can be wrong with a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("there is no {method} {path} in this API; docs/host-api.md lists what there is")]
    NoRoute { method: String, path: String },
    #[error("{path} does not take {method}; docs/host-api.md lists what it takes")]
    NoMethod { method: String, path: String },
    #[error("no guest is called {0:?}; `levy ls` or GET /guests lists those that run")]
    NoGuest(String),
    #[error("no group is called {0:?}; GET /groups lists those with guests")]
    NoGroup(String),
    #[error("guest {0:?} has no balloon")]
    NoBalloon(String),
    #[error("the name in the path cannot be read: {}", .0.body_text())]
    Name(#[from] PathRejection),
    #[error("the body cannot be read: {}", .0.body_text())]
    Body(#[from] BytesRejection),
    #[error("the body has {bytes} bytes, and the limit is {BODY_LIMIT}; send a shorter one")]
    Long { bytes: u64 },
    #[error("the body is not a JSON object, such as {{\"shares\": 2000}}")]
    NotAnObject,
    #[error("the body is not what is expected here: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{key}: {what}")]
    Value { key: &'static str, what: String },
    #[error("a guest's process asks nothing here: the guest may speak through it; ask from another process")]
    Guest,
    #[error("{0}")]
    Refused(String),
    #[error(
        "guest {0:?} is not connected to the manager at the moment; try again, use its control socket, or end it with \
         `levy stop --force`"
    )]
    Away(String),
    #[error("the process of guest {0:?} cannot be killed: {1}; end it by its number, which GET /guests has")]
    Unkilled(String, std::io::Error),
    #[error("the manager failed to answer: {0}")]
    Broken(#[from] super::workers::Ended),
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoRoute { .. } | Self::NoGuest(_) | Self::NoGroup(_) | Self::NoBalloon(_) => {
                StatusCode::NOT_FOUND
            }
            Self::NoMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Body(rejection) => rejection.status(),
            Self::Long { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Name(rejection) => rejection.status(),
            Self::NotAnObject | Self::Json(_) | Self::Value { .. } => StatusCode::BAD_REQUEST,
            Self::Guest => StatusCode::FORBIDDEN,
            Self::Refused(_) => StatusCode::CONFLICT,
            Self::Away(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Broken(_) | Self::Unkilled(..) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = self.to_string();
        (self.status(), Json(Failure { error })).into_response()
    }
}
