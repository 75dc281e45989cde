//! From a role to an answer: the chain of providers, with breakers, bounds and a report of every call.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use machine::{Call, Failure, FailureClass, Report};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    Breaker, BreakerOptions, BreakerState, CallError, Completion, Prices, Provider, Redactor, Request,
};

/// The role whose chain serves roles without one.
const DEFAULT_ROLE: &str = "default";

/// A call that was not made, as the provider rests.
const CIRCUIT_OPEN: &str = "circuit_open";

/// How a router works.
#[derive(Debug)]
pub struct RouterOptions {
    /// The chain of each role, first choice first. `default` serves the roles that have none.
    pub roles: BTreeMap<String, Vec<Link>>,
    /// What models cost.
    pub prices: Prices,
    /// Takes secrets out of messages.
    pub redactor: Redactor,
}

/// A link of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The provider's name.
    pub provider: String,
    /// The model, by the provider's name for it.
    pub model: String,
}

/// A provider of a router.
#[derive(Clone)]
pub struct ProviderOptions {
    /// The vendor.
    pub provider: Arc<dyn Provider>,
    /// Calls at once.
    pub concurrency: usize,
    /// When it rests.
    pub breaker: BreakerOptions,
}

/// What came of a question.
#[derive(Debug)]
pub struct Answer {
    /// The answer, or why there is none.
    pub result: Result<Completion, Failure>,
    /// When it may be worth asking again: when the first of those that may recover said, and at once if one said
    /// nothing.
    pub retry_after: Duration,
    /// Whether any provider was asked: none is while all rest.
    pub asked: bool,
    /// What it took.
    pub report: Report,
}

/// What a router says of a provider.
#[derive(Debug, Clone)]
pub struct ProviderStatus {
    /// Its name.
    pub name: String,
    /// Its breaker.
    pub breaker: BreakerState,
    /// Calls on their way.
    pub in_flight: usize,
    /// Whether its answers are made up.
    pub simulated: bool,
}

/// Why a router can not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouterError {
    /// A chain names a provider that is not configured.
    #[error("role `{role}` names provider `{provider}`, which is not configured; known are {known}")]
    UnknownProvider {
        /// The role.
        role: String,
        /// The provider.
        provider: String,
        /// Those that are configured.
        known: String,
    },
    /// There is no chain for roles without one.
    #[error("there is no chain for role `default`")]
    NoDefault,
}

struct Entry {
    provider: Arc<dyn Provider>,
    permits: Semaphore,
    concurrency: usize,
    breaker: Mutex<Breaker>,
}

/// From a role to an answer.
pub struct Router {
    providers: BTreeMap<String, Entry>,
    options: RouterOptions,
}

impl Router {
    /// A router over the given providers.
    ///
    /// # Errors
    ///
    /// A chain names a provider that is not there, or there is no default chain.
    pub fn new(
        providers: BTreeMap<String, ProviderOptions>,
        options: RouterOptions,
    ) -> Result<Self, RouterError> {
        if options.roles.get(DEFAULT_ROLE).is_none_or(Vec::is_empty) {
            return Err(RouterError::NoDefault);
        }
        for (role, chain) in &options.roles {
            if let Some(link) = chain.iter().find(|link| !providers.contains_key(&link.provider)) {
                let known = providers.keys().cloned().collect::<Vec<_>>().join(", ");
                return Err(RouterError::UnknownProvider {
                    role: role.clone(),
                    provider: link.provider.clone(),
                    known,
                });
            }
        }
        let entry = |ProviderOptions { provider, concurrency, breaker }| Entry {
            provider,
            permits: Semaphore::new(concurrency),
            concurrency,
            breaker: Mutex::new(Breaker::new(breaker)),
        };
        let providers = providers.into_iter().map(|(name, options)| (name, entry(options)));
        Ok(Self { providers: providers.collect(), options })
    }

    /// What it says of its providers.
    #[must_use]
    pub fn status(&self) -> Vec<ProviderStatus> {
        let now = Instant::now();
        let status = self.providers.iter().map(|(name, entry)| ProviderStatus {
            name: name.clone(),
            breaker: entry.breaker.lock().state(now),
            in_flight: entry.concurrency - entry.permits.available_permits(),
            simulated: entry.provider.is_simulated(),
        });
        status.collect()
    }

    /// Whether any provider is simulated.
    #[must_use]
    pub fn is_simulated(&self) -> bool {
        self.providers.values().any(|entry| entry.provider.is_simulated())
    }

    /// Takes secrets out of texts.
    #[must_use]
    pub fn redactor(&self) -> &Redactor {
        &self.options.redactor
    }

