//! Checkpoints of the node's state, handed out file by file to whoever makes a backup of them.

use std::{io::ErrorKind, sync::Arc};

use ::backup::Manifest;
use axum::{
    Json,
    body::Body as ResponseBody,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use tokio_util::io::ReaderStream;

use super::Admin;
use crate::{
    backups::{checkpoint, directory},
    error::{self, ApiError},
    wiring::App,
};

type Result<T> = std::result::Result<T, ApiError>;

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

fn io(what: &str) -> impl FnOnce(std::io::Error) -> ApiError {
    let what = what.to_owned();
    move |error| ApiError::new(error::UNAVAILABLE, format!("{what}: {error}"))
}

/// An id that this node may have made: digits, so that it is no path.
fn checked(id: &str) -> Result<&str> {
    let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    if is_id { Ok(id) } else { Err(ApiError::not_found(format!("checkpoint {id:?}"))) }
}

/// Makes a checkpoint of every shard: it has all that was acknowledged before.
pub(super) async fn begin(
    State(app): State<Arc<App>>,
    _admin: Admin,
) -> Result<(StatusCode, Json<Manifest>)> {
    let made = checkpoint(app.sessions.node(), &app.config).await;
    let made = made.map_err(|error| ApiError::new(error::UNAVAILABLE, error.to_string()))?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// A file of a checkpoint.
pub(super) async fn file(
    State(app): State<Arc<App>>,
    _admin: Admin,
    Path((id, name)): Path<(String, String)>,
) -> Result<Response> {
    let in_it = directory(app.sessions.node()).join(checked(&id)?);
    // Only what is in the directory itself: a name is not a path.
    let listed = in_it.read_dir().map_err(|_| ApiError::not_found(format!("checkpoint {id}")))?;
    let found = listed.flatten().find(|entry| entry.file_name().to_str() == Some(&name));
    let found = found.ok_or_else(|| ApiError::not_found(format!("file {name:?} of checkpoint {id}")))?;
    let opened = tokio::fs::File::open(found.path()).await.map_err(io("open a file of a checkpoint"))?;
    let length = opened.metadata().await.map_err(io("read the length of a file"))?.len();
    let body = ResponseBody::from_stream(ReaderStream::with_capacity(opened, READ_BYTES));
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, body).into_response())
}

/// Gives a checkpoint up. May be repeated.
pub(super) async fn end(
    State(app): State<Arc<App>>,
    _admin: Admin,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    match std::fs::remove_dir_all(directory(app.sessions.node()).join(checked(&id)?)) {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(io("remove a checkpoint")(error)),
    }
}
