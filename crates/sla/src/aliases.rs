//! What is counted, under the names of the systems whose work this one takes over, so that the dashboards and rules
//! that people have go on: `agentexec_*` and `oao_*`. A task and an execution are a session here; the name of a task
//! and the type of an agent are its workflow.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{
    Indicator, Series,
    prometheus::{Totals, histogram, quoted},
};

/// As `OpenMetrics` text without its end. As with every count of sessions: take the largest over nodes, not the sum.
pub(crate) fn exposition<'a>(
    all: impl Iterator<Item = (&'a Series, &'a Totals)>,
    tokens: u64,
    edges: &[u64],
) -> String {
    let (mut begun, mut ended) = (BTreeMap::<&str, Totals>::new(), BTreeMap::<&str, Totals>::new());
    let mut together = Totals::default();
    for (series, totals) in all {
        match series.indicator {
            Indicator::SessionInit => begun.entry(&series.workflow).or_default().add(totals),
            Indicator::SessionCompletion => {
                ended.entry(&series.workflow).or_default().add(totals);
                together.add(totals);
            }
            _ => {}
        }
    }
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &dyn Fn(&mut String)| {
        // Writing to a string does not fail.
        let _ = write!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}\n");
        samples(&mut text);
    };
    family("agentexec_tasks_queued", "counter", "Alias: sessions that have begun", &|text| {
        for (workflow, totals) in &begun {
            let count = totals.good + totals.bad;
            let _ = writeln!(text, "agentexec_tasks_queued_total{{task_name={}}} {count}", quoted(workflow));
        }
    });
    let by_status = |text: &mut String, name: &str, label: &str| {
        for (workflow, totals) in &ended {
            for (status, count) in [("completed", totals.good), ("failed", totals.bad)] {
                let workflow = quoted(workflow);
                let _ = writeln!(text, "{name}_total{{{label}={workflow},status=\"{status}\"}} {count}");
            }
        }
    };
    family("agentexec_tasks_completed", "counter", "Alias: sessions that have ended", &|text| {
        by_status(text, "agentexec_tasks_completed", "task_name");
    });
    let duration = "Alias: durations of sessions that completed";
    family("agentexec_task_duration_seconds", "histogram", duration, &|text| {
        for (workflow, totals) in &ended {
            let label = format!("task_name={},", quoted(workflow));
            histogram(text, "agentexec_task_duration_seconds", &label, totals, edges);
        }
    });
    family("oao_executions", "counter", "Alias: sessions that have ended", &|text| {
        by_status(text, "oao_executions", "agent_type");
    });
    family("oao_execution_duration_seconds", "histogram", duration, &|text| {
        histogram(text, "oao_execution_duration_seconds", "", &together, edges);
    });
    family("oao_token_usage", "counter", "Alias: tokens of model calls, in and out", &|text| {
        let _ = writeln!(text, "oao_token_usage_total {tokens}");
    });
    text
}

#[cfg(test)]
mod tests {
    use ids::Timestamp;

    use crate::{Indicator, Labels, Recorder};

    #[test]
    fn the_names_of_other_systems_tell_the_same() {
        let recorder = Recorder::with_edges(vec![1_000_000, 2_000_000]);
        for tenant in ["a", "b"] {
            let labels = Labels { tenant, workflow: "w", ..Labels::default() };
            recorder.took(Indicator::SessionInit, labels, Timestamp(1), 5);
            recorder.took(Indicator::SessionCompletion, labels, Timestamp(1), 1_500_000);
        }
        let labels = Labels { tenant: "a", workflow: "w", ..Labels::default() };
        recorder.took(Indicator::SessionInit, labels, Timestamp(1), 5);
        recorder.happened(Indicator::SessionCompletion, labels, Timestamp(1), false);
        let text = recorder.aliases(77);
        for line in [
            "agentexec_tasks_queued_total{task_name=\"w\"} 3",
            "agentexec_tasks_completed_total{task_name=\"w\",status=\"completed\"} 2",
            "oao_executions_total{agent_type=\"w\",status=\"failed\"} 1",
            "agentexec_task_duration_seconds_bucket{task_name=\"w\",le=\"1.0\"} 0",
            "agentexec_task_duration_seconds_bucket{task_name=\"w\",le=\"2.0\"} 2",
            "agentexec_task_duration_seconds_sum{task_name=\"w\"} 3.0",
            "oao_execution_duration_seconds_count 2",
            "oao_execution_duration_seconds_bucket{le=\"+Inf\"} 2",
            "oao_token_usage_total 77",
        ] {
            assert!(text.lines().any(|of| of == line), "{line} is not in\n{text}");
        }
    }
}
