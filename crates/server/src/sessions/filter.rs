//! Which sessions a list has.

use machine::{SessionRow, SessionStatus};

use crate::error::ApiError;

/// Every session, or those with a status, of a workflow, with a label.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    status: Option<SessionStatus>,
    workflow: Option<String>,
    label: Option<(String, String)>,
}

impl Filter {
    /// A filter as clients write it; a label as `key=value`.
    pub(crate) fn new(
        status: Option<&str>,
        workflow: Option<String>,
        label: Option<&str>,
    ) -> Result<Self, ApiError> {
        let known = SessionStatus::ALL.map(SessionStatus::name).join(", ");
        let status = status.map(|name| {
            let found = SessionStatus::ALL.into_iter().find(|status| status.name() == name);
            found.ok_or_else(|| ApiError::invalid(format!("status: expected one of {known}; found {name:?}")))
        });
        let label = label.map(|label| {
            let parts = label.split_once('=').filter(|(key, _)| !key.is_empty());
            let parts = parts.map(|(key, value)| (key.to_owned(), value.to_owned()));
            parts.ok_or_else(|| ApiError::invalid(format!("label: expected key=value; found {label:?}")))
        });
        Ok(Self { status: status.transpose()?, workflow, label: label.transpose()? })
    }

    /// Whether it takes every session.
    pub(super) fn is_empty(&self) -> bool {
        self.status.is_none() && self.workflow.is_none() && self.label.is_none()
    }

    pub(super) fn takes(&self, row: &SessionRow) -> bool {
        self.status.is_none_or(|status| row.status == status)
            && self.workflow.as_ref().is_none_or(|workflow| row.workflow == *workflow)
            && self.label.as_ref().is_none_or(|label| row.labels.contains(label))
    }
}
