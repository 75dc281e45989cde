//! The exported rules, as Prometheus' own test tool sees them.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

use std::{fmt::Write as _, path::Path, process::Command};

use sla::{Kind, Objective, Statistic};

/// A series that grows by so much a minute, for two hours.
fn series(text: &mut String, name: &str, labels: &str, a_minute: u32) {
    let _ = writeln!(text, "      - {{series: 'orchestra_{name}{{{labels}}}', values: '0+{a_minute}x120'}}");
}

fn expected(text: &mut String, objective: &str, burns: &[(&str, &str, &str, &str)]) {
    for (long, short, factor, severity) in burns {
        let summary = format!(
            "{objective}: the error budget is spent {factor} times as fast as it may be, over {long} and {short}"
        );
        let _ = writeln!(
            text,
            "          - {{exp_labels: {{objective: '{objective}', severity: {severity}, window: {long}}}, \
             exp_annotations: {{summary: '{summary}'}}}}"
        );
    }
}

const FAST: (&str, &str, &str, &str) = ("1h", "5m", "14.4", "critical");
const MIDDLE: (&str, &str, &str, &str) = ("6h", "30m", "6", "critical");
const SLOW: (&str, &str, &str, &str) = ("3d", "6h", "1", "warning");

/// So many of ten answers within 60 s, as two replicas have counted them, the second for half the time; and so many
/// of a hundred probes that failed, as two nodes have seen them.
fn case(
    text: &mut String,
    within: u32,
    down: u32,
    answers: &[(&str, &str, &str, &str)],
    uptime: &[(&str, &str, &str, &str)],
) {
    text.push_str("  - interval: 1m\n    input_series:\n");
    for instance in ["a", "b"] {
        let of = format!("instance=\"{instance}\",role=\"executor\"");
        series(text, "agent_response_seconds_bucket", &format!("{of},le=\"60.0\""), within);
        series(text, "agent_response_seconds_count", &of, 10);
        let of = format!("instance=\"{instance}\",node=\"7\"");
        series(text, "uptime_total", &format!("{of},outcome=\"bad\""), down);
        series(text, "uptime_total", &format!("{of},outcome=\"good\""), 100 - down);
    }
    text.push_str("    alert_rule_test:\n      - eval_time: 110m\n        alertname: OrchestraBudgetBurns\n        exp_alerts:\n");
    expected(text, "agent response, P95", answers);
    expected(text, "uptime", uptime);
    if answers.is_empty() && uptime.is_empty() {
        *text = text.replace("        exp_alerts:\n", "        exp_alerts: []\n");
    }
}

fn all_rules() -> String {
    sla::prometheus::rules(&sla::built_in(3), &sla::alert::built_in())
}

/// A directory with the rules. `None` where there is no promtool, which is said; in CI there must be one.
fn with_rules() -> Option<tempfile::TempDir> {
    if Command::new("promtool").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI must have promtool: `deploy/dev/setup.sh testing`");
        let text = "NOT RUN: promtool is missing; `deploy/dev/setup.sh testing` installs it\n";
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
        return None;
    }
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("rules.yml"), all_rules()).unwrap();
    Some(temp)
}

