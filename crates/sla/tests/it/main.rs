//! The exported rules, as Prometheus' own test tool sees them.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

use std::{fmt::Write as _, path::Path, process::Command};

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
    let rules = sla::prometheus::rules(&sla::built_in(3));
    assert!(
        deployed == rules,
        "{} is not what `orchestra sla rules` prints for the documented levels",
        path.display()
    );
}

#[test]
fn exported_rules_fire_when_they_must_and_not_otherwise() {
    if Command::new("promtool").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI must have promtool: `deploy/dev/setup.sh testing`");
        eprintln!("NOT RUN: promtool is missing; `deploy/dev/setup.sh testing` installs it");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("rules.yml"), sla::prometheus::rules(&sla::built_in(3))).unwrap();
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
