//! What a run does, as data: `chaos/scenarios/*.toml`, or a file of the user's.

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

use crate::cluster::Fault;

/// The scenarios that come with the program, by name.
const BUILT_IN: [(&str, &str); 6] = [
    ("all", include_str!("../scenarios/all.toml")),
    ("nodes", include_str!("../scenarios/nodes.toml")),
    ("network", include_str!("../scenarios/network.toml")),
    ("disks", include_str!("../scenarios/disks.toml")),
    ("clocks", include_str!("../scenarios/clocks.toml")),
    ("upgrade", include_str!("../scenarios/upgrade.toml")),
];

/// A scenario.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is called.
    #[serde(skip)]
    pub name: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// The faults: each at least once, in this order, and then any.
    pub faults: Vec<Fault>,
    /// The rest between two faults, in milliseconds: from, to.
    #[serde(default = "default_rest")]
    pub rest_ms: (u64, u64),
    /// Clients that append to registers and read them.
    #[serde(default = "default_register_clients")]
    pub register_clients: u64,
    /// How long workers take for what takes long, in milliseconds: from, to. Its time is up after 1,200.
    #[serde(default = "default_slow_task")]
    pub slow_task_ms: (u64, u64),
    /// Clients that start sessions and wait for their ends.
    #[serde(default = "default_session_clients")]
    pub session_clients: u64,
}

fn default_rest() -> (u64, u64) {
    (200, 1_000)
}

fn default_slow_task() -> (u64, u64) {
    (300, 900)
}

fn default_register_clients() -> u64 {
    16
}

fn default_session_clients() -> u64 {
    8
}

impl Scenario {
    /// A scenario of these faults, as the built-in ones are otherwise.
    #[must_use]
    pub fn of(name: &str, faults: Vec<Fault>) -> Self {
        Self {
            name: name.to_owned(),
            about: String::new(),
            faults,
            rest_ms: default_rest(),
            slow_task_ms: default_slow_task(),
            register_clients: default_register_clients(),
            session_clients: default_session_clients(),
        }
    }

    /// A built-in scenario by its name, or one from a file.
    ///
    /// # Errors
    ///
    /// There is none, or it is not one.
    pub fn load(of: &str) -> anyhow::Result<Self> {
        let built_in = BUILT_IN.iter().find(|(name, _)| *name == of);
        let (name, text) = match built_in {
            Some((name, text)) => ((*name).to_owned(), (*text).to_owned()),
            None => {
                let path = Path::new(of);
                let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("{of} is neither a file nor one of {}", names.join(", ")))?;
                (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), text)
            }
        };
        let mut scenario: Self = toml::from_str(&text).with_context(|| format!("scenario {of}"))?;
        anyhow::ensure!(!scenario.faults.is_empty(), "scenario {of} has no faults: name at least one");
        for (name, (from, to)) in [("rest_ms", scenario.rest_ms), ("slow_task_ms", scenario.slow_task_ms)] {
            anyhow::ensure!(from < to, "scenario {of}: {name} goes from less to more");
        }
        scenario.name = name;
        Ok(scenario)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn built_in_scenarios_are_sound_and_have_every_fault() {
        for (name, _) in BUILT_IN {
            assert_eq!(Scenario::load(name).unwrap().name, name);
        }
        let mut all = Scenario::load("all").unwrap().faults;
        all.sort();
        let mut every = Fault::value_variants().to_vec();
        every.sort();
        // Two releases have to agree on the older one's rules: a cluster of its own.
        every.retain(|fault| *fault != Fault::OtherRelease);
        assert_eq!(all, every);
        assert!(Scenario::load("upgrade").unwrap().faults.contains(&Fault::OtherRelease));
        let error = format!("{:#}", Scenario::load("nonsense").unwrap_err());
        assert!(error.contains("neither a file nor one of all, nodes"), "{error}");
    }
}
