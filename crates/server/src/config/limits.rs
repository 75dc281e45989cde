//! How many requests are answered.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// How many requests a node answers; as many as come, where nothing is given. Health, metrics and the files of the
/// dashboard are not counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests a minute of a tenant, over HTTP and gRPC together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_tenant_per_minute: Option<NonZeroU32>,
    /// Requests a minute of an address, over HTTP and gRPC, as this node sees it: behind a proxy, that is the proxy's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_address_per_minute: Option<NonZeroU32>,
}
