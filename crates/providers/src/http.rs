//! Vendors over HTTP, in the OpenAI-compatible and the Anthropic wire format, through the `genai` crate.
//!
//! Answers are always streamed, so that a stall is told from a long answer: a call has a time to connect, a time to
//! its first token counted from the request's start, and a time between tokens.

use std::time::Duration;

use base64::Engine as _;
use futures_util::StreamExt as _;
use genai::{
    Client, ModelIden, ServiceTarget,
    adapter::AdapterKind,
    chat::{ChatMessage, ChatOptions, ChatRequest, ChatResponseFormat, ChatStreamEvent, JsonSpec},
    resolver::{AuthData, Endpoint, ServiceTargetResolver},
};
use reqwest::{StatusCode, header::HeaderMap};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{CallError, CallFuture, Completion, Provider, Redactor, Request, Secret};

/// Bytes of one answer. More is refused as soon as it is seen.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Characters of a provider's error that are kept.
const ERROR_CHARS_MAX: usize = 500;
/// Characters of it that are searched for secrets before the rest of them is cut off.
const SEARCHED_CHARS_MAX: usize = 64 << 10;

/// A wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// `POST {base}/chat/completions`
    OpenAi,
    /// `POST {base}/messages`
    Anthropic,
}

/// How a vendor is reached.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Its wire format.
    pub wire: Wire,
    /// The URL before `chat/completions` or `messages`.
    pub base_url: String,
    /// Its key; `None` for vendors without.
    pub api_key: Option<Secret>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long the first token may take, from the request's start.
    pub first_token_timeout: Duration,
    /// How long the next token may take.
    pub idle_timeout: Duration,
    /// Whether its answers are made up.
    pub simulated: bool,
}

/// A vendor over HTTP.
pub struct HttpProvider {
    client: Client,
    options: HttpOptions,
    redactor: Redactor,
}

