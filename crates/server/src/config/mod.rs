//! Configuration: a TOML file, over it the environment (`ORCHESTRA_*`), over that the flags of the command line.
//!
//! An unknown key is an error with its place; an unknown `ORCHESTRA_*` variable is a warning. Secrets are named,
//! never written: `api_key_env = "X"` means the variable `X`, or the file that `X_FILE` names.

mod backup;
mod capacity;
mod levels;
mod limits;
mod log;
mod node;
mod provider;
mod traces;

use std::{collections::BTreeMap, env, path::PathBuf};

use providers::simulated;
use serde::{Deserialize, Serialize};

pub use backup::Backup;
pub use capacity::Capacity;
pub use levels::{Alerts, Sla, Webhook};
pub use limits::Limits;
pub use log::{Log, LogFormat};
pub use node::Node;
pub use provider::{Price, Provider, Wire};
pub(crate) use provider::{default_circuit_failures, default_circuit_seconds};
pub use traces::{SpanNames, Traces};

/// The whole configuration of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The node itself.
    pub node: Node,
    /// The node's certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Who may call, and as which tenant. Without any, everybody is tenant `default`.
    pub tokens: Vec<Token>,
    /// The vendors, by name.
    pub providers: BTreeMap<String, Provider>,
    /// The chain of each role: `provider/model`, first choice first.
    pub roles: BTreeMap<String, Vec<String>>,
    /// Prices by `provider/model` or model.
    pub prices: BTreeMap<String, Price>,
    /// The vendor that runs where no provider is configured.
    pub simulated: Simulated,
    /// Backups on a schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    /// What is promised.
    pub sla: Sla,
    /// When somebody is told.
    pub alerts: Alerts,
    /// How many requests are answered.
    pub limits: Limits,
    /// How much there may be.
    pub capacity: Capacity,
    /// Where traces go; nowhere without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traces: Option<Traces>,
    /// Logging.
    pub log: Log,
}

/// The node's certificates, all in PEM. Files that change are read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Its certificate, for the hosts that others reach it at, and those up to the authority's.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority that signs the nodes of the cluster, and nothing else: who shows a certificate of it is a node.
    pub ca: PathBuf,
}

/// Who may call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The tenant.
    pub tenant: String,
    /// The variable with the token.
    pub token_env: String,
    /// Whether it may change, drain and back up the cluster, which is all tenants' business.
    #[serde(default)]
    pub admin: bool,
}

/// The vendor that runs where no provider is configured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Simulated {
    /// A file of replies: a JSON list of `{"contains", "reply"}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replies: Option<PathBuf>,
    /// How it behaves.
    pub behaviour: simulated::Options,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can not be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a configuration.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        message: String,
    },
    /// A variable has a value that is none.
    #[error("{variable}={value}: expected {expected}")]
    Variable {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What was expected.
        expected: &'static str,
    },
    /// Options contradict one another.
    #[error("{0}")]
    Invalid(String),
}

const VARIABLES: [&str; 13] = [
    "ORCHESTRA_DATA_DIR",
    "ORCHESTRA_HTTP",
    "ORCHESTRA_GRPC",
    "ORCHESTRA_PEER",
    "ORCHESTRA_ADVERTISE",
    "ORCHESTRA_NAME",
    "ORCHESTRA_JOIN",
    "ORCHESTRA_LOG",
    "ORCHESTRA_LOG_FORMAT",
    "ORCHESTRA_CONFIG",
    "ORCHESTRA_URL",
    "ORCHESTRA_TOKEN",
    "ORCHESTRA_CA",
];

