//! How much there may be.

use std::num::{NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};

/// How much there may be; as much as comes, where nothing is given. Beyond it, no session is started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capacity {
    /// Sessions of the cluster that have not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<NonZeroU32>,
    /// Minutes that a session may take. One that asks for more is refused, and one that asks for nothing has these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minutes: Option<NonZeroU32>,
    /// MiB of memory of this node's process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<NonZeroU64>,
    /// MiB of this node's data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<NonZeroU64>,
}
