//! What a load does, as data: `loadtest/scenarios/*.toml`, or a file of the user's.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

/// The scenarios that come with the program, by name.
const BUILT_IN: [(&str, &str); 10] = [
    ("one", include_str!("../../scenarios/one.toml")),
    ("three", include_str!("../../scenarios/three.toml")),
    ("nine", include_str!("../../scenarios/nine.toml")),
    ("workers", include_str!("../../scenarios/workers.toml")),
    ("payload", include_str!("../../scenarios/payload.toml")),
    ("fan-out", include_str!("../../scenarios/fan-out.toml")),
    ("long", include_str!("../../scenarios/long.toml")),
    ("signals", include_str!("../../scenarios/signals.toml")),
    ("mixed", include_str!("../../scenarios/mixed.toml")),
    ("soak", include_str!("../../scenarios/soak.toml")),
];
/// The queue of tasks that this load does itself.
pub(crate) const QUEUE: &str = "load";
/// A value of the machine is 256 KiB at most.
const PAYLOAD_MAX: usize = 200_000;

/// A load.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// What it is called.
    #[serde(skip)]
    pub(crate) name: String,
    /// What it shows, in a sentence.
    pub(crate) about: String,
    /// Sessions under way at once, each followed by the next: a closed loop.
    #[serde(default = "default_clients")]
    pub(crate) clients: usize,
    /// Sessions started a second, whatever becomes of those before: an open loop, instead of clients.
    pub(crate) rate: Option<f64>,
    /// What is not counted yet, in seconds.
    #[serde(default = "default_warm_up")]
    pub(crate) warm_up_seconds: u64,
    /// What is counted, in seconds.
    #[serde(default = "default_seconds")]
    pub(crate) seconds: u64,
    /// How much more or less than in its first half may be done in its second half, as a share.
    #[serde(default = "default_drift")]
    pub(crate) drift_max: f64,
    /// What sessions do. With several kinds, each comes as often as its share has it.
    pub(crate) work: Vec<Work>,
}

/// A kind of session.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Work {
    /// What it is called.
    pub(crate) name: String,
    /// How often it comes, beside the others.
    #[serde(default = "one")]
    pub(crate) share: u32,
    /// Steps, one after another.
    #[serde(default = "one")]
    pub(crate) steps: u32,
    /// Who does them.
    #[serde(default)]
    pub(crate) done_by: DoneBy,
    /// Bytes of the input, which tasks hand on.
    #[serde(default = "default_payload")]
    pub(crate) payload_bytes: usize,
    /// Items that are worked on at once, after the steps.
    #[serde(default)]
    pub(crate) fan_out: u32,
    /// Signals that the session waits for in the end, and is sent.
    #[serde(default)]
    pub(crate) signals: u32,
}

/// Who does the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DoneBy {
    /// An agent, which is a model's vendor in the end.
    #[default]
    Agent,
    /// A worker outside: this program.
    Task,
    /// The node itself.
    Value,
}

fn default_clients() -> usize {
    32
}

fn default_warm_up() -> u64 {
    3
}

fn default_seconds() -> u64 {
    20
}

fn default_drift() -> f64 {
    0.15
}

fn default_payload() -> usize {
    100
}

fn one() -> u32 {
    1
}

impl Scenario {
    /// A built-in scenario by its name, or one from a file.
    ///
    /// # Errors
    ///
    /// There is none, or it is not one.
    pub(crate) fn load(of: &str) -> anyhow::Result<Self> {
        let built_in = BUILT_IN.iter().find(|(name, _)| *name == of);
        let (name, text) = match built_in {
            Some((name, text)) => ((*name).to_owned(), (*text).to_owned()),
            None => {
                let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
                let text = std::fs::read_to_string(of)
                    .with_context(|| format!("{of} is neither a file nor one of {}", names.join(", ")))?;
                (Path::new(of).file_stem().unwrap_or_default().to_string_lossy().into_owned(), text)
            }
        };
        let mut scenario: Self = toml::from_str(&text).with_context(|| format!("scenario {of}"))?;
        scenario.name = name;
        scenario.check().with_context(|| format!("scenario {of}"))?;
        Ok(scenario)
    }

