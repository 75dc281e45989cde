//! What model calls used: tokens and cost, by provider, model and role, as every replica applies it.

use std::{collections::BTreeMap, fmt::Write as _};

use machine::{Report, Usage};
use parking_lot::Mutex;

use crate::prometheus::{quoted, region_label};

/// Series that are kept. What comes beyond is counted under names of their own: empty ones.
const SERIES_MAX: usize = 1_000;

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Of {
    provider: String,
    model: String,
    role: String,
}

#[derive(Debug, Default)]
struct Totals {
    answers: u64,
    usage: Usage,
}

/// What was used since the process began.
#[derive(Debug, Default)]
pub struct Spent(Mutex<BTreeMap<Of, Totals>>);

impl Spent {
    pub(crate) fn add(&self, report: &Report, role: &str) {
        let of = Of { provider: report.provider.clone(), model: report.model.clone(), role: role.to_owned() };
        let mut all = self.0.lock();
        let of = if all.len() < SERIES_MAX || all.contains_key(&of) { of } else { Of::default() };
        let totals = all.entry(of).or_default();
        totals.answers += 1;
        let (sum, usage) = (&mut totals.usage, &report.usage);
        sum.tokens_in = sum.tokens_in.saturating_add(usage.tokens_in);
        sum.tokens_out = sum.tokens_out.saturating_add(usage.tokens_out);
        sum.cost_microusd = sum.cost_microusd.saturating_add(usage.cost_microusd);
    }

    /// Tokens of all of it, in and out.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.0.lock().values().map(|of| of.usage.tokens_in.saturating_add(of.usage.tokens_out)).sum()
    }

    /// For Prometheus, as `OpenMetrics` text without its end.
    #[must_use]
    pub fn exposition(&self, region: &str) -> String {
        let (all, mut text) = (self.0.lock(), String::new());
        let about = "every node counts all sessions: take the largest over nodes, not the sum";
        let mut family = |name: &str, what: &str, samples: &dyn Fn(&Totals) -> Vec<(&'static str, u64)>| {
            let _ = writeln!(text, "# HELP orchestra_{name} {what}; {about}.");
            let _ = writeln!(text, "# TYPE orchestra_{name} counter");
            for (of, totals) in all.iter() {
                let region = region_label(region);
                let labels = [("provider", &of.provider), ("model", &of.model), ("role", &of.role)];
                let labels: Vec<String> =
                    labels.iter().map(|(name, value)| format!("{name}={}", quoted(value))).collect();
                for (more, value) in samples(totals) {
                    let _ = writeln!(
                        text,
                        "orchestra_{name}_total{{{region}{}{more}}} {value}",
                        labels.join(",")
                    );
                }
            }
        };
        family("model_answers", "Answers of models", &|totals| vec![("", totals.answers)]);
        family("model_tokens", "Tokens sent and received", &|totals| {
            vec![
                (",direction=\"in\"", totals.usage.tokens_in),
                (",direction=\"out\"", totals.usage.tokens_out),
            ]
        });
        family(
            "model_cost_microusd",
            "Cost in millionths of a US dollar, by the configured prices",
            &|totals| vec![("", totals.usage.cost_microusd)],
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_models_used_adds_up() {
        let spent = Spent::default();
        let usage = Usage { tokens_in: 5, tokens_out: 2, cost_microusd: 7 };
        let report = Report { provider: "p\"".into(), model: "m".into(), usage, ..Report::default() };
        spent.add(&report, "auditor");
        spent.add(&report, "auditor");
        let text = spent.exposition("");
        let labels = r#"provider="p\"",model="m",role="auditor""#;
        for line in [
            format!("orchestra_model_answers_total{{{labels}}} 2"),
            format!("orchestra_model_tokens_total{{{labels},direction=\"in\"}} 10"),
            format!("orchestra_model_tokens_total{{{labels},direction=\"out\"}} 4"),
            format!("orchestra_model_cost_microusd_total{{{labels}}} 14"),
        ] {
            assert!(text.lines().any(|of| of == line), "{line}\n{text}");
        }
        for n in 0..SERIES_MAX + 5 {
            spent.add(&Report { model: n.to_string(), ..Report::default() }, "");
        }
        assert_eq!(spent.0.lock().len(), SERIES_MAX + 1);
    }
}
