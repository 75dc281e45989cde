//! Providers against the simulated vendor, over real HTTP.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use providers::{
    BreakerOptions, HttpOptions, HttpProvider, Link, Prices, Provider as _, ProviderOptions, Redactor,
    Request, Router, RouterOptions, Wire,
    simulated::{Counts, Options, Outage, Rule, Server, serve},
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

async fn vendor(options: Options, rules: Vec<Rule>) -> Server {
    serve(LOOPBACK, options, rules).await.unwrap()
}

/// How often it was asked.
async fn calls(server: &Server) -> u64 {
    let url = format!("http://{}/counts", server.address());
    reqwest::get(url).await.unwrap().json::<Counts>().await.unwrap().calls
}

fn quick() -> Options {
    Options { latency_min_ms: 0, latency_max_ms: 0, ..Options::default() }
}

fn provider(base_url: &str, wire: Wire, redactor: &Redactor) -> HttpProvider {
    let options = HttpOptions {
        wire,
        base_url: base_url.to_owned(),
        api_key: None,
        connect_timeout: Duration::from_secs(2),
        first_token_timeout: Duration::from_millis(500),
        idle_timeout: Duration::from_millis(500),
        simulated: true,
    };
    HttpProvider::new(options, redactor.clone()).unwrap()
}

fn request(prompt: &str) -> Request {
    Request {
        model: "gpt-simulated".into(),
        system: "be brief".into(),
        prompt: prompt.into(),
        schema: None,
        json: false,
        max_tokens: 100,
        temperature: None,
        idempotency_key: "k".into(),
    }
}

#[tokio::test]
async fn both_wire_formats_answer_at_the_configured_url() {
    let server = vendor(quick(), vec![Rule { contains: "ping".into(), reply: "pong".into() }]).await;
    for wire in [Wire::OpenAi, Wire::Anthropic] {
        let provider = provider(&server.base_url(), wire, &Redactor::default());
        let completion = provider.complete(&request("ping?")).await.unwrap();
        assert_eq!(completion.text, "pong", "{wire:?}");
        assert_eq!((completion.tokens_in, completion.tokens_out), (2, 1), "{wire:?}");
        let long = provider.complete(&request(&"word and word. ".repeat(200))).await.unwrap();
        assert!(long.text.len() > 1000, "{wire:?}");
    }
}

#[tokio::test]
async fn a_schema_reaches_the_vendor_in_both_formats() {
    let server = vendor(quick(), vec![]).await;
    let schema = json!({"type": "object", "required": ["ok"], "additionalProperties": false,
        "properties": {"ok": {"type": "boolean"}}});
    for wire in [Wire::OpenAi, Wire::Anthropic] {
        let provider = provider(&server.base_url(), wire, &Redactor::default());
        let asked = Request { schema: Some(schema.clone()), json: true, ..request("is it well?") };
        let text = provider.complete(&asked).await.unwrap().text;
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(value["ok"].is_boolean(), "{wire:?}: {text}");
    }
}

#[tokio::test]
async fn every_fault_has_its_class() {
    let cases = [
        (Options { error_rate: 1.0, ..quick() }, "unavailable", true),
        (Options { rate_limit_rate: 1.0, ..quick() }, "rate_limited", false),
        (Options { hang_rate: 1.0, ..quick() }, "first_token_timeout", true),
        (Options { truncate_rate: 1.0, ..quick() }, "truncated", true),
    ];
    for (options, code, unhealthy) in cases {
        let server = vendor(options, vec![]).await;
        for wire in [Wire::OpenAi, Wire::Anthropic] {
            let provider = provider(&server.base_url(), wire, &Redactor::default());
            let error = provider.complete(&request(&"long ".repeat(300))).await.unwrap_err();
            assert_eq!((error.code, error.unhealthy), (code, unhealthy), "{wire:?}: {error}");
        }
    }
    let nobody = provider("http://127.0.0.1:9/v1/", Wire::OpenAi, &Redactor::default());
    assert_eq!(nobody.complete(&request("x")).await.unwrap_err().code, "unreachable");
}

