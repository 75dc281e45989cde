//! When backups are made, and where they go.

use serde::{Deserialize, Serialize};

/// Backups on a schedule. The same on every node: the leader of shard 0 makes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// A directory that every node reaches under this path, or `s3://bucket/prefix`.
    pub to: String,
    /// Minutes between the beginnings of two: 1440 for daily, 60, or 15. What was acknowledged since the last one is
    /// what the loss of the whole cluster costs. One that is twice as old as this is overdue. By default as often as
    /// the support tier (`sla.tier`) has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_minutes: Option<u64>,
    /// How many are kept.
    #[serde(default = "default_keep")]
    pub keep: usize,
    /// Mebibytes a second that are copied, 1 to 100,000: the rest of the disk and the network is for what clients wait
    /// for. A backup must fit into `every_minutes`.
    #[serde(default = "default_mib_per_second")]
    pub mib_per_second: u64,
}

fn default_mib_per_second() -> u64 {
    64
}

impl Backup {
    /// Minutes between the beginnings of two: as configured, or daily, hourly, every 15 minutes for the support tiers.
    #[must_use]
    pub fn minutes(&self, tier: u8) -> u64 {
        self.every_minutes.unwrap_or(match tier {
            0..=2 => 1_440,
            3 => 60,
            _ => 15,
        })
    }

    /// Whether its numbers are within their bounds.
    pub(super) fn check(&self, tier: u8) -> Result<(), String> {
        if self.to.is_empty()
            || !(1..=10_080).contains(&self.minutes(tier))
            || !(1..=100_000).contains(&self.mib_per_second)
            || self.keep == 0
        {
            return Err(format!(
                "[backup] needs a place `to`, `every_minutes` from 1 to 10080, `keep` of 1 or more and `mib_per_second` \
                 from 1 to 100000; found {self:?}"
            ));
        }
        Ok(())
    }
}

fn default_keep() -> usize {
    48
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn backups_are_made_as_often_as_the_tier_has_it() {
        let minutes = |text: &str| {
            let config = Config::parse(text).unwrap();
            config.backup.unwrap().minutes(config.sla.tier)
        };
        assert_eq!(minutes("[backup]\nto = \"b\"\n"), 60);
        for (tier, every) in [(1, 1_440), (2, 1_440), (3, 60), (4, 15)] {
            assert_eq!(minutes(&format!("[sla]\ntier = {tier}\n[backup]\nto = \"b\"\n")), every);
        }
        assert_eq!(minutes("[sla]\ntier = 4\n[backup]\nto = \"b\"\nevery_minutes = 7\n"), 7);
    }
}
