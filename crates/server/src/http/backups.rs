//! Checkpoints of the node's state, handed out file by file to whoever makes a backup of them.

use std::{io::ErrorKind, path::PathBuf, sync::Arc};

use axum::{
    Json,
    body::Body as ResponseBody,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use super::Admin;
use crate::{
    error::{self, ApiError},
    wiring::App,
};

type Result<T> = std::result::Result<T, ApiError>;

/// Checkpoints that are kept, until they are ended or newer ones are made: each holds on to table files.
const CHECKPOINTS_MAX: usize = 2;
/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

fn directory(app: &App) -> PathBuf {
    app.sessions.node().data_directory().join("checkpoints")
}

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
pub(super) async fn begin(State(app): State<Arc<App>>, _admin: Admin) -> Result<Response> {
    let (node, all) = (app.sessions.node(), directory(&app));
    std::fs::create_dir_all(&all).map_err(io("make the directory of checkpoints"))?;
    let now = node.clock().wall();
    // Ids in the order of time.
    let id = format!("{:020}-{:08}", now.0, rand::random::<u32>() % 100_000_000);
    let mut others: Vec<PathBuf> =
        all.read_dir().map_err(io("list checkpoints"))?.flatten().map(|entry| entry.path()).collect();
    others.sort();
    for old in others.iter().take(others.len().saturating_sub(CHECKPOINTS_MAX - 1)) {
        std::fs::remove_dir_all(old).map_err(io("remove an old checkpoint"))?;
    }
    let made = node.checkpoint(&all.join(&id)).await;
    let made = made.map_err(|error| ApiError::new(error::UNAVAILABLE, error.to_string()))?;
    let identity = node.identity();
    let shards: Vec<Value> = made
        .shards
        .iter()
        .map(|of| json!({"shard": of.shard.0, "position": of.position.0, "digest": of.digest.to_string()}))
        .collect();
    let files: Vec<Value> = made
        .files
        .iter()
        .map(|file| json!({"name": file.name, "bytes": file.bytes, "shared": file.immutable}))
        .collect();
    let body = json!({
        "format": 1,
        "id": id,
        "created_at": now.to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "cluster": format!("{:032x}", identity.cluster),
        "region": identity.region.0,
        "database": made.database,
        "shards": shards,
        "files": files,
        "config": app.config,
    });
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

/// A file of a checkpoint.
pub(super) async fn file(
    State(app): State<Arc<App>>,
    _admin: Admin,
    Path((id, name)): Path<(String, String)>,
) -> Result<Response> {
    let in_it = directory(&app).join(checked(&id)?);
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
    match std::fs::remove_dir_all(directory(&app).join(checked(&id)?)) {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(io("remove a checkpoint")(error)),
    }
}