fn promtool(arguments: &[&str], directory: &Path) {
    let output = Command::new("promtool").args(arguments).current_dir(directory).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

#[test]
fn deployed_rules_are_those_of_the_documented_levels() {
    let path =
        Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("../../deploy/observability/rules.yml");
    let deployed = std::fs::read_to_string(&path).unwrap_or_default();
    let rules = all_rules();
    assert!(
        deployed == rules,
        "{} is not what `orchestra sla rules` prints for the documented levels",
        path.display()
    );
}

#[test]
fn exported_rules_fire_when_they_must_and_not_otherwise() {
    let Some(temp) = with_rules() else { return };
    promtool(&["check", "rules", "rules.yml"], temp.path());
    let cases: [(u32, u32, &[_], &[_]); 4] = [
        // Nobody is late, nothing is down.
        (10, 0, &[], &[]),
        // 9 of 10 are late, where 1 of 20 may be: 18 times as fast. 10 % down, where 0.5 % may be: 20 times.
        (1, 10, &[FAST, MIDDLE, SLOW], &[FAST, MIDDLE, SLOW]),
        // 10 times as fast; 4 times.
        (5, 2, &[MIDDLE, SLOW], &[SLOW]),
        // Late as well, and everything is there.
        (4, 0, &[MIDDLE, SLOW], &[]),
    ];
    for (number, (within, down, answers, uptime)) in cases.into_iter().enumerate() {
        let mut text = "rule_files: [rules.yml]\nevaluation_interval: 1m\ntests:\n".to_owned();
        case(&mut text, within, down, answers, uptime);
        let name = format!("case-{number}.yml");
        std::fs::write(temp.path().join(&name), text).unwrap();
        promtool(&["test", "rules", &name], temp.path());
    }
}

/// Ten thousand a minute of an objective, for two hours, of which so many keep to it.
fn about(text: &mut String, objective: &Objective, kept: u32) {
    let (name, missed) = (objective.indicator.name(), 10_000 - kept);
    let mut of = "instance=\"a\"".to_owned();
    if !objective.role.is_empty() {
        let _ = write!(of, ",role=\"{}\"", objective.role);
    }
    match (objective.statistic, objective.indicator.kind()) {
        (Statistic::Ratio, Kind::Ratio) => {
            series(text, &format!("{name}_total"), &format!("{of},outcome=\"good\""), kept);
            series(text, &format!("{name}_total"), &format!("{of},outcome=\"bad\""), missed);
        }
        (Statistic::Ratio, Kind::Durations) => {
            series(text, &format!("{name}_seconds_count"), &of, kept);
            series(text, "failures_total", &format!("{of},indicator=\"{name}\""), missed);
        }
        _ => {
            let le = objective.target / 1e6;
            series(text, &format!("{name}_seconds_bucket"), &format!("{of},le=\"{le:?}\""), kept);
            series(text, &format!("{name}_seconds_count"), &of, 10_000);
        }
    }
}

#[test]
fn every_objective_fires_at_the_speed_of_its_own_budget() {
    let Some(temp) = with_rules() else { return };
    let mut fired = 0;
    for (number, objective) in sla::built_in(3).into_iter().enumerate() {
        let rules = sla::prometheus::rules(std::slice::from_ref(&objective), &[]);
        let (rule_file, cases) = (format!("rules-{number}.yml"), format!("cases-{number}.yml"));
        std::fs::write(temp.path().join(&rule_file), rules).unwrap();
        let Some(budget) = objective.budget() else {
            assert_eq!(objective.statistic, Statistic::Mean, "{}", objective.name);
            continue;
        };
        let mut text = format!("rule_files: [{rule_file}]\nevaluation_interval: 1m\ntests:\n");
        // All keep to it; as many as may miss it, less a tenth; then 1.5, 7 and 20 times as many, and all.
        for times in [0.0, 0.9, 1.5, 7.0, 20.0, f64::INFINITY] {
            // Where nothing may be missed, one of ten thousand is too many.
            let share = if budget > 0.0 { (times * budget).min(1.0) } else { (times * 1e-4).min(1.0) };
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "up to ten thousand")]
            let missed = (share * 10_000.0).round() as u32;
            let share = f64::from(missed) / 10_000.0;
            text.push_str("  - interval: 1m\n    input_series:\n");
            about(&mut text, &objective, 10_000 - missed);
            let fire: Vec<_> = [(FAST, 14.4), (MIDDLE, 6.0), (SLOW, 1.0)]
                .into_iter()
                .filter(|(_, factor)| factor * budget < 1.0 && share > factor * budget)
                .map(|(burn, _)| burn)
                .collect();
            fired += fire.len();
            text.push_str("    alert_rule_test:\n      - eval_time: 110m\n        alertname: OrchestraBudgetBurns\n        exp_alerts:");
            text.push_str(if fire.is_empty() { " []\n" } else { "\n" });
            expected(&mut text, &objective.name, &fire);
        }
        std::fs::write(temp.path().join(&cases), text).unwrap();
        promtool(&["test", "rules", &cases], temp.path());
    }
    assert!(fired > 40, "{fired} alerts were expected");
}

/// Series and their values, and the rules that fire.
type ThresholdCase<'a> = (Vec<(&'a str, &'a str)>, Vec<&'a str>);

/// Series of one instance, and which thresholds fire after ten minutes of them.
fn threshold_case(text: &mut String, series: &[(&str, &str)], fire: &[&str]) {
    text.push_str("  - interval: 1m\n    input_series:\n");
    for (name, values) in series {
        let _ = writeln!(text, "      - {{series: 'orchestra_{name}', values: '{values}'}}");
    }
    text.push_str("    alert_rule_test:\n      - eval_time: 20m\n        alertname: OrchestraThreshold\n        exp_alerts:");
    if fire.is_empty() {
        text.push_str(" []\n");
        return;
    }
    text.push('\n');
    for rule in sla::alert::built_in().iter().filter(|rule| fire.contains(&rule.name.as_str())) {
        let action =
            if rule.action.is_empty() { String::new() } else { format!(", action: '{}'", rule.action) };
        let _ = writeln!(
            text,
            "          - {{exp_labels: {{rule: '{}', severity: {}{action}}}, exp_annotations: {{summary: '{}: {}'}}}}",
            rule.name,
            rule.severity.name(),
            rule.name,
            rule.text
        );
    }
}