impl Config {
    /// Reads a file, if one is given, and the environment.
    ///
    /// # Errors
    ///
    /// What is wrong, and where.
    pub fn load(path: Option<&std::path::Path>) -> Result<Self, Error> {
        let mut config = match path {
            None => Self::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| Error::Read { path: path.to_owned(), source })?;
                Self::parse(&text).map_err(|message| Error::Parse { path: path.to_owned(), message })?
            }
        };
        config.apply_environment()?;
        config.check()?;
        Ok(config)
    }

    /// Reads a configuration's text.
    ///
    /// # Errors
    ///
    /// What is wrong, with line and column.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())
    }

    fn apply_environment(&mut self) -> Result<(), Error> {
        fn parsed<T: std::str::FromStr>(
            variable: &'static str,
            expected: &'static str,
            slot: &mut T,
        ) -> Result<(), Error> {
            if let Ok(value) = env::var(variable) {
                *slot = value.parse().map_err(|_| Error::Variable { variable, value, expected })?;
            }
            Ok(())
        }
        if let Ok(value) = env::var("ORCHESTRA_DATA_DIR") {
            self.node.data_dir = value.into();
        }
        parsed("ORCHESTRA_HTTP", "an address such as 127.0.0.1:7100", &mut self.node.http)?;
        parsed("ORCHESTRA_GRPC", "an address such as 127.0.0.1:7101", &mut self.node.grpc)?;
        parsed("ORCHESTRA_PEER", "an address such as 127.0.0.1:7102", &mut self.node.peer)?;
        parsed("ORCHESTRA_ADVERTISE", "a host", &mut self.node.advertise)?;
        parsed("ORCHESTRA_NAME", "a name", &mut self.node.name)?;
        if let Ok(value) = env::var("ORCHESTRA_JOIN") {
            self.node.join = value.split(',').map(|seed| seed.trim().to_owned()).collect();
        }
        if let Ok(value) = env::var("ORCHESTRA_LOG") {
            self.log.level = value;
        }
        if let Ok(value) = env::var("ORCHESTRA_LOG_FORMAT") {
            let variable = "ORCHESTRA_LOG_FORMAT";
            self.log.format = match value.as_str() {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return Err(Error::Variable { variable, value, expected: "text or json" }),
            };
        }
        Ok(())
    }

    /// Variables named like ours that nothing reads.
    #[must_use]
    pub fn unknown_variables() -> Vec<String> {
        env::vars()
            .map(|(name, _)| name)
            .filter(|name| name.starts_with("ORCHESTRA_") && !VARIABLES.contains(&name.as_str()))
            .collect()
    }

    /// Checks how options relate.
    ///
    /// # Errors
    ///
    /// Which contradict one another.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |message: String| Err(Error::Invalid(message));
        self.node.check(self.tls.is_some(), self.tokens.is_empty()).map_err(Error::Invalid)?;
        self.backup.as_ref().map_or(Ok(()), |backup| backup.check(self.sla.tier)).map_err(Error::Invalid)?;
        self.alerts.check().map_err(Error::Invalid)?;
        self.sla.maintenance().map_err(|error| Error::Invalid(error.to_string()))?;
        self.traces.as_ref().map_or(Ok(()), Traces::check).map_err(Error::Invalid)?;
        for (role, chain) in &self.roles {
            for link in chain {
                let Some((provider, model)) = link.split_once('/') else {
                    return invalid(format!("roles.{role}: expected provider/model, found {link:?}"));
                };
                if !self.providers.contains_key(provider) || model.is_empty() {
                    let known = self.providers.keys().cloned().collect::<Vec<_>>().join(", ");
                    return invalid(format!(
                        "roles.{role}: {link:?} names no configured provider; known are {known}"
                    ));
                }
            }
        }
        if !self.providers.is_empty() && self.roles.get("default").is_none_or(Vec::is_empty) {
            return invalid("roles.default must name at least one provider/model".into());
        }
        for (name, price) in &self.prices {
            price.check(name).map_err(Error::Invalid)?;
        }
        self.log.check().map_err(Error::Invalid)?;
        self.providers.iter().try_for_each(|(name, provider)| provider.check(name)).map_err(Error::Invalid)
    }

    /// The configuration as TOML, for people: without what its URLs hide.
    #[must_use]
    pub fn print(&self) -> String {
        toml::to_string_pretty(&self.shown()).unwrap_or_default()
    }

    /// The configuration of a node as a backup keeps it, as a file of configuration.
    ///
    /// # Errors
    ///
    /// It has a value that such a file can not have.
    pub fn of_backup(kept: &serde_json::Value) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(&without_nulls(kept))
    }

    /// What may be seen by others: without what URLs hide.
    pub(crate) fn shown(&self) -> Self {
        let mut shown = self.clone();
        let providers = shown.providers.values_mut().map(|provider| &mut provider.base_url);
        let webhook = shown.alerts.webhook.iter_mut().map(|webhook| &mut webhook.url);
        let traces = shown.traces.iter_mut().map(|traces| &mut traces.otlp);
        let backup = shown.backup.iter_mut().map(|backup| &mut backup.to);
        let log = shown.log.url.iter_mut();
        for url in providers.chain(webhook).chain(traces).chain(backup).chain(log) {
            *url = without_secrets(url);
        }
        shown
    }
}