impl HttpProvider {
    /// A vendor. Its key and whatever its URL hides become known to `redactor`.
    ///
    /// # Errors
    ///
    /// The URL is none, or the system refuses a client.
    pub fn new(options: HttpOptions, redactor: Redactor) -> Result<Self, String> {
        let mut url = reqwest::Url::parse(&options.base_url)
            .map_err(|error| format!("base_url {}: {error}", redactor.redact(&options.base_url)))?;
        learn_url(&url, &redactor);
        if let Some(Ok(key)) = options.api_key.as_ref().map(Secret::read) {
            redactor.learn(&key);
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        let web = reqwest::Client::builder()
            .connect_timeout(options.connect_timeout)
            // The key is for the vendor, not for whom it names.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| format!("http client: {error}"))?;
        let adapter = match options.wire {
            Wire::OpenAi => AdapterKind::OpenAI,
            Wire::Anthropic => AdapterKind::Anthropic,
        };
        // Without a resolver of ours, an unknown model name would be sent to a local default endpoint.
        let (endpoint, secret) = (Endpoint::from_owned(url.as_str()), options.api_key.clone());
        let learned = redactor.clone();
        let resolver = ServiceTargetResolver::from_resolver_fn(
            move |target: ServiceTarget| -> Result<ServiceTarget, genai::resolver::Error> {
                let key = match &secret {
                    Some(secret) => secret.read().map_err(genai::resolver::Error::Custom)?,
                    None => "none".to_owned(),
                };
                learned.learn(&key);
                Ok(ServiceTarget {
                    endpoint: endpoint.clone(),
                    auth: AuthData::from_single(key),
                    model: ModelIden::new(adapter, target.model.model_name),
                })
            },
        );
        let client = Client::builder()
            .with_reqwest(web)
            .with_service_target_resolver(resolver)
            .build()
            .map_err(|error| format!("http client: {error}"))?;
        Ok(Self { client, options, redactor })
    }

    async fn call(&self, request: &Request) -> Result<Completion, CallError> {
        let first_token = Instant::now() + self.options.first_token_timeout;
        let mut chat = ChatRequest::new(vec![ChatMessage::user(request.prompt.clone())]);
        if !request.system.is_empty() {
            chat = chat.with_system(request.system.clone());
        }
        let mut options = ChatOptions::default()
            .with_capture_usage(true)
            .with_extra_headers(vec![("idempotency-key".to_owned(), request.idempotency_key.clone())]);
        if let Some(schema) = &request.schema {
            let spec = JsonSpec::new("answer", schema.clone());
            options = options.with_response_format(ChatResponseFormat::JsonSpec(spec));
        } else if request.json && self.options.wire == Wire::OpenAi {
            options = options.with_response_format(ChatResponseFormat::JsonMode);
        }
        if request.max_tokens > 0 {
            options = options.with_max_tokens(request.max_tokens);
        }
        if let Some(temperature) = request.temperature {
            options = options.with_temperature(temperature);
        }
        let opened = self.client.exec_chat_stream(&request.model, chat, Some(&options));
        let opened = timeout_at(first_token, opened).await.map_err(|_| first_token_late(&self.options))?;
        let mut stream = opened.map_err(|error| self.classify(&error))?.stream;

        let mut text = String::new();
        loop {
            let next = if text.is_empty() {
                timeout_at(first_token, stream.next()).await.map_err(|_| first_token_late(&self.options))?
            } else {
                timeout(self.options.idle_timeout, stream.next()).await.map_err(|_| {
                    let message = format!("the answer stopped for {:?}", self.options.idle_timeout);
                    CallError::transient("idle_timeout", message, true)
                })?
            };
            match next {
                Some(Ok(ChatStreamEvent::Chunk(chunk))) => {
                    text.push_str(&chunk.content);
                    if text.len() > ANSWER_BYTES_MAX {
                        let message = format!("the answer is longer than {ANSWER_BYTES_MAX} bytes");
                        return Err(CallError::permanent("answer_too_large", message));
                    }
                }
                Some(Ok(ChatStreamEvent::End(end))) => {
                    let usage = end.captured_usage.unwrap_or_default();
                    let count = |tokens: Option<i32>| {
                        tokens.and_then(|tokens| u64::try_from(tokens).ok()).unwrap_or(0)
                    };
                    return Ok(Completion {
                        text,
                        tokens_in: count(usage.prompt_tokens),
                        tokens_out: count(usage.completion_tokens),
                    });
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(self.classify(&error)),
                None => {
                    let message = "the answer ended before it was complete";
                    return Err(CallError::transient("truncated", message, true));
                }
            }
        }
    }

    fn classify(&self, error: &genai::Error) -> CallError {
        let mut error = classify(error);
        error.message = shown(&self.redactor, &error.message);
        error
    }
}

/// What is kept of an error: redacted, then cut, so that no half of a secret is left at its end.
fn shown(redactor: &Redactor, message: &str) -> String {
    redactor.redact(message).chars().take(ERROR_CHARS_MAX).collect()
}

fn first_token_late(options: &HttpOptions) -> CallError {
    let message = format!("no token came within {:?} of the request", options.first_token_timeout);
    CallError::transient("first_token_timeout", message, true)
}

/// What a URL may hide: a password, and the values of its query.
fn learn_url(url: &reqwest::Url, redactor: &Redactor) {
    if let Some(password) = url.password() {
        redactor.learn(password);
        // As it is sent.
        let basic =
            base64::engine::general_purpose::STANDARD.encode(format!("{}:{password}", url.username()));
        redactor.learn(&basic);
    }
    for (_, value) in url.query_pairs() {
        redactor.learn(&value);
    }
}

impl Provider for HttpProvider {
    fn complete<'a>(&'a self, request: &'a Request) -> CallFuture<'a> {
        Box::pin(self.call(request))
    }

    fn is_simulated(&self) -> bool {
        self.options.simulated
    }
}

/// The class of an error, from the status code or the structured body.
fn classify(error: &genai::Error) -> CallError {
    if let genai::Error::WebStream { error, .. } = error {
        if let Some(inner) = error.downcast_ref::<genai::Error>() {
            return classify(inner);
        }
        // Utf8Error comes without a source of its own; everything else is the connection.
        let code = if error.is::<reqwest::Error>() { "unreachable" } else { "stream_broken" };
        return CallError::transient(code, cut(&error.to_string()), true);
    }
    if let genai::Error::ChatResponse { body, .. } = error {
        return by_code(body, &body.to_string(), None);
    }
    if let Some((status, body)) = status_and_body(error) {
        let retry_after = error.headers().and_then(retry_after);
        return CallError { retry_after, ..by_status(status, body) };
    }
    match error {
        genai::Error::Resolver { resolver_error, .. } => {
            CallError::permanent("credentials", cut(&resolver_error.to_string()))
        }
        genai::Error::StreamParse { serde_error, .. } => {
            CallError::transient("malformed_stream", cut(&serde_error.to_string()), true)
        }
        genai::Error::AdapterNotSupported { .. } | genai::Error::JsonModeWithoutInstruction => {
            CallError::permanent("not_supported", cut(&error.to_string()))
        }
        _ => CallError::transient("unreachable", cut(&error.to_string()), true),
    }
}

fn status_and_body(error: &genai::Error) -> Option<(StatusCode, &str)> {
    match error {
        genai::Error::HttpError { status, body, .. } => Some((*status, body)),
        genai::Error::WebModelCall { webc_error, .. } | genai::Error::WebAdapterCall { webc_error, .. } => {
            match webc_error {
                genai::webc::Error::ResponseFailedStatus { status, body, .. } => Some((*status, body)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// When to come back: seconds, as RFC 9110 (10.2.3) has them beside a date, or what vendors add for milliseconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1_000.0).or_else(|| number("retry-after"))?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn by_status(status: StatusCode, body: &str) -> CallError {
    let message = cut(&format!("{status}: {body}"));
    match status.as_u16() {
        429 => CallError::transient("rate_limited", message, false),
        408 | 500..=599 => CallError::transient("unavailable", message, true),
        401 | 403 => CallError::permanent("credentials", message),
        _ => match serde_json::from_str::<serde_json::Value>(body) {
            Ok(json) => by_code(json.get("error").unwrap_or(&json), body, Some(message)),
            Err(_) => CallError::permanent("refused", message),
        },
    }
}

/// By `code` or `type` of a vendor's error object.
fn by_code(error: &serde_json::Value, body: &str, message: Option<String>) -> CallError {
    let message = message.unwrap_or_else(|| cut(body));
    let field = |name: &str| error.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    match (field("code"), field("type")) {
        ("rate_limit_exceeded", _) | (_, "rate_limit_error") => {
            CallError::transient("rate_limited", message, false)
        }
        ("context_length_exceeded", _) => CallError::permanent("context_exceeded", message),
        (_, "overloaded_error" | "api_error" | "server_error") => {
            CallError::transient("unavailable", message, true)
        }
        (_, "authentication_error" | "permission_error") => CallError::permanent("credentials", message),
        _ => CallError::permanent("refused", message),
    }
}

/// As much of an error as is searched for secrets.
fn cut(text: &str) -> String {
    text.chars().take(SEARCHED_CHARS_MAX).collect()
}

impl std::fmt::Debug for HttpProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpProvider").field("wire", &self.options.wire).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_half_of_a_secret_is_kept() {
        let redactor = Redactor::default();
        redactor.learn("sesame-open-0815");
        for before in 480..510 {
            let message = cut(&format!("{} sesame-open-0815 and more", "x".repeat(before)));
            let kept = shown(&redactor, &message);
            assert!(!kept.contains("sesa") && kept.len() <= ERROR_CHARS_MAX, "{kept}");
        }
    }

    #[test]
    fn what_a_url_hides_is_known_as_it_is_sent() {
        let redactor = Redactor::default();
        let url = reqwest::Url::parse("http://user:hidden-word@host/v1/?key=hidden-too").unwrap();
        learn_url(&url, &redactor);
        let echo = "Basic dXNlcjpoaWRkZW4td29yZA== for hidden-word and hidden-too";
        assert_eq!(redactor.redact(echo), "Basic [redacted] for [redacted] and [redacted]");
    }
}