#[test]
fn exported_thresholds_fire_beyond_their_limit_and_not_before() {
    let Some(temp) = with_rules() else { return };
    let api = |within: &'static str| ("api_latency_seconds_bucket{instance=\"a\",le=\"0.5\"}", within);
    let (calls, task) = ("api_latency_seconds_count{instance=\"a\"}", "task_duration_seconds");
    let (task_sum, task_count) =
        (format!("{task}_sum{{instance=\"a\"}}"), format!("{task}_count{{instance=\"a\"}}"));
    let failures = |of: &str| format!("failures_total{{instance=\"a\",indicator=\"{of}\"}}");
    let (api_failures, task_failures) = (failures("api_latency"), failures("task_duration"));
    let init = (
        "session_init_seconds_bucket{instance=\"a\",le=\"5.0\"}",
        "session_init_seconds_count{instance=\"a\"}",
    );
    let cache = (
        "cache_hit_total{instance=\"a\",outcome=\"bad\"}",
        "cache_hit_total{instance=\"a\",outcome=\"good\"}",
    );
    let (answers, fallbacks) =
        ("agent_response_seconds_count{instance=\"a\"}", "provider_fallback_seconds_count{instance=\"a\"}");
    let recoveries = "recovery_seconds_count{instance=\"a\"}";
    let of_regions = [
        ("recovery_seconds_count{region=\"0\",instance=\"a\"}", "0x10 3x20"),
        ("recovery_seconds_count{region=\"0\",instance=\"b\"}", "0x10 3x20"),
        ("recovery_seconds_count{region=\"1\",instance=\"c\"}", "0x10 3x20"),
    ];
    let cases: Vec<ThresholdCase<'_>> = vec![
        (vec![api("0+90x30"), (calls, "0+100x30")], vec!["high latency"]),
        (vec![api("0+96x30"), (calls, "0+100x30")], vec![]),
        (
            vec![api("0+90x30"), (calls, "0+100x30"), (&api_failures, "0+10x30")],
            vec!["high latency", "error spike"],
        ),
        (vec![api("0+100x30"), (calls, "0+100x30"), (&api_failures, "0+4x30")], vec![]),
        (
            vec![("queue_depth{instance=\"a\"}", "600x30"), ("queue_depth{instance=\"b\"}", "401x30")],
            vec!["queue depth"],
        ),
        (vec![("queue_depth{instance=\"a\"}", "600x30"), ("queue_depth{instance=\"b\"}", "400x30")], vec![]),
        (vec![(&task_count, "0+94x30"), (&task_failures, "0+6x30")], vec!["task error rate"]),
        (vec![(&task_count, "0+96x30"), (&task_failures, "0+4x30")], vec![]),
        (vec![(&task_count, "0+1x30"), (&task_sum, "0+301x30")], vec!["task duration"]),
        (vec![(&task_count, "0+1x30"), (&task_sum, "0+299x30")], vec![]),
        (vec![("workers{instance=\"a\"}", "1x30")], vec!["worker count"]),
        (vec![("workers{instance=\"a\"}", "1x30"), ("workers{instance=\"b\"}", "1x30")], vec![]),
        (vec![("redis_memory_share{instance=\"a\"}", "0.81x30")], vec!["Redis memory"]),
        (vec![("redis_memory_share{instance=\"a\"}", "0.8x30")], vec![]),
        (vec![(init.0, "0+90x30"), (init.1, "0+100x30")], vec!["session initialization"]),
        (vec![(init.0, "0+96x30"), (init.1, "0+100x30")], vec![]),
        (vec![(cache.0, "0+41x30"), (cache.1, "0+59x30")], vec!["cache hit rate"]),
        (vec![(cache.0, "0+39x30"), (cache.1, "0+61x30")], vec![]),
        (
            vec![
                ("process_memory_share{instance=\"a\"}", "0.2x30"),
                ("process_memory_share{instance=\"b\"}", "0.86x30"),
            ],
            vec!["memory usage"],
        ),
        (vec![("process_memory_share{instance=\"b\"}", "0.85x30")], vec![]),
        (vec![(recoveries, "0+1x30")], vec!["recovery activations"]),
        (vec![(recoveries, "0x10 5x20")], vec![]),
        // Nodes of a region have all counted the same; another region has counted others.
        (vec![of_regions[0], of_regions[1]], vec![]),
        (of_regions.to_vec(), vec!["recovery activations"]),
        (vec![(answers, "0+100x30"), (fallbacks, "0+31x30")], vec!["agent fallback rate"]),
        (vec![(answers, "0+100x30"), (fallbacks, "0+29x30")], vec![]),
        (vec![("nodes_down{instance=\"a\"}", "1x30")], vec!["node down"]),
        (
            vec![("writes_stopped{instance=\"a\"}", "0x30"), ("writes_stopped{instance=\"b\"}", "1x30")],
            vec!["writes stopped"],
        ),
        (
            vec![("backup_overdue{instance=\"a\"}", "0x30"), ("backup_overdue{instance=\"b\"}", "1x30")],
            vec!["backup overdue"],
        ),
    ];
    let fired: std::collections::BTreeSet<&str> = cases.iter().flat_map(|(_, fire)| fire.clone()).collect();
    assert_eq!(fired.len(), sla::alert::built_in().len(), "each threshold fires in a case");
    let mut text = "rule_files: [rules.yml]\nevaluation_interval: 1m\ntests:\n".to_owned();
    for (series, fire) in &cases {
        threshold_case(&mut text, series, fire);
    }
    std::fs::write(temp.path().join("cases.yml"), text).unwrap();
    promtool(&["test", "rules", "cases.yml"], temp.path());
}
