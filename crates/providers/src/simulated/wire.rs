//! The vendor's two wire formats.

use std::{
    convert::Infallible,
    future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use futures_util::{Stream, StreamExt as _, stream};
use serde_json::{Value, json};

use super::{Fault, Outage, Vendor, reply};

/// Bytes of a request.
const REQUEST_BYTES_MAX: usize = 16 << 20;
/// Bytes of one streamed piece.
const PIECE_BYTES: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    OpenAi,
    Anthropic,
}

pub(super) fn routes(vendor: Arc<Vendor>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(|state, body| answer(state, body, Format::OpenAi)))
        .route("/v1/messages", post(|state, body| answer(state, body, Format::Anthropic)))
        .route("/counts", get(async |State(vendor): State<Arc<Vendor>>| Json(vendor.counts())))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(vendor)
}

async fn answer(State(vendor): State<Arc<Vendor>>, body: Bytes, format: Format) -> Response {
    let counters = &vendor.counters;
    counters.calls.fetch_add(1, Ordering::Relaxed);
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return refuse(format, StatusCode::BAD_REQUEST, "invalid_request_error", "the body is not JSON");
    };
    let prompt = prompt(&request);
    let (latency, fault) = vendor.fate(reply::hash(&prompt));
    tokio::time::sleep(latency).await;
    let outage = *vendor.outage.lock();
    if outage == Some(Outage::Refuses) {
        counters.errors.fetch_add(1, Ordering::Relaxed);
        return refuse(format, StatusCode::SERVICE_UNAVAILABLE, "overloaded_error", "simulated outage");
    }
    let fault = if outage.is_some() { Fault::Hang } else { fault };
    match fault {
        Fault::Error => {
            counters.errors.fetch_add(1, Ordering::Relaxed);
            return refuse(format, StatusCode::INTERNAL_SERVER_ERROR, "api_error", "simulated error");
        }
        Fault::RateLimit => {
            counters.rate_limits.fetch_add(1, Ordering::Relaxed);
            return refuse(format, StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "simulated rate limit");
        }
        Fault::Hang => {
            counters.hangs.fetch_add(1, Ordering::Relaxed);
            future::pending::<()>().await;
        }
        Fault::None | Fault::Truncate | Fault::Malformed => {}
    }
    let text = vendor.text(&request, &prompt, fault);
    let cut = fault == Fault::Truncate;
    (if cut { &counters.truncated } else { &counters.completed }).fetch_add(1, Ordering::Relaxed);
    let tokens = (tokens(&prompt), tokens(&text));
    if request.get("stream").and_then(Value::as_bool) == Some(true) {
        stream_answer(format, &text, tokens, cut)
    } else {
        whole_answer(format, &text, tokens)
    }
}

impl Vendor {
    fn text(&self, request: &Value, prompt: &str, fault: Fault) -> String {
        if let Some(rule) = self.rules.iter().find(|rule| prompt.contains(&rule.contains)) {
            return rule.reply.clone();
        }
        match schema(request) {
            Some(_) if fault == Fault::Malformed => "I am sorry, here is your list: [".to_owned(),
            Some(schema) => {
                reply::json(schema, prompt, self.options.seed, self.options.true_rate).to_string()
            }
            None => reply::text(prompt, self.options.seed),
        }
    }
}

/// The schema that the answer must satisfy, in either format.
fn schema(request: &Value) -> Option<&Value> {
    request
        .pointer("/response_format/json_schema/schema")
        .or_else(|| request.pointer("/output_config/format/schema"))
        .or_else(|| request.pointer("/output_format/schema"))
}

/// The last message, as text.
fn prompt(request: &Value) -> String {
    let last = request.get("messages").and_then(Value::as_array).and_then(|messages| messages.last());
    match last.and_then(|message| message.get("content")) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text")?.as_str()).collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

/// About four bytes a token.
fn tokens(text: &str) -> u64 {
    (text.len() as u64).div_ceil(4)
}

fn refuse(format: Format, status: StatusCode, kind: &str, message: &str) -> Response {
    let body = match format {
        Format::OpenAi => json!({"error": {"type": kind, "code": null, "message": message}}),
        Format::Anthropic => json!({"type": "error", "error": {"type": kind, "message": message}}),
    };
    (status, Json(body)).into_response()
}

fn whole_answer(format: Format, text: &str, (sent, received): (u64, u64)) -> Response {
    let body = match format {
        Format::OpenAi => json!({
            "id": "sim", "object": "chat.completion", "model": "simulated",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": sent, "completion_tokens": received, "total_tokens": sent + received},
        }),
        Format::Anthropic => json!({
            "id": "sim", "type": "message", "role": "assistant", "model": "simulated",
            "content": [{"type": "text", "text": text}], "stop_reason": "end_turn",
            "usage": {"input_tokens": sent, "output_tokens": received},
        }),
    };
    Json(body).into_response()
}

fn stream_answer(format: Format, text: &str, (sent, received): (u64, u64), cut: bool) -> Response {
    let pieces = pieces(text);
    let mut events = Vec::with_capacity(pieces.len() + 6);
    if format == Format::Anthropic {
        events.push(event(
            "message_start",
            &json!({"type": "message_start", "message": {"id": "sim", "type": "message",
            "role": "assistant", "model": "simulated", "content": [],
            "usage": {"input_tokens": sent, "output_tokens": 0}}}),
        ));
        events.push(event(
            "content_block_start",
            &json!({"type": "content_block_start", "index": 0,
            "content_block": {"type": "text", "text": ""}}),
        ));
    }
    let kept = if cut { pieces.len() / 2 } else { pieces.len() };
    for piece in &pieces[..kept] {
        events.push(match format {
            Format::OpenAi => {
                data(&json!({"id": "sim", "object": "chat.completion.chunk", "model": "simulated",
                "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": null}]}))
            }
            Format::Anthropic => event(
                "content_block_delta",
                &json!({"type": "content_block_delta", "index": 0,
                "delta": {"type": "text_delta", "text": piece}}),
            ),
        });
    }
    if !cut {
        events.extend(match format {
            Format::OpenAi => vec![
                data(&json!({"id": "sim", "object": "chat.completion.chunk", "model": "simulated",
                    "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})),
                data(&json!({"id": "sim", "object": "chat.completion.chunk", "model": "simulated", "choices": [],
                    "usage": {"prompt_tokens": sent, "completion_tokens": received,
                        "total_tokens": sent + received}})),
                "data: [DONE]\n\n".to_owned(),
            ],
            Format::Anthropic => vec![
                event("content_block_stop", &json!({"type": "content_block_stop", "index": 0})),
                event("message_delta", &json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"},
                    "usage": {"output_tokens": received}})),
                event("message_stop", &json!({"type": "message_stop"})),
            ],
        });
    }
    let body = stream::iter(events).map(Ok::<_, Infallible>);
    let body: Pin<Box<dyn Stream<Item = Result<String, Infallible>> + Send>> = if cut {
        // The connection stays open for a moment, so that what was sent arrives before it is cut.
        Box::pin(body.chain(stream::once(async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok(String::new())
        })))
    } else {
        Box::pin(body)
    };
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(body)).into_response()
}

fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn event(name: &str, value: &Value) -> String {
    format!("event: {name}\ndata: {value}\n\n")
}

/// Pieces of about [`PIECE_BYTES`], cut between characters.
fn pieces(text: &str) -> Vec<&str> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let mut end = rest.len().min(PIECE_BYTES);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    pieces
}