#[tokio::test]
async fn an_answer_beyond_all_bounds_is_refused() {
    let rules = vec![Rule { contains: "big".into(), reply: "x".repeat(200 << 20) }];
    let server = vendor(quick(), rules).await;
    let options = HttpOptions {
        wire: Wire::OpenAi,
        base_url: server.base_url(),
        api_key: None,
        connect_timeout: Duration::from_secs(5),
        first_token_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(60),
        simulated: true,
    };
    let patient = HttpProvider::new(options, Redactor::default()).unwrap();
    let error = patient.complete(&request("big")).await.unwrap_err();
    assert_eq!(error.code, "answer_too_large");
}

/// A vendor that answers every request with these bytes, and closes.
async fn raw_vendor(answer: Vec<u8>) -> String {
    serve_raw(answer, Duration::ZERO).await
}

/// A vendor that answers every request with these bytes, and closes after a while.
async fn serve_raw(answer: Vec<u8>, open_for: Duration) -> String {
    let listener = tokio::net::TcpListener::bind(LOOPBACK).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 64 << 10];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(&answer).await;
            if !open_for.is_zero() {
                tokio::spawn(async move {
                    tokio::time::sleep(open_for).await;
                    drop(stream);
                });
            }
        }
    });
    format!("http://{address}/v1/")
}

#[tokio::test]
async fn an_answer_that_is_not_utf8_is_an_error_that_may_pass() {
    let mut answer =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".to_vec();
    answer
        .extend_from_slice(b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\xff\xfeb\"}}]}\n\n");
    answer.extend_from_slice(b"data: [DONE]\n\n");
    let provider = provider(&raw_vendor(answer).await, Wire::OpenAi, &Redactor::default());
    let error = provider.complete(&request("x")).await.unwrap_err();
    assert_eq!((error.class, error.code), (machine::FailureClass::Transient, "stream_broken"));
    assert!(error.message.to_lowercase().contains("utf"), "{error}");
}

#[tokio::test]
async fn an_answer_that_stops_in_the_middle_is_not_waited_for() {
    let mut answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n".to_vec();
    answer.extend_from_slice(b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"half\"}}]}\n\n");
    let url = serve_raw(answer, Duration::from_secs(60)).await;
    let error = provider(&url, Wire::OpenAi, &Redactor::default()).complete(&request("x")).await.unwrap_err();
    assert_eq!((error.code, error.unhealthy), ("idle_timeout", true), "{error}");
}

fn router(links: &[(&str, &Server)], redactor: &Redactor) -> Router {
    let providers = links.iter().map(|(name, server)| {
        let provider = provider(&server.base_url(), Wire::OpenAi, redactor);
        (
            (*name).to_owned(),
            ProviderOptions {
                provider: Arc::new(provider),
                concurrency: 4,
                breaker: BreakerOptions::default(),
            },
        )
    });
    let chain = links.iter().map(|(name, _)| Link { provider: (*name).to_owned(), model: "m".into() });
    let options = RouterOptions {
        roles: BTreeMap::from([("default".to_owned(), chain.collect())]),
        prices: Prices::default(),
        redactor: redactor.clone(),
    };
    Router::new(providers.collect(), options).unwrap()
}

#[tokio::test]
async fn the_chain_falls_back_and_a_bad_provider_rests() {
    let bad = vendor(Options { error_rate: 1.0, ..quick() }, vec![]).await;
    let good = vendor(quick(), vec![]).await;
    let router = router(&[("bad", &bad), ("good", &good)], &Redactor::default());
    for ask in 0..8 {
        let answer = router.ask("executor", request("hello"), None).await;
        assert!(answer.result.is_ok());
        let report = answer.report;
        assert_eq!((report.provider.as_str(), report.calls.len()), ("good", 2));
        let code = report.calls[0].failure.as_ref().unwrap().code.clone();
        assert_eq!(code, if ask < 5 { "unavailable" } else { "circuit_open" });
    }
    let names: Vec<_> =
        router.status().into_iter().map(|status| (status.name, status.breaker.name())).collect();
    assert_eq!(names, [("bad".to_owned(), "open"), ("good".to_owned(), "closed")]);
}