    /// Asks down the role's chain until a provider answers. `request.model` is set by the chain.
    pub async fn ask(&self, role: &str, mut request: Request, deadline: Option<Instant>) -> Answer {
        let mut report = Report::default();
        let mut last: Option<CallError> = None;
        let (mut asked, mut retry_after) = (false, None::<Duration>);
        let chain = self.options.roles.get(role).or_else(|| self.options.roles.get(DEFAULT_ROLE));
        for link in chain.into_iter().flatten() {
            let Some(entry) = self.providers.get(&link.provider) else { continue };
            request.model.clone_from(&link.model);
            let started = Instant::now();
            let result = entry.call(&request, deadline).await;
            let latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let mut call = Call {
                provider: link.provider.clone(),
                model: link.model.clone(),
                latency_ms,
                failure: None,
            };
            match result {
                Ok(completion) => {
                    report.calls.push(call);
                    report.provider.clone_from(&link.provider);
                    report.model.clone_from(&link.model);
                    report.simulated = entry.provider.is_simulated();
                    report.usage = self.options.prices.usage(&link.provider, &link.model, &completion);
                    return Answer {
                        result: Ok(completion),
                        retry_after: Duration::ZERO,
                        asked: true,
                        report,
                    };
                }
                Err(mut error) => {
                    error.message = self.options.redactor.redact(&error.message);
                    asked |= error.code != CIRCUIT_OPEN;
                    if error.class == FailureClass::Transient {
                        let wait = error.retry_after.unwrap_or_default();
                        retry_after = Some(retry_after.map_or(wait, |least| least.min(wait)));
                    }
                    tracing::info!(provider = %link.provider, code = error.code, reason = %error.message, "call failed");
                    call.failure = Some(Failure::new(error.class, error.code, error.message.clone()));
                    report.calls.push(call);
                    last = Some(error);
                }
            }
        }
        let failure = match last {
            Some(error) => {
                // The last error speaks for the chain; it is tried again if any link may recover.
                let class = if retry_after.is_some() { FailureClass::Transient } else { error.class };
                Failure::new(class, error.code, error.message)
            }
            None => {
                Failure::new(FailureClass::Permanent, "no_provider", format!("no provider for role `{role}`"))
            }
        };
        // A chain without links is no matter of time.
        let asked = asked || retry_after.is_none();
        Answer { result: Err(failure), retry_after: retry_after.unwrap_or_default(), asked, report }
    }
}

impl Entry {
    /// One call, its turn and its answer before the deadline. That no turn came is not the provider's fault; that no
    /// answer came is.
    async fn call(&self, request: &Request, deadline: Option<Instant>) -> Result<Completion, CallError> {
        let late = |unhealthy| CallError::transient("timeout", "the step's time is up", unhealthy);
        let turn = within(deadline, self.permits.acquire()).await.ok_or_else(|| late(false))?;
        let _permit = turn.map_err(|_| CallError::transient("stopped", "stopped", false))?;
        if let Err(wait) = self.breaker.lock().admit(Instant::now()) {
            let error = CallError::transient(CIRCUIT_OPEN, "the provider failed repeatedly; it rests", false);
            return Err(CallError { retry_after: Some(wait), ..error });
        }
        let answer = within(deadline, self.provider.complete(request)).await;
        let result = answer.unwrap_or_else(|| Err(late(true)));
        let mut breaker = self.breaker.lock();
        match &result {
            Ok(_) => breaker.succeeded(),
            Err(error) if error.unhealthy => breaker.failed(Instant::now()),
            // It answered, if only to refuse: it is there.
            Err(_) => breaker.succeeded(),
        }
        result
    }
}

/// What comes of `work`; nothing where the deadline comes first, or has come.
async fn within<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    let Some(deadline) = deadline else { return Some(work.await) };
    if deadline <= Instant::now() {
        return None;
    }
    tokio::time::timeout_at(deadline, work).await.ok()
}

impl CallError {
    /// An error that may pass.
    #[must_use]
    pub fn transient(code: &'static str, message: impl Into<String>, unhealthy: bool) -> Self {
        Self { class: FailureClass::Transient, code, message: message.into(), retry_after: None, unhealthy }
    }

    /// An error that will not pass by itself.
    #[must_use]
    pub fn permanent(code: &'static str, message: impl Into<String>) -> Self {
        let class = FailureClass::Permanent;
        Self { class, code, message: message.into(), retry_after: None, unhealthy: false }
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("roles", &self.options.roles).finish_non_exhaustive()
    }
}
