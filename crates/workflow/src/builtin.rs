//! The workflows that ship with the binary.

/// Name and source of every built-in workflow.
pub const BUILTIN: [(&str, &str); 1] = [("code", include_str!("../builtin/code.yaml"))];

/// The source of a built-in workflow.
#[must_use]
pub fn builtin(name: &str) -> Option<&'static str> {
    BUILTIN.iter().find(|(builtin, _)| *builtin == name).map(|(_, source)| *source)
}
