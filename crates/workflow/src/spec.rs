//! What a node says that only the leader reads. Kept as JSON in [`machine::Node::spec`].

use serde::{Deserialize, Serialize};

/// The part of a node that is evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The condition under which the step runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// What it does.
    pub task: Task,
}

/// What a node does, as text to be evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Asks a model.
    Agent(Box<Agent>),
    /// Has a worker outside the cluster do it, on this input: an expression.
    External(String),
    /// Evaluates an expression.
    Value(String),
    /// The conditions of a branch's cases, in order.
    Branch(Vec<String>),
    /// The list of a map.
    Map(String),
    /// The condition that ends a loop.
    Loop(String),
    /// Nothing to evaluate: fork, wait.
    Nothing,
}

/// A question to a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Chooses the chain of providers.
    pub role: String,
    /// The template of the system message; empty for none.
    #[serde(default)]
    pub system: String,
    /// The template of the message.
    pub prompt: String,
    /// What the answer must be.
    #[serde(default)]
    pub output: Format,
    /// The most tokens of the answer; 0 for the provider's default.
    #[serde(default)]
    pub max_tokens: u32,
    /// The temperature; `None` for the provider's default.
    #[serde(default)]
    pub temperature: Option<f64>,
}

/// What an answer must be.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Any text: the output is a JSON string.
    #[default]
    Text,
    /// Text, from which one surrounding Markdown code fence is taken off.
    Code,
    /// Any JSON.
    Json,
    /// JSON that satisfies a JSON Schema.
    Schema(serde_json::Value),
}