#[tokio::test]
async fn while_all_rest_nobody_is_asked_and_the_answer_says_for_how_long() {
    let down = vendor(quick(), vec![]).await;
    down.set_outage(Some(Outage::Refuses));
    let router = router(&[("down", &down)], &Redactor::default());
    for _ in 0..5 {
        let answer = router.ask("executor", request("hello"), None).await;
        assert_eq!((answer.asked, answer.retry_after), (true, Duration::ZERO));
    }
    let answer = router.ask("executor", request("hello"), None).await;
    let failure = answer.result.unwrap_err();
    assert_eq!((failure.code.as_str(), failure.class), ("circuit_open", machine::FailureClass::Transient));
    assert!(!answer.asked);
    let minute = Duration::from_secs(60);
    assert!(answer.retry_after > minute / 2 && answer.retry_after <= minute, "{:?}", answer.retry_after);
}

#[tokio::test]
async fn a_vendor_says_when_to_come_back() {
    for (header, wait) in [("Retry-After: 7", 7_000), ("retry-after-ms: 250", 250), ("X-Other: 1", 0)] {
        let answer = format!(
            "HTTP/1.1 429 Too Many Requests\r\n{header}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}"
        );
        let provider = provider(&raw_vendor(answer.into_bytes()).await, Wire::OpenAi, &Redactor::default());
        let error = provider.complete(&request("x")).await.unwrap_err();
        let expected = (wait > 0).then(|| Duration::from_millis(wait));
        assert_eq!((error.code, error.retry_after), ("rate_limited", expected), "{header}");
    }
}

#[tokio::test]
async fn a_hang_beyond_the_steps_time_tells_against_the_vendor_and_a_lack_of_time_does_not() {
    let hung = vendor(Options { hang_rate: 1.0, ..quick() }, vec![]).await;
    let good = vendor(quick(), vec![]).await;
    let router = router(&[("hung", &hung), ("good", &good)], &Redactor::default());
    for _ in 0..5 {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(200);
        let answer = router.ask("executor", request("hello"), Some(deadline)).await;
        assert_eq!(answer.result.unwrap_err().code, "timeout");
    }
    // The second had no time left to be asked in, which says nothing about it.
    assert_eq!(calls(&good).await, 0);
    let answer = router.ask("executor", request("hello"), None).await;
    assert_eq!(answer.report.calls[0].failure.as_ref().unwrap().code, "circuit_open");
    assert_eq!(answer.report.provider, "good");
}

#[tokio::test]
async fn no_more_is_asked_at_once_than_allowed_and_what_is_given_up_makes_room() {
    let hung = vendor(Options { hang_rate: 1.0, ..quick() }, vec![]).await;
    let patient = HttpOptions {
        wire: Wire::OpenAi,
        base_url: hung.base_url(),
        api_key: None,
        connect_timeout: Duration::from_secs(2),
        first_token_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(60),
        simulated: true,
    };
    let provider = Arc::new(HttpProvider::new(patient, Redactor::default()).unwrap());
    let options = ProviderOptions { provider, concurrency: 2, breaker: BreakerOptions::default() };
    let chain = vec![Link { provider: "hung".into(), model: "m".into() }];
    let router_options = RouterOptions {
        roles: BTreeMap::from([("default".to_owned(), chain)]),
        prices: Prices::default(),
        redactor: Redactor::default(),
    };
    let router = Router::new(BTreeMap::from([("hung".to_owned(), options)]), router_options);
    let router = Arc::new(router.unwrap());
    let asks: Vec<_> = (0..4)
        .map(|_| {
            let router = Arc::clone(&router);
            tokio::spawn(async move { router.ask("executor", request("hello"), None).await })
        })
        .collect();
    let until_asked = async |count: u64| {
        while calls(&hung).await < count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), until_asked(2)).await.unwrap();
    // One more waits for its turn until its time is up.
    let deadline = tokio::time::Instant::now() + Duration::from_millis(200);
    let answer = router.ask("executor", request("hello"), Some(deadline)).await;
    assert_eq!(answer.result.unwrap_err().code, "timeout");
    assert_eq!((calls(&hung).await, router.status()[0].in_flight), (2, 2));
    asks[0].abort();
    asks[1].abort();
    tokio::time::timeout(Duration::from_secs(30), until_asked(4)).await.unwrap();
    assert_eq!(router.status()[0].in_flight, 2);
    for ask in &asks {
        ask.abort();
    }
}