    /// Whether it can be run: also with what the command line has changed.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.work.is_empty(), "it has no [[work]]: name at least one");
        ensure!((1..=10_000).contains(&self.clients), "clients {}: 1 to 10,000", self.clients);
        ensure!((1..=86_400).contains(&self.seconds), "seconds {}: 1 to 86,400", self.seconds);
        ensure!(self.rate.is_none_or(|rate| (0.01..=100_000.0).contains(&rate)), "rate: 0.01 to 100,000");
        ensure!(self.drift_max > 0.0, "drift_max: more than 0");
        for work in &self.work {
            let Work { name, share, steps, payload_bytes, fan_out, signals, .. } = work;
            let plain = |of: char| of.is_ascii_lowercase() || of.is_ascii_digit() || of == '-';
            ensure!(!name.is_empty() && name.chars().all(plain), "name {name:?}: of a-z, 0-9 and -");
            ensure!((1..=1_000).contains(share), "share {share} of {name}: 1 to 1,000");
            ensure!(*steps <= 1_000, "steps {steps} of {name}: at most 1,000");
            ensure!(steps + fan_out + signals > 0, "{name} does nothing");
            ensure!(
                *payload_bytes <= PAYLOAD_MAX,
                "payload_bytes {payload_bytes} of {name}: at most {PAYLOAD_MAX}"
            );
            ensure!(*fan_out <= 1_000, "fan_out {fan_out} of {name}: at most 1,000");
            ensure!(*signals <= 100, "signals {signals} of {name}: at most 100");
        }
        Ok(())
    }
}

impl Work {
    /// The name of its workflow.
    pub(crate) fn workflow(&self) -> String {
        format!("load-{}", self.name)
    }

    /// Steps of a session of this kind that somebody does.
    pub(crate) fn steps_each(&self) -> u32 {
        self.steps + self.fan_out
    }

    /// Its workflow.
    pub(crate) fn source(&self) -> String {
        let of = |input: &str| match self.done_by {
            DoneBy::Agent => format!("agent: {{role: executor, prompt: '{{{{ {input} }}}}'}}"),
            DoneBy::Task => format!("task: {{queue: {QUEUE}, input: {input}}}"),
            DoneBy::Value => format!("value: {input}"),
        };
        let mut source = format!("name: {}\nsteps:\n", self.workflow());
        // Writing into a string does not fail.
        for step in 0..self.steps {
            let _ = writeln!(source, "  - {{id: step{step}, {}}}", of("input.text"));
        }
        if self.fan_out > 0 {
            let items: Vec<String> = (0..self.fan_out).map(|item| item.to_string()).collect();
            let _ = writeln!(
                source,
                "  - id: items\n    map:\n      items: '[{}]'\n      parallel: {}\n      steps:\n        - {{id: item, {}}}",
                items.join(", "),
                self.fan_out,
                of("item")
            );
        }
        for signal in 0..self.signals {
            let _ = writeln!(source, "  - {{id: wait{signal}, wait: {{signal: go-{signal}}}}}");
        }
        source
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_scenarios_are_sound_and_their_workflows_compile() {
        for (name, _) in BUILT_IN {
            let scenario = Scenario::load(name).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert_eq!(scenario.name, name);
            for work in &scenario.work {
                for done_by in [DoneBy::Agent, DoneBy::Task, DoneBy::Value] {
                    let source = Work { done_by, ..work.clone() }.source();
                    let compiled = workflow::compile(name, &source);
                    assert!(compiled.is_ok(), "{source}\n{:?}", compiled.err());
                }
            }
        }
    }

    #[test]
    fn what_can_not_be_run_is_refused_with_what_it_should_be() {
        let refused = |text: &str| {
            let scenario: Result<Scenario, _> = toml::from_str(text);
            match scenario {
                Ok(scenario) => scenario.check().err().map(|error| error.to_string()).unwrap_or_default(),
                Err(error) => error.to_string(),
            }
        };
        let with = |work: &str| refused(&format!("about = ''\n[[work]]\nname = 'a'\n{work}"));
        assert_eq!(with(""), "");
        for (work, expected) in [
            ("share = 0", "share 0 of a: 1 to 1,000"),
            ("steps = 0", "a does nothing"),
            ("payload_bytes = 1_000_000", "at most 200000"),
            ("done_by = 'magic'", "unknown variant `magic`"),
            ("stepps = 3", "unknown field `stepps`"),
        ] {
            assert!(with(work).contains(expected), "{work}: {}", with(work));
        }
        assert!(refused("about = ''\nwork = []").contains("name at least one"));
        let error = Scenario::load("nonsense").map(|_| ()).map_err(|error| format!("{error:#}"));
        assert!(error.is_err_and(|error| error.contains("neither a file nor one of one, three")));
    }
}
