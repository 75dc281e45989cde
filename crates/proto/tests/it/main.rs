//! What is stored and sent has the bytes that it had: data of an earlier release open, and replicas of two releases
//! agree on the digest of a row.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod values;

use std::{fmt::Write as _, fs, path::PathBuf};

use bytes::Bytes;
use ids::{Digest, Epoch, Position, Timestamp};
use machine::{Command, MACHINE_VERSION, event_digest};
use proto::record;

/// Every value with its bytes, one a line. `UPDATE_EXPECT=1` writes what is there now: a line that changes is a format
/// that changes.
#[test]
fn the_bytes_of_everything_stored_are_what_they_were() {
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    let mut found = String::new();
    let mut line = |what: &str, bytes: &[u8]| {
        let _ = writeln!(found, "{what}: {}", hex(bytes));
    };
    for (name, command) in values::commands() {
        let bytes = record::encode_command(&command);
        assert_eq!(record::decode_command(&bytes).unwrap(), command, "{name}");
        line(&format!("command {name}"), &bytes);
    }
    for (name, key, row) in values::rows() {
        let bytes = record::encode_row(&row);
        assert_eq!(record::decode_row(&key, &bytes).unwrap(), row, "{name}");
        line(&format!("row {name}"), &bytes);
    }
    for (name, outcome) in values::outcomes() {
        let bytes = record::encode_outcome(&outcome);
        assert_eq!(record::decode_outcome(&bytes).unwrap(), outcome, "{name}");
        line(&format!("outcome {name}"), &bytes);
    }
    for event in values::events() {
        line(&format!("digest of event {}", event.data.kind()), &event_digest(Digest([9; 32]), &event).0);
    }
    let history = values::history();
    let bytes = record::encode_history(&history);
    assert_eq!(record::decode_history(&bytes).unwrap(), history);
    line("history", &bytes);
    let entry = record::Entry {
        incarnation: 1,
        epoch: Epoch(2),
        position: Position(3),
        now: Timestamp(4),
        machine_version: MACHINE_VERSION,
        commands: vec![Command::FireTimers, Command::Finalize { machine_version: 2 }],
    };
    let bytes: Bytes = entry.encode();
    assert_eq!(record::Entry::decode(bytes.clone()).unwrap(), entry);
    line("entry", &bytes);

    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/testdata/golden.txt");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&file, &found).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}
