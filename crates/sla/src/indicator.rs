//! What is measured, and what it is told apart by.

use std::{
    cmp::Ordering,
    hash::{Hash, Hasher},
};

use hashbrown::Equivalent;
use proto::sla as message;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Indicator {
    /// From the start of a session to the first thing that happens in it: the begin of its first work, or its first
    /// wait.
    SessionInit,
    /// From the start of a session to its end. One that fails is bad; one that is canceled does not count.
    SessionCompletion,
    /// From the begin of an agent's work to its outcome, all providers that were asked together. An attempt that fails
    /// is bad.
    AgentResponse,
    /// How long the providers took that did not answer, where another one answered in their place.
    ProviderFallback,
    /// From the failure of a step to the end of its recovery. A recovery that is of no use is bad.
    Recovery,
    /// From the begin of a worker's work on a task to its outcome.
    TaskDuration,
    /// From a request over HTTP or gRPC to its answer, streams and waits not counted. An answer with 5xx is bad.
    ApiLatency,
    /// Whether a node answered another one that asked it.
    Uptime,
    /// Whether a replica had what most had, when they were compared.
    DataPersistence,
    /// Whether an answer was found in the cache. There is no cache yet: nothing is counted.
    CacheHit,
}

/// What an indicator counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// How long things took, and how many went wrong.
    Durations,
    /// How many went right, and how many wrong.
    Ratio,
}

/// Who sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every replica, in the log.
    Replicas,
    /// One node only.
    Node,
}

impl Indicator {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::SessionInit,
        Self::SessionCompletion,
        Self::AgentResponse,
        Self::ProviderFallback,
        Self::Recovery,
        Self::TaskDuration,
        Self::ApiLatency,
        Self::Uptime,
        Self::DataPersistence,
        Self::CacheHit,
    ];

    /// The name in configuration, reports and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SessionInit => "session_init",
            Self::SessionCompletion => "session_completion",
            Self::AgentResponse => "agent_response",
            Self::ProviderFallback => "provider_fallback",
            Self::Recovery => "recovery",
            Self::TaskDuration => "task_duration",
            Self::ApiLatency => "api_latency",
            Self::Uptime => "uptime",
            Self::DataPersistence => "data_persistence",
            Self::CacheHit => "cache_hit",
        }
    }

    /// The indicator of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|indicator| indicator.name() == name)
    }

    /// What it counts.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Uptime | Self::DataPersistence | Self::CacheHit => Kind::Ratio,
            _ => Kind::Durations,
        }
    }

    /// Whether it is told apart by tenant.
    #[must_use]
    pub fn is_of_tenants(self) -> bool {
        !matches!(self, Self::Uptime | Self::DataPersistence | Self::CacheHit)
    }

    /// Who sees it.
    #[must_use]
    pub fn scope(self) -> Scope {
        match self {
            Self::ApiLatency | Self::Uptime | Self::DataPersistence | Self::CacheHit => Scope::Node,
            _ => Scope::Replicas,
        }
    }
}

/// What a measurement is told apart by. Empty where it does not apply.
#[derive(Debug, Clone, Copy, Eq, Hash, Default)]
pub struct Labels<'a> {
    /// Whose session or request.
    pub tenant: &'a str,
    /// The name of its workflow.
    pub workflow: &'a str,
    /// The agent's role.
    pub role: &'a str,
    /// The provider that answered.
    pub provider: &'a str,
    /// The node that it is about.
    pub node: &'a str,
}

impl Labels<'_> {
    fn texts(&self) -> [&str; 5] {
        [self.tenant, self.workflow, self.role, self.provider, self.node]
    }
}

/// Most labels are empty most of the time, and an empty text points nowhere. Where the C library compares with masked
/// loads (AVX-512), one from an address that is not mapped costs 170 ns, though not a byte of it is looked at: empty
/// texts are not handed to it.
fn same(ours: &str, theirs: &str) -> bool {
    ours.len() == theirs.len() && (ours.is_empty() || ours == theirs)
}

impl PartialEq for Labels<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.texts().into_iter().zip(other.texts()).all(|(ours, theirs)| same(ours, theirs))
    }
}

/// An indicator with its labels.
#[derive(Debug, Clone, Eq)]
pub struct Series {
    /// What is measured.
    pub indicator: Indicator,
    /// Whose session or request.
    pub tenant: String,
    /// The name of its workflow.
    pub workflow: String,
    /// The agent's role.
    pub role: String,
    /// The provider that answered.
    pub provider: String,
    /// The node that it is about.
    pub node: String,
}

impl Series {
    pub(crate) fn of(Key(indicator, labels): Key<'_>) -> Self {
        Self {
            indicator,
            tenant: labels.tenant.to_owned(),
            workflow: labels.workflow.to_owned(),
            role: labels.role.to_owned(),
            provider: labels.provider.to_owned(),
            node: labels.node.to_owned(),
        }
    }

    /// `None` for an indicator that this version does not know.
    pub(crate) fn decode(of: &message::Series) -> Option<Self> {
        Some(Self {
            indicator: Indicator::named(&of.indicator)?,
            tenant: of.tenant.clone(),
            workflow: of.workflow.clone(),
            role: of.role.clone(),
            provider: of.provider.clone(),
            node: of.node.clone(),
        })
    }

    /// Its labels.
    #[must_use]
    pub fn labels(&self) -> Labels<'_> {
        Labels {
            tenant: &self.tenant,
            workflow: &self.workflow,
            role: &self.role,
            provider: &self.provider,
            node: &self.node,
        }
    }
}

impl PartialEq for Series {
    fn eq(&self, other: &Self) -> bool {
        self.indicator == other.indicator && self.labels() == other.labels()
    }
}

impl PartialOrd for Series {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Series {
    fn cmp(&self, other: &Self) -> Ordering {
        // As above.
        let order = |(ours, theirs): (&str, &str)| match (ours.is_empty(), theirs.is_empty()) {
            (false, false) => ours.cmp(theirs),
            (ours, theirs) => theirs.cmp(&ours),
        };
        let (ours, theirs) = (self.labels(), other.labels());
        let mut texts = ours.texts().into_iter().zip(theirs.texts()).map(order);
        self.indicator
            .cmp(&other.indicator)
            .then_with(|| texts.find(|order| order.is_ne()).unwrap_or(Ordering::Equal))
    }
}

impl Hash for Series {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Key(self.indicator, self.labels()).hash(state);
    }
}

/// A series as it is looked for, without its own texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key<'a>(pub(crate) Indicator, pub(crate) Labels<'a>);

impl Equivalent<Series> for Key<'_> {
    fn equivalent(&self, series: &Series) -> bool {
        self.0 == series.indicator && self.1 == series.labels()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_in_the_order_of_their_texts_empty_ones_first() {
        let texts = ["", "a", "ab", "b"];
        let all: Vec<Series> = texts
            .iter()
            .flat_map(|tenant| texts.map(|role| Labels { tenant, role, ..Labels::default() }))
            .map(|labels| Series::of(Key(Indicator::ApiLatency, labels)))
            .collect();
        for ours in &all {
            for theirs in &all {
                let expected = (&ours.tenant, &ours.role).cmp(&(&theirs.tenant, &theirs.role));
                assert_eq!(ours.cmp(theirs), expected, "{ours:?} {theirs:?}");
                assert_eq!(ours == theirs, expected.is_eq(), "{ours:?} {theirs:?}");
            }
        }
    }
}
