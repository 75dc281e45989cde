//! Backups in an object store, by the part of S3's protocol that they need.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    process::Command,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use chaos::api::Api;
use serde_json::{Value, json};
use testkit::{Cluster, binary, wait_until};

use crate::fixture::PATIENCE;

/// Keys of one page of a list: few, so that there are many pages.
const PAGE: usize = 3;

/// A bucket in memory.
#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, Bytes>,
    /// Parts of uploads that are not completed, by upload and number.
    parts: BTreeMap<(String, u32), Bytes>,
    /// How often each kind of request came.
    seen: BTreeMap<&'static str, u32>,
}

type Shared = Arc<Mutex<Bucket>>;

async fn serve(bucket: Shared) -> String {
    let routes = Router::new().fallback(answer).layer(DefaultBodyLimit::disable()).with_state(bucket);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    url
}

fn xml(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/xml")], format!("<?xml version=\"1.0\"?>{body}")).into_response()
}

fn tagged(status: StatusCode, body: Bytes) -> Response {
    let headers = [(header::ETAG, "\"tag\""), (header::LAST_MODIFIED, "Wed, 25 Nov 2026 12:00:00 GMT")];
    (status, headers, body).into_response()
}

async fn answer(
    State(bucket): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    assert!(headers.contains_key(header::AUTHORIZATION), "requests are signed");
    let key = uri.path().strip_prefix("/bucket").unwrap().trim_start_matches('/').to_owned();
    let query: BTreeMap<String, String> =
        reqwest::Url::parse(&format!("http://s3{uri}")).unwrap().query_pairs().into_owned().collect();
    let mut bucket = bucket.lock().unwrap();
    let upload = query.get("uploadId").cloned();
    let kind = match (&method, upload) {
        (&Method::GET, _) if key.is_empty() => "list",
        (&Method::GET, _) => "get",
        (&Method::HEAD, _) => "head",
        (&Method::POST, None) if query.contains_key("uploads") => "begin upload",
        (&Method::POST, Some(_)) => "complete upload",
        (&Method::POST, None) => "delete many",
        (&Method::PUT, Some(_)) => "part",
        (&Method::PUT, None) => "put",
        (&Method::DELETE, _) => "delete",
        _ => return StatusCode::METHOD_NOT_ALLOWED.into_response(),
    };
    *bucket.seen.entry(kind).or_default() += 1;
    let upload = query.get("uploadId").cloned().unwrap_or_default();
    match kind {
        "list" => list(&bucket, &query),
        "get" | "head" => match bucket.objects.get(&key) {
            Some(object) => tagged(StatusCode::OK, object.clone()),
            None => StatusCode::NOT_FOUND.into_response(),
        },
        "begin upload" => {
            let id = bucket.seen["begin upload"];
            xml(format!(
                "<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>{key}</Key><UploadId>{id}</UploadId>\
                 </InitiateMultipartUploadResult>"
            ))
        }
        "part" => {
            bucket.parts.insert((upload, query["partNumber"].parse().unwrap()), body);
            tagged(StatusCode::OK, Bytes::new())
        }
        "complete upload" => {
            let parts: Vec<_> = bucket.parts.keys().filter(|(of, _)| *of == upload).cloned().collect();
            let whole: Vec<u8> =
                parts.iter().flat_map(|part| bucket.parts.remove(part).unwrap().to_vec()).collect();
            bucket.objects.insert(key.clone(), whole.into());
            xml(format!(
                "<CompleteMultipartUploadResult><Key>{key}</Key><ETag>\"tag\"</ETag></CompleteMultipartUploadResult>"
            ))
        }
        "put" => {
            bucket.objects.insert(key, body);
            tagged(StatusCode::OK, Bytes::new())
        }
        "delete" => {
            bucket.objects.remove(&key);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => {
            let text = String::from_utf8(body.to_vec()).unwrap();
            let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
            let mut deleted = String::new();
            for key in keys {
                bucket.objects.remove(key);
                let _ = write!(deleted, "<Deleted><Key>{key}</Key></Deleted>");
            }
            xml(format!("<DeleteResult>{deleted}</DeleteResult>"))
        }
    }
}

/// A page of keys, or, with a delimiter, of what they begin with.
fn list(bucket: &Bucket, query: &BTreeMap<String, String>) -> Response {
    let prefix = query.get("prefix").map_or("", String::as_str);
    let (mut keys, mut prefixes) = (Vec::new(), BTreeSet::new());
    for key in bucket.objects.keys().filter(|key| key.starts_with(prefix)) {
        match (query.get("delimiter"), key[prefix.len()..].split_once('/')) {
            (Some(_), Some((first, _))) => drop(prefixes.insert(format!("{prefix}{first}/"))),
            _ => keys.push(key.clone()),
        }
    }
    let from: usize = query.get("continuation-token").map_or(0, |token| token.parse().unwrap());
    let entries: Vec<String> = keys
        .iter()
        .map(|key| {
            let size = bucket.objects[key].len();
            format!(
                "<Contents><Key>{key}</Key><LastModified>2026-11-25T12:00:00.000Z</LastModified><ETag>\"tag\"</ETag>\
                 <Size>{size}</Size></Contents>"
            )
        })
        .chain(prefixes.iter().map(|prefix| format!("<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>")))
        .collect();
    let page: String = entries.iter().skip(from).take(PAGE).map(String::as_str).collect();
    let next = from + PAGE;
    let more = if next < entries.len() {
        format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{next}</NextContinuationToken>")
    } else {
        "<IsTruncated>false</IsTruncated>".to_owned()
    };
    xml(format!(
        "<ListBucketResult><Name>bucket</Name><Prefix>{prefix}</Prefix>{more}{page}</ListBucketResult>"
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_in_an_object_store_are_shared_verified_deleted_and_restored() {
    let bucket = Shared::default();
    let endpoint = serve(Arc::clone(&bucket)).await;
    let orchestra = |args: &[&str]| {
        let output = Command::new(binary().unwrap())
            .args(args)
            .env("AWS_ENDPOINT", &endpoint)
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("AWS_REGION", "eu-central-1")
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), format!("{out}{err}"))
    };
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(&temp.path().join("old"), 1, "").await.unwrap();
    let api = Api::new(&cluster.url(0)).unwrap();
    api.apply("name: w\nsteps:\n  - {id: gate, wait: {signal: go}}\n").await.unwrap();
    for n in 0..40 {
        api.start("w", &format!("k-{n}"), &json!({"text": "x".repeat(20_000)})).await.unwrap();
    }
    let session = api.start("w", "last", &json!(1)).await.unwrap();
    let create = |more: &[&str]| -> Value {
        let url = cluster.url(0);
        let place = ["backup", "create", "--to", "s3://bucket/of/a", "--url", &url, "--output", "json"];
        let (code, said) = orchestra(&[&place, more].concat());
        assert_eq!(code, 0, "{said}");
        serde_json::from_str(&said).unwrap()
    };
    create(&[]);
    let second = create(&[]);
    assert!(second["shared_files"].as_u64().unwrap() > 0, "{second}");
    let third = create(&["--keep", "1"]);
    assert_eq!(third["deleted"].as_array().unwrap().len(), 2, "{third}");
    let (code, said) = orchestra(&["backup", "list", "--from", "s3://bucket/of/a", "--output", "json"]);
    let listed: Value = serde_json::from_str(&said).unwrap();
    assert!(code == 0 && listed["backups"].as_array().unwrap().len() == 1, "{said}");
    let (code, said) = orchestra(&["backup", "verify", "--from", "s3://bucket/of/a"]);
    assert_eq!(code, 0, "{said}");
    {
        let bucket = bucket.lock().unwrap();
        for kind in ["list", "get", "begin upload", "part", "complete upload"] {
            assert!(bucket.seen.contains_key(kind), "{kind} is not in {:?}", bucket.seen);
        }
        assert!(bucket.seen.contains_key("delete many") || bucket.seen.contains_key("delete"));
        assert!(bucket.objects.keys().all(|key| key.starts_with("of/a/")), "{:?}", bucket.objects.keys());
    }
    cluster.kill(0).unwrap();
    let place = temp.path().join("new/node-0/data");
    let (code, said) = orchestra(&[
        "backup",
        "restore",
        "--from",
        "s3://bucket/of/a",
        "--data-dir",
        place.to_str().unwrap(),
    ]);
    assert_eq!(code, 0, "{said}");
    let restored = Cluster::start(&temp.path().join("new"), 1, "").await.unwrap();
    let api = Api::new(&restored.url(0)).unwrap();
    let waiting = wait_until("the session to wait again", PATIENCE, async || {
        (api.get(&format!("/v1/sessions/{session}")).await.ok()?["status"] == "waiting").then_some(())
    });
    waiting.await.unwrap_or_else(|error| panic!("{error}\n{}", restored.log_tails()));
    // What is gone from the store is missed.
    bucket.lock().unwrap().objects.retain(|key, _| !key.ends_with(".sst"));
    let (code, said) = orchestra(&["backup", "verify", "--from", "s3://bucket/of/a"]);
    assert_eq!(code, 4, "{said}");
}
