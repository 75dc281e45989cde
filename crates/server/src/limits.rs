//! How many requests a minute: of a token's tenant, and of an address.
//!
//! Each is a bucket that holds a minute's worth and fills steadily (GCRA, as the library `governor` does it), of this
//! node: with several nodes, clients have as many buckets. HTTP answers say how it stands in `RateLimit-Policy` and
//! `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10).

use std::{hash::Hash, net::IpAddr, num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::DefaultKeyedStateStore,
};

use crate::{
    config,
    error::{self, ApiError},
};

const MINUTE: Duration = Duration::from_secs(60);
/// Keys beyond which those that are full again are forgotten.
const KEYS_MAX: usize = 10_000;

type Buckets<K> = RateLimiter<K, DefaultKeyedStateStore<K>, DefaultClock, StateInformationMiddleware>;

/// The buckets of a node.
#[derive(Debug)]
pub(crate) struct Limits {
    tenants: Option<Limit<String>>,
    addresses: Option<Limit<IpAddr>>,
}

#[derive(Debug)]
struct Limit<K: Hash + Eq + Clone> {
    name: &'static str,
    a_minute: NonZeroU32,
    buckets: Buckets<K>,
}

/// How a bucket stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    name: &'static str,
    a_minute: u32,
    left: u32,
    /// How long until it is full, or, where nothing is left, until there is something.
    wait: Duration,
}

impl Standing {
    pub(crate) fn policy(&self) -> String {
        format!("\"{}\";q={};w={}", self.name, self.a_minute, MINUTE.as_secs())
    }

    pub(crate) fn now(&self) -> String {
        let seconds = self.wait.as_secs() + u64::from(self.wait.subsec_nanos() > 0);
        format!("\"{}\";r={};t={seconds}", self.name, self.left)
    }

    pub(crate) fn refusal(&self) -> ApiError {
        let of = format!("{} requests a minute and {}", self.a_minute, self.name);
        let ms = u64::try_from(self.wait.as_millis()).unwrap_or(u64::MAX).max(1);
        ApiError { retry_after_ms: Some(ms), ..ApiError::new(error::RATE_LIMITED, of) }
    }
}

impl Limits {
    pub(crate) fn new(of: &config::Limits) -> Self {
        Self {
            tenants: Limit::new("tenant", of.per_tenant_per_minute),
            addresses: Limit::new("address", of.per_address_per_minute),
        }
    }

    /// Takes one from an address' bucket.
    pub(crate) fn address(&self, address: IpAddr) -> Option<Result<Standing, Standing>> {
        self.addresses.as_ref().map(|limit| limit.take(&address))
    }

    /// Takes one from a tenant's bucket.
    pub(crate) fn tenant(&self, tenant: &str) -> Option<Result<Standing, Standing>> {
        self.tenants.as_ref().map(|limit| limit.take(&tenant.to_owned()))
    }
}

impl<K: Hash + Eq + Clone> Limit<K> {
    fn new(name: &'static str, a_minute: Option<NonZeroU32>) -> Option<Self> {
        let a_minute = a_minute?;
        let buckets = RateLimiter::keyed(Quota::per_minute(a_minute)).with_middleware();
        Some(Self { name, a_minute, buckets })
    }

    fn take(&self, key: &K) -> Result<Standing, Standing> {
        if self.buckets.len() > KEYS_MAX {
            self.buckets.retain_recent();
        }
        let standing =
            |left: u32, wait| Standing { name: self.name, a_minute: self.a_minute.get(), left, wait };
        match self.buckets.check_key(key) {
            Ok(now) => {
                let left = now.remaining_burst_capacity();
                let taken = self.a_minute.get().saturating_sub(left);
                Ok(standing(left, MINUTE * taken / self.a_minute.get()))
            }
            Err(until) => Err(standing(0, until.wait_time_from(DefaultClock::default().now()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_says_how_it_stands_and_when_it_has_more() {
        let of = config::Limits { per_tenant_per_minute: NonZeroU32::new(3), per_address_per_minute: None };
        let limits = Limits::new(&of);
        assert!(limits.address(IpAddr::from([127, 0, 0, 1])).is_none(), "there is no such limit");
        let first = limits.tenant("a").unwrap().unwrap();
        assert_eq!(
            (first.policy().as_str(), first.now().as_str()),
            ("\"tenant\";q=3;w=60", "\"tenant\";r=2;t=20")
        );
        for left in [1, 0] {
            assert_eq!(limits.tenant("a").unwrap().unwrap().left, left);
        }
        let refused = limits.tenant("a").unwrap().unwrap_err();
        assert!(refused.now().starts_with("\"tenant\";r=0;t="), "{refused:?}");
        assert!(
            refused.wait > Duration::from_secs(15) && refused.wait <= Duration::from_secs(20),
            "{refused:?}"
        );
        assert_eq!(refused.refusal().code, error::RATE_LIMITED);
        assert!(limits.tenant("b").unwrap().is_ok(), "another's bucket");
    }
}