/// What is not set is not written.
fn without_nulls(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            let set = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(set.map(|(name, value)| (name.clone(), without_nulls(value))).collect())
        }
        Value::Array(values) => Value::Array(values.iter().map(without_nulls).collect()),
        value => value.clone(),
    }
}

/// A URL without its password and the values of its query.
fn without_secrets(url: &str) -> String {
    let (rest, query) = url.split_once('?').map_or((url, None), |(rest, query)| (rest, Some(query)));
    let mut shown = match (rest.split_once("://"), rest.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://[redacted]@{host}"),
        _ => rest.to_owned(),
    };
    if query.is_some() {
        shown.push_str("?[redacted]");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_an_error_with_its_place() {
        let error = Config::parse("[node]\nhtpp = \"127.0.0.1:1\"\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("htpp"), "{error}");
    }

    #[test]
    fn relations_are_checked() {
        let check = |text: &str| Config::parse(text).unwrap().check().unwrap_err().to_string();
        assert!(check("[node]\nhttp = \"0.0.0.0:7100\"").contains("not loopback"));
        assert!(check("[roles]\ndefault = [\"zai\"]").contains("expected provider/model"));
        assert!(check("[roles]\ndefault = [\"zai/glm\"]").contains("names no configured provider"));
        let provider = "[providers.p]\nwire = \"openai\"\nbase_url = \"http://127.0.0.1:1/\"\n";
        assert!(check(provider).contains("roles.default"));
        for wrong in [
            "to = \"\"",
            "to = \"b\"\nevery_minutes = 0",
            "to = \"b\"\nkeep = 0",
            "to = \"b\"\nmib_per_second = 0",
        ] {
            assert!(
                check(&format!("[backup]\n{wrong}")).contains("`mib_per_second` from 1 to 100000"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_is_printed_hides_what_urls_hide() {
        let text = "[roles]\ndefault = [\"p/m\"]\n[providers.p]\nwire = \"openai\"\n\
                    base_url = \"https://user:canary-password@127.0.0.1/v1?key=canary-query\"\n";
        let config = Config::parse(text).unwrap();
        config.check().unwrap();
        let printed = config.print();
        assert!(!printed.contains("canary") && printed.contains("[redacted]@127.0.0.1/v1"), "{printed}");
        assert_eq!(Config::parse(&printed).unwrap().roles, config.roles);
    }

    #[test]
    fn a_collector_that_can_not_be_is_refused() {
        let refused = |text: &str| Config::parse(text).unwrap().check().unwrap_err().to_string();
        assert!(refused("[log]\nurl = \"collector:443\"").contains("http://"));
        assert!(refused("[log]\nurl = \"https://c:port\"").contains("invalid port"));
        assert!(refused("[log]\ntoken_env = \"T\"").contains("log.url"));
    }
}
