//! How many requests a minute: of a token's tenant, and of an address.
//!
//! Each is a bucket that holds a minute's worth and fills steadily (GCRA, as the library `governor` does it), of this
//! node: with several nodes, clients have as many buckets. Answers say how it stands in `RateLimit-Policy` and
//! `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10), those of gRPC in metadata of these names.

use std::{hash::Hash, net::IpAddr, num::NonZeroU32, time::Duration};

use axum::http::HeaderMap;
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
    fn policy(&self) -> String {
        format!("\"{}\";q={};w={}", self.name, self.a_minute, MINUTE.as_secs())
    }

    fn now(&self) -> String {
        let seconds = self.wait.as_secs() + u64::from(self.wait.subsec_nanos() > 0);
        format!("\"{}\";r={};t={seconds}", self.name, self.left)
    }

    fn refusal(&self) -> ApiError {
        let of = format!("{} requests a minute and {}", self.a_minute, self.name);
        let ms = u64::try_from(self.wait.as_millis()).unwrap_or(u64::MAX).max(1);
        ApiError { retry_after_ms: Some(ms), ..ApiError::new(error::RATE_LIMITED, of) }
    }
}

/// How the buckets of one request stand: where it is refused, the last of them is empty.
#[derive(Debug)]
pub(crate) struct Standings {
    of: Vec<Standing>,
    is_refused: bool,
}

impl Standings {
    /// Why the request is refused, if it is.
    pub(crate) fn refusal(&self) -> Option<ApiError> {
        self.of.last().filter(|_| self.is_refused).map(Standing::refusal)
    }

    /// Says how they stand.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        let list = |part: fn(&Standing) -> String| self.of.iter().map(part).collect::<Vec<_>>().join(", ");
        for (name, value) in
            [("ratelimit-policy", list(Standing::policy)), ("ratelimit", list(Standing::now))]
        {
            if let Ok(value) = value.parse()
                && !self.of.is_empty()
            {
                headers.insert(name, value);
            }
        }
    }
}

impl Limits {
    pub(crate) fn new(of: &config::Limits) -> Self {
        Self {
            tenants: Limit::new("tenant", of.per_tenant_per_minute),
            addresses: Limit::new("address", of.per_address_per_minute),
        }
    }

    /// Takes one from the buckets of an address and of a tenant, as far as they are known.
    pub(crate) fn take(&self, address: Option<IpAddr>, tenant: Option<&str>) -> Standings {
        let of_address = || Some(self.addresses.as_ref()?.take(&address?));
        let of_tenant = || Some(self.tenants.as_ref()?.take(&tenant?.to_owned()));
        let mut standings = Standings { of: Vec::new(), is_refused: false };
        // Who is refused by one bucket takes nothing from the next.
        for take in [&of_address as &dyn Fn() -> Option<Result<Standing, Standing>>, &of_tenant] {
            match take() {
                None => {}
                Some(Ok(standing)) => standings.of.push(standing),
                Some(Err(standing)) => {
                    standings.of.push(standing);
                    standings.is_refused = true;
                    break;
                }
            }
        }
        standings
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
        let here = Some(IpAddr::from([127, 0, 0, 1]));
        let untold = limits.take(here, None);
        assert!(untold.of.is_empty() && untold.refusal().is_none(), "there is no such limit");
        let headers = told(&limits.take(here, Some("a")));
        assert_eq!(headers, ["\"tenant\";q=3;w=60", "\"tenant\";r=2;t=20"]);
        for left in [1, 0] {
            assert_eq!(limits.take(here, Some("a")).of[0].left, left);
        }
        let refused = limits.take(here, Some("a"));
        assert!(told(&refused)[1].starts_with("\"tenant\";r=0;t="), "{refused:?}");
        let wait = refused.of[0].wait;
        assert!(wait > Duration::from_secs(15) && wait <= Duration::from_secs(20), "{refused:?}");
        assert_eq!(refused.refusal().unwrap().code, error::RATE_LIMITED);
        assert!(limits.take(here, Some("b")).refusal().is_none(), "another's bucket");
    }

    #[test]
    fn both_buckets_say_how_they_stand_and_one_that_refuses_spares_the_other() {
        let of = config::Limits {
            per_tenant_per_minute: NonZeroU32::new(3),
            per_address_per_minute: NonZeroU32::new(1),
        };
        let limits = Limits::new(&of);
        let [one, other] = [1, 2].map(|last| Some(IpAddr::from([127, 0, 0, last])));
        let headers = told(&limits.take(one, Some("a")));
        assert_eq!(headers[0], "\"address\";q=1;w=60, \"tenant\";q=3;w=60");
        assert_eq!(headers[1], "\"address\";r=0;t=60, \"tenant\";r=2;t=20");
        let refused = limits.take(one, Some("a"));
        assert!(refused.refusal().unwrap().detail.contains("address"), "{refused:?}");
        let after = limits.take(other, Some("a"));
        assert_eq!((after.of[1].left, after.refusal().is_none()), (1, true), "the refused took none");
    }

    fn told(standings: &Standings) -> [String; 2] {
        let mut headers = HeaderMap::new();
        standings.tell(&mut headers);
        ["ratelimit-policy", "ratelimit"].map(|name| headers[name].to_str().unwrap().to_owned())
    }
}
