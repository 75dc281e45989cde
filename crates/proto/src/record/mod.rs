//! Conversions between the domain and messages, one file per group of types.

mod alert;
mod command;
mod common;
mod definition;
mod event;
mod history;
mod outcome;
mod row;

use bytes::Bytes;
use ids::{Epoch, Position, Timestamp};
use machine::{Command, Decision, History, Key, Outcome, Resolution, Row};
use prost::Message as _;

use crate::envelope::{self, Error, Kind};
use crate::storage;

/// Raft's own records, as they are stored.
pub mod raft {
    pub use crate::storage::{
        Applied, LogId, Member, Membership, NodeIdentity, RaftEntry, StoredMembership, Vote,
        membership::Config, raft_entry::Payload,
    };
}
pub use crate::storage::Empty;

/// The body of a normal Raft entry: commands that are applied together, at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Which life of the shard it belongs to.
    pub incarnation: u64,
    /// The ownership under which it was proposed.
    pub epoch: Epoch,
    /// Its number in the shard.
    pub position: Position,
    /// The shard's time.
    pub now: Timestamp,
    /// The newest rules that the proposer knows.
    pub machine_version: u32,
    /// What is asked, in order.
    pub commands: Vec<Command>,
}

impl Entry {
    /// The entry as bytes. The envelope of the Raft entry around it carries the checksum.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let message = storage::Entry {
            incarnation: self.incarnation,
            epoch: self.epoch.0,
            position: self.position.0,
            now: self.now.0,
            machine_version: self.machine_version,
            commands: self.commands.iter().map(command::encode).collect(),
        };
        message.encode_to_vec().into()
    }

    /// Reads an entry.
    ///
    /// # Errors
    ///
    /// Bytes that are no entry, or hold a kind of command that this version does not know.
    pub fn decode(bytes: Bytes) -> Result<Self, Error> {
        let message = storage::Entry::decode(bytes).map_err(|error| Error::Body(error.to_string()))?;
        Ok(Self {
            incarnation: message.incarnation,
            epoch: Epoch(message.epoch),
            position: Position(message.position),
            now: Timestamp(message.now),
            machine_version: message.machine_version,
            commands: message.commands.into_iter().map(command::decode).collect::<Result<_, _>>()?,
        })
    }
}

/// About how many bytes a command takes in an entry: its values and texts, and something for the rest.
#[must_use]
pub fn command_len(command: &Command) -> usize {
    const REST: usize = 128;
    let report = |report: &machine::Report| report.calls.len() * REST;
    REST + match command {
        // The graph is about as long as its source.
        Command::PutDefinition(definition) => definition.source.len() * 2 + definition.nodes.len() * REST,
        Command::StartSession(start) => {
            start.input.len() + start.labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()
        }
        Command::ResolveStep(resolve) => {
            resolve.report.as_ref().map_or(0, report)
                + match &resolve.resolution {
                    Resolution::Completed(value) => value.len(),
                    Resolution::Items(items) => items.iter().map(|item| item.len() + 8).sum(),
                    Resolution::Failed { failure, .. } => failure.message.len(),
                    Resolution::Skipped
                    | Resolution::Entered
                    | Resolution::Chosen(_)
                    | Resolution::Again(_) => 0,
                }
        }
        Command::ImportSession { history, .. } => {
            let values = history.events.iter().filter_map(|event| event.data.value()).map(Bytes::len);
            let items = history.items.values().flatten().map(Bytes::len);
            history.events.len() * REST + values.chain(items).sum::<usize>()
        }
        Command::Redispatch(steps) => steps.len() * 32,
        Command::Signal { payload, .. } => payload.len(),
        Command::Approve { approval, .. } => match &approval.decision {
            Decision::Edit(value) => value.len(),
            Decision::Approve | Decision::Reject { .. } => 0,
        },
        Command::Cancel { reason, .. } => reason.len(),
        Command::ApplyWorkflow { .. }
        | Command::Retry { .. }
        | Command::FireTimers
        | Command::CheckDigest { .. }
        | Command::Finalize { .. }
        | Command::Alert { .. } => 0,
    }
}

/// A command as it is sent to the leader of its shard.
#[must_use]
pub fn encode_command(of: &Command) -> Bytes {
    envelope::seal(Kind::Command, &command::encode(of))
}

/// Reads [`encode_command`].
///
/// # Errors
///
/// Bytes that are no command that this version knows.
pub fn decode_command(bytes: &[u8]) -> Result<Command, Error> {
    command::decode(envelope::unseal(Kind::Command, bytes)?)
}

/// An outcome as it is sent to who asked.
#[must_use]
pub fn encode_outcome(of: &Outcome) -> Bytes {
    envelope::seal(Kind::Outcome, &outcome::encode(of))
}

/// Reads [`encode_outcome`].
///
/// # Errors
///
/// Bytes that are no outcome that this version knows.
pub fn decode_outcome(bytes: &[u8]) -> Result<Outcome, Error> {
    outcome::decode(envelope::unseal(Kind::Outcome, bytes)?)
}

/// What a session went through, as it is exported.
#[must_use]
pub fn encode_history(of: &History) -> Bytes {
    envelope::seal(Kind::History, &history::encode(of))
}

/// Reads [`encode_history`].
///
/// # Errors
///
/// Bytes that are no history that this version knows, or one whose events do not follow one another.
pub fn decode_history(bytes: &[u8]) -> Result<History, Error> {
    history::decode(envelope::unseal(Kind::History, bytes)?)
}

/// A row as it is stored.
#[must_use]
pub fn encode_row(row: &Row) -> Bytes {
    row::encode(row)
}

/// Reads the row under a key.
///
/// # Errors
///
/// Bytes that are no row, or changed since they were written.
pub fn decode_row(key: &Key, bytes: &[u8]) -> Result<Row, Error> {
    row::decode(key, bytes)
}

fn seal_row(message: &impl prost::Message) -> Bytes {
    envelope::seal(Kind::Row, message)
}

fn missing(what: &str) -> Error {
    Error::Body(format!("{what} is missing or of an unknown kind"))
}
