//! The YAML document, as serde reads it. Unknown keys are errors.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_saphyr::Spanned;

type Text = Spanned<String>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    pub(crate) name: Text,
    #[serde(default, rename = "description")]
    pub(crate) _description: Option<String>,
    #[serde(default)]
    pub(crate) limits: Limits,
    pub(crate) retention: Option<Text>,
    #[serde(default)]
    pub(crate) retry: Option<Retry>,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    #[serde(default)]
    pub(crate) steps: u32,
    #[serde(default)]
    pub(crate) tokens: u64,
    #[serde(default)]
    pub(crate) cost_usd: f64,
    #[serde(default)]
    pub(crate) iterations: u32,
    pub(crate) duration: Option<Text>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retry {
    #[serde(default = "default_attempts")]
    pub(crate) max_attempts: u32,
    #[serde(default)]
    pub(crate) backoff: Backoff,
    pub(crate) delay: Option<Text>,
    pub(crate) max_delay: Option<Text>,
    pub(crate) jitter: Option<f64>,
}

fn default_attempts() -> u32 {
    3
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Backoff {
    Constant,
    Linear,
    #[default]
    Exponential,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    pub(crate) id: Text,
    pub(crate) after: Option<Vec<Text>>,
    pub(crate) when: Option<Text>,
    pub(crate) retry: Option<Retry>,
    pub(crate) timeout: Option<Text>,
    pub(crate) recover: Option<Recover>,
    pub(crate) agent: Option<Agent>,
    pub(crate) task: Option<Task>,
    pub(crate) value: Option<Text>,
    pub(crate) branch: Option<Branch>,
    pub(crate) fork: Option<BTreeMap<String, Vec<Step>>>,
    pub(crate) map: Option<Map>,
    #[serde(rename = "loop")]
    pub(crate) repeat: Option<Loop>,
    pub(crate) wait: Option<Wait>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recover {
    #[serde(default = "default_attempts")]
    pub(crate) max_attempts: u32,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Agent {
    pub(crate) role: Text,
    #[serde(default)]
    pub(crate) system: Option<Text>,
    pub(crate) prompt: Text,
    #[serde(default)]
    pub(crate) output: Output,
    #[serde(default)]
    pub(crate) max_tokens: u32,
    pub(crate) temperature: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Task {
    pub(crate) queue: Text,
    pub(crate) input: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Output {
    #[default]
    Text,
    Code,
    Json,
    Schema(serde_json::Value),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Branch {
    pub(crate) cases: Vec<Case>,
    pub(crate) otherwise: Option<Vec<Step>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) when: Text,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Map {
    pub(crate) items: Text,
    #[serde(default = "default_parallel")]
    pub(crate) parallel: u16,
    #[serde(default)]
    pub(crate) on_failure: OnFailure,
    pub(crate) steps: Vec<Step>,
}

fn default_parallel() -> u16 {
    4
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnFailure {
    #[default]
    Fail,
    Continue,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Loop {
    pub(crate) until: Text,
    #[serde(default = "default_iterations")]
    pub(crate) max_iterations: u32,
    #[serde(default)]
    pub(crate) on_exhausted: OnFailure,
    pub(crate) steps: Vec<Step>,
}

fn default_iterations() -> u32 {
    10
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wait {
    #[serde(rename = "for")]
    pub(crate) span: Option<Text>,
    pub(crate) signal: Option<Text>,
    pub(crate) approval: Option<Text>,
    pub(crate) timeout: Option<Text>,
}
