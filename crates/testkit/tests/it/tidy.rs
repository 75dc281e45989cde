//! Tidy: which crate may use which, sizes, and whether the tests that the documents name exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What each crate may use: every arrow of docs/ARCHITECTURE.md points down.
const MAY_USE: [(&str, &[&str]); 17] = [
    ("ids", &[]),
    ("machine", &["ids"]),
    ("tls", &[]),
    ("proto", &["ids", "machine"]),
    ("workflow", &["ids", "machine"]),
    ("storage", &["ids", "machine", "proto"]),
    ("providers", &["machine"]),
    ("consensus", &["ids", "machine", "proto", "storage", "tls"]),
    ("engine", &["consensus", "ids", "machine", "proto", "providers", "storage", "workflow"]),
    (
        "server",
        &[
            "backup",
            "consensus",
            "engine",
            "ids",
            "machine",
            "proto",
            "providers",
            "sla",
            "storage",
            "tls",
            "workflow",
        ],
    ),
    ("sla", &["ids", "machine", "proto", "workflow"]),
    ("worker", &["proto"]),
    ("backup", &["consensus", "ids", "storage"]),
    ("cli", &["backup", "server", "tls", "worker", "workflow"]),
    ("testkit", &[]),
    ("chaos", &["ids", "providers", "testkit", "worker"]),
    (
        "loadtest",
        &[
            "consensus",
            "engine",
            "ids",
            "machine",
            "proto",
            "providers",
            "sla",
            "storage",
            "testkit",
            "worker",
            "workflow",
        ],
    ),
];

/// What a crate must not know, by the crates that would tell it.
const MUST_NOT_KNOW: [(&str, &[&str]); 6] = [
    ("ids", &["serde", "tokio", "prost"]),
    ("machine", &["serde", "tokio", "prost", "rand", "serde_json"]),
    ("workflow", &["tokio", "rocksdb", "openraft", "reqwest"]),
    ("storage", &["openraft", "tokio", "axum"]),
    ("providers", &["openraft", "rocksdb", "tonic"]),
    ("engine", &["axum", "tonic", "openraft", "rocksdb"]),
];

fn root() -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("../..").canonicalize().unwrap()
}

#[test]
fn arrows_point_down() {
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(vec!["--offline".into()])
        .exec()
        .unwrap();
    let names: BTreeSet<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    let may_use: BTreeMap<&str, &[&str]> = MAY_USE.into_iter().collect();
    let must_not: BTreeMap<&str, &[&str]> = MUST_NOT_KNOW.into_iter().collect();
    for package in &metadata.packages {
        let name = package.name.as_str();
        let allowed =
            may_use.get(name).unwrap_or_else(|| panic!("crate {name} is not in the table of this test"));
        let normal =
            package.dependencies.iter().filter(|of| of.kind == cargo_metadata::DependencyKind::Normal);
        for dependency in normal {
            let used = dependency.name.as_str();
            assert!(!names.contains(used) || allowed.contains(&used), "{name} may not use {used}");
            let banned = must_not.get(name).copied().unwrap_or_default();
            assert!(!banned.contains(&used), "{name} must not know {used}");
            assert!(used != "openraft" || name == "consensus", "only consensus names openraft, not {name}");
        }
    }
}

fn files(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|of| of == extension) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(&root(), "rs", &mut found);
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn files_are_of_a_size_that_can_be_read() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= 800, "{}: {lines} lines: split it", path.display());
        // A text in quotes may be as long as it is.
        let long = text.lines().position(|line| line.chars().count() > 120 && !line.contains('"'));
        assert!(
            long.is_none(),
            "{}:{}: a line of more than 120 characters",
            path.display(),
            long.unwrap() + 1
        );
    }
}

#[test]
fn the_tests_that_the_documents_name_exist() {
    let text = fs::read_to_string(root().join("docs/capabilities.md")).unwrap();
    let sources: String = sources().into_iter().map(|(_, text)| text).collect();
    let (ci, makefile) = (root().join(".ci/run"), root().join("Makefile"));
    let (ci, makefile) = (fs::read_to_string(ci).unwrap(), fs::read_to_string(makefile).unwrap());
    let mut named = 0;
    for row in text.lines().filter(|line| line.starts_with("| C") || line.starts_with("| X")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let (id, state, tests) = (cells[1], cells[3], cells[4]);
        assert!(["works", "partly", "not yet"].contains(&state), "{id}: {state:?} is no state");
        assert!(state == "not yet" || tests.contains('`'), "{id} {state}, but no test is named");
        for test in tests.split('`').skip(1).step_by(2) {
            if let Some(target) = test.strip_prefix("make ") {
                let is_run = ci.contains(test) && makefile.contains(&format!("\n{target}:"));
                assert!(is_run, "{id} names {test}, which CI does not run");
                named += 1;
                continue;
            }
            assert!(
                sources.contains(&format!("fn {test}(")),
                "{id} names the test {test}, which does not exist"
            );
            named += 1;
        }
    }
    assert!(named > 10, "{named} tests are named");
    for id in (1..=102).map(|n| format!("C{n}")).chain((1..=16).map(|n| format!("X{n}"))) {
        assert!(text.contains(&format!("| {id} |")), "{id} has no row");
    }
}

#[test]
fn every_route_is_documented() {
    let openapi = fs::read_to_string(root().join("crates/server/openapi.json")).unwrap();
    let routes = fs::read_to_string(root().join("crates/server/src/http/mod.rs")).unwrap();
    let mut count = 0;
    for piece in routes.split(".route(").skip(1) {
        let path = piece.split('"').nth(1).unwrap().replace("{*", "{");
        assert!(openapi.contains(&format!("\"{path}\":")), "{path} is not in openapi.json");
        count += 1;
    }
    assert!(count >= 15, "{count} routes");
}
