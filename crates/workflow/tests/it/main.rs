//! The language: what compiles, and what each mistake says.

use workflow::{BUILTIN, compile};

const HEAD: &str = "name: w\nsteps:\n";

fn refused(source: &str) -> String {
    match compile("w.yaml", source) {
        Ok(_) => panic!("compiles:\n{source}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_built_in_workflows_compile() {
    for (name, source) in BUILTIN {
        let definition = compile(name, source).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(definition.name, name);
        definition.check().unwrap_or_else(|invalid| panic!("{invalid:?}"));
    }
}

#[test]
fn the_digest_is_that_of_the_source() {
    let source = format!("{HEAD}  - id: a\n    value: \"1\"\n");
    let (one, two) = (compile("x", &source).unwrap(), compile("y", &source).unwrap());
    assert_eq!(one.hash, two.hash);
    assert_ne!(one.hash, compile("x", &format!("{source}\n")).unwrap().hash);
}

#[test]
fn every_mistake_is_named_with_its_place() {
    let cases = [
        ("  - id: a\n    valeu: \"1\"\n", "w.yaml:4:", "valeu"),
        ("  - id: a\n    value: \"1 +\"\n", "w.yaml:4:", "expression"),
        ("  - id: a\n    value: \"steps.b.output\"\n", "w.yaml:4:", "unknown step `b` (did you mean `a`?)"),
        ("  - id: a\n    value: \"x\"\n", "w.yaml:4:", "unknown variable `x`"),
        ("  - {id: a, task: {queue: q, imput: '1'}}\n", "w.yaml:3:", "imput"),
        ("  - {id: a, task: {queue: 'a b'}}\n", "w.yaml:3:", "a queue's name must be"),
        ("  - {id: a, task: {queue: q, input: steps.x.output}}\n", "w.yaml:3:", "unknown step `x`"),
        ("  - id: a\n  - id: b\n    value: \"1\"\n", "w.yaml:3:", "must have one of agent, task, value"),
        ("  - id: a\n    value: \"1\"\n    wait: {for: 1s}\n", "w.yaml:3:", "found value and wait"),
        ("  - id: a\n    value: \"1\"\n  - id: a\n    value: \"1\"\n", "w.yaml:5:", "a second step"),
        ("  - id: a-b\n    value: \"1\"\n", "w.yaml:3:", "must not contain `-`"),
        ("  - id: a\n    wait: {for: 5 minutes}\n", "w.yaml:4:", "expected a duration"),
        ("  - id: a\n    after: [c]\n    value: \"1\"\n", "w.yaml:4:", "unknown step `c`"),
        (
            "  - id: a\n    map: {items: input.x, parallel: 0, steps: [{id: b, value: \"1\"}]}\n",
            "w.yaml:4:",
            "1 and 256",
        ),
        ("  - id: a\n    loop: {until: \"true\", steps: []}\n", "w.yaml:3:", "must not be empty"),
        ("  - id: a\n    agent: {role: r, prompt: \"{{ nope }}\"}\n", "w.yaml:4:", "unknown variable `nope`"),
        ("  - id: a\n    agent: {role: r, prompt: \"{% for %}\"}\n", "w.yaml:4:", "template"),
        ("  - id: a\n    retry: {max_attempts: 0}\n    value: \"1\"\n", "w.yaml:3:", "between 1 and 1000"),
        ("  - id: [a]\n    value: \"1\"\n", "w.yaml:3:", ""),
    ];
    for (steps, place, message) in cases {
        let error = refused(&format!("{HEAD}{steps}"));
        assert!(
            error.starts_with(place) && error.contains(message),
            "{steps}\n→ {error}\nexpected {place}…{message}"
        );
    }
}

#[test]
fn a_cycle_is_named_step_by_step() {
    let error = refused(
        "name: w\nsteps:\n  - {id: a, after: [c], value: \"1\"}\n  - {id: b, after: [a], value: \"1\"}\n  - {id: c, \
         after: [b], value: \"1\"}\n",
    );
    assert!(error.contains("steps wait for one another"), "{error}");
    for step in ["a", "b", "c"] {
        assert!(error.contains(step), "{error}");
    }
}

#[test]
fn sizes_are_bounded() {
    let many = |count: usize| {
        let steps: String = (0..count).map(|i| format!("  - {{id: s{i}, value: \"1\"}}\n")).collect();
        format!("{HEAD}{steps}")
    };
    assert_eq!(compile("w", &many(10_000)).unwrap().nodes.len(), 10_000);
    assert!(refused(&many(10_001)).contains("more than 10000 steps"));

    let deep = |levels: usize| {
        let innermost = r#"{"id": "s", "value": "1"}"#.to_owned();
        let step = (1..levels).fold(innermost, |inner, _| {
            format!(r#"{{"id": "s", "loop": {{"until": "true", "max_iterations": 1, "steps": [{inner}]}}}}"#)
        });
        format!(r#"{{"name": "w", "steps": [{step}]}}"#)
    };
    compile("w", &deep(16)).unwrap();
    assert!(refused(&deep(17)).contains("nest at most 16 deep"), "{}", refused(&deep(17)));
    assert!(refused(&format!("{HEAD}# {}\n", "x".repeat(1_100_000))).contains("at most"));
}

#[test]
fn text_that_is_not_yaml_is_refused() {
    for source in ["", "name: [", "- 1\n- 2", "\u{0}", "name: w\nname: w\nsteps: []"] {
        refused(source);
    }
}
