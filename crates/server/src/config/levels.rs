//! What is promised, and when somebody is told.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What is promised, besides the documented levels or instead of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sla {
    /// The support tier, 1 to 4: which uptime is promised.
    pub tier: u8,
    /// A file of `[[objectives]]`: each is added, or takes the place of the documented one of its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objectives: Option<PathBuf>,
    /// Announced maintenance, the same on every node: a node that does not answer meanwhile does not count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub maintenance: Vec<sla::maintenance::Written>,
}

impl Default for Sla {
    fn default() -> Self {
        Self { tier: 3, objectives: None, maintenance: Vec::new() }
    }
}

impl Sla {
    /// Announced maintenance.
    ///
    /// # Errors
    ///
    /// What is none, and what instead.
    pub fn maintenance(&self) -> Result<Vec<sla::Maintenance>, sla::Error> {
        self.maintenance.iter().map(sla::maintenance::Written::parse).collect()
    }

    /// All objectives.
    ///
    /// # Errors
    ///
    /// The file can not be read, or is not one of objectives.
    pub fn objectives(&self) -> Result<Vec<sla::Objective>, sla::Error> {
        if !(1..=4).contains(&self.tier) {
            return Err(sla::Error::Form(format!("tier {}: expected 1 to 4", self.tier)));
        }
        let mut all = sla::built_in(self.tier);
        if let Some(path) = &self.objectives {
            for objective in sla::parse(&read(path)?)? {
                all.retain(|documented| documented.name != objective.name);
                all.push(objective);
            }
        }
        Ok(all)
    }
}

/// When somebody is told. The same on every node: the leader of shard 0 looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alerts {
    /// A file of `[[alerts]]`: each is added, or takes the place of the documented one of its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<PathBuf>,
    /// Whether the documented thresholds are looked at.
    pub documented: bool,
    /// Whether it is looked at how fast the error budgets are spent.
    pub budgets: bool,
    /// Seconds between two looks, 1 to 300.
    pub every_seconds: u64,
    /// Who is told; nobody if it is not given, and alerts are shown only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
}

impl Default for Alerts {
    fn default() -> Self {
        Self { rules: None, documented: true, budgets: true, every_seconds: 15, webhook: None }
    }
}

/// Who is told: `POST` of JSON in the shape of Alertmanager's webhook, version 4, until it is answered with 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Where, `http://` or `https://`.
    pub url: String,
    /// The variable with the secret that signs what is sent (Standard Webhooks: `webhook-id`, `webhook-timestamp`,
    /// `webhook-signature`). Not signed without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_env: Option<String>,
}

impl Alerts {
    pub(super) fn check(&self) -> Result<(), String> {
        if !(1..=300).contains(&self.every_seconds) {
            return Err(format!("alerts.every_seconds must be 1 to 300; found {}", self.every_seconds));
        }
        match &self.webhook {
            Some(webhook) if !webhook.url.starts_with("http://") && !webhook.url.starts_with("https://") => {
                Err(format!("alerts.webhook.url: expected http:// or https://, found {:?}", webhook.url))
            }
            _ => Ok(()),
        }
    }

    /// All rules.
    ///
    /// # Errors
    ///
    /// The file can not be read, or is not one of rules.
    pub fn rules(&self, objectives: &[sla::Objective]) -> Result<Vec<sla::alert::Rule>, sla::Error> {
        let mut all = if self.documented { sla::alert::built_in() } else { Vec::new() };
        if self.budgets {
            all.extend(sla::alert::burns(objectives));
        }
        if let Some(path) = &self.rules {
            for rule in sla::alert::parse(&read(path)?)? {
                all.retain(|documented| documented.name != rule.name);
                all.push(rule);
            }
        }
        Ok(all)
    }
}

fn read(path: &Path) -> Result<String, sla::Error> {
    std::fs::read_to_string(path).map_err(|error| sla::Error::Form(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[test]
    fn alerts_are_checked_when_the_configuration_is() {
        let refused = |text: &str| Config::parse(text).unwrap().check().unwrap_err().to_string();
        assert!(refused("[alerts]\nevery_seconds = 0").contains("1 to 300"));
        assert!(refused("[[sla.maintenance]]\nreason = \"r\"").contains("from and until"));
        assert!(refused("[alerts.webhook]\nurl = \"pager\"").contains("http://"));
    }

    #[test]
    fn files_that_are_none_are_said_with_their_path() {
        let sla = Sla { objectives: Some("/nowhere/objectives.toml".into()), ..Sla::default() };
        assert!(sla.objectives().unwrap_err().to_string().starts_with("/nowhere/objectives.toml: "));
        assert!(Sla { tier: 5, ..Sla::default() }.objectives().unwrap_err().to_string().contains("1 to 4"));
        let alerts = Alerts { rules: Some("/nowhere/alerts.toml".into()), ..Alerts::default() };
        assert!(alerts.rules(&[]).unwrap_err().to_string().starts_with("/nowhere/alerts.toml: "));
    }

    #[test]
    fn a_rule_of_ones_own_takes_the_place_of_the_documented_one() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("alerts.toml");
        std::fs::write(
            &path,
            "[[alerts]]\nname = \"queue depth\"\nwhen = \"queue_depth > 7\"\nseverity = \"critical\"\n",
        )
        .unwrap();
        let documented = Alerts { budgets: false, ..Alerts::default() };
        let alerts = Alerts { rules: Some(path), ..documented.clone() };
        let rules = alerts.rules(&[]).unwrap();
        assert_eq!(rules.len(), documented.rules(&[]).unwrap().len());
        let queue: Vec<_> = rules.iter().filter(|rule| rule.name == "queue depth").collect();
        assert_eq!((queue.len(), queue[0].text.as_str()), (1, "queue_depth > 7"));
        assert!(Alerts { documented: false, ..documented }.rules(&[]).unwrap().is_empty());
    }
}
