//! Texts that refer to values: what they refer to, and whether they can be evaluated at all.

use cel::Program;
use minijinja::{Environment, UndefinedBehavior};

/// Characters of one expression.
pub(crate) const EXPRESSION_LEN_MAX: usize = 2_000;
/// Steps of one template's evaluation, in the engine's own unit: about one a token of output or an iteration.
const TEMPLATE_FUEL: u64 = 200_000;

/// The names that are bound besides `steps`.
pub(crate) const VARIABLES: [&str; 7] = ["input", "steps", "item", "index", "iteration", "last", "session"];

pub(crate) fn program(expression: &str) -> Result<Program, String> {
    if expression.chars().count() > EXPRESSION_LEN_MAX {
        return Err(format!("an expression has at most {EXPRESSION_LEN_MAX} characters"));
    }
    Program::compile(expression).map_err(|errors| errors.to_string().trim().to_owned())
}

/// Checks an expression and its variables.
pub(crate) fn check_expression(expression: &str) -> Result<(), String> {
    let program = program(expression)?;
    let references = program.references();
    // Variables that a macro such as `map(x, …)` binds are references too; their names are not known to the library.
    match references
        .variables()
        .into_iter()
        .find(|name| !VARIABLES.contains(name) && !is_bound(expression, name))
    {
        Some(name) => Err(format!("unknown variable `{name}`; known are {}", VARIABLES.join(", "))),
        None => Ok(()),
    }
}

/// How the macros that look at every item of a list begin.
const MACROS: [&str; 5] = ["map(", "filter(", "all(", "exists(", "exists_one("];

/// How many macros stand inside one another, at most. A parenthesis in a text counts as one outside: too deep at worst
/// by what texts hold.
pub(crate) fn macro_depth(expression: &str) -> u32 {
    let (mut open, mut depth, mut deepest) = (Vec::new(), 0u32, 0);
    for (at, char) in expression.char_indices() {
        match char {
            '(' => {
                let is_macro = MACROS.iter().any(|call| expression[..=at].ends_with(&format!(".{call}")));
                depth += u32::from(is_macro);
                deepest = deepest.max(depth);
                open.push(is_macro);
            }
            ')' => depth -= u32::from(open.pop().unwrap_or(false)),
            _ => {}
        }
    }
    deepest
}

/// Whether `name` is the first argument of a macro somewhere in the expression.
fn is_bound(expression: &str, name: &str) -> bool {
    MACROS.iter().any(|call| {
        expression.match_indices(call).any(|(at, _)| {
            let argument = expression[at + call.len()..].trim_start();
            argument.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with(','))
        })
    })
}

pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(TEMPLATE_FUEL));
    environment.set_recursion_limit(32);
    // With values that outlive an iteration, a loop could double a text without end.
    environment.remove_global("namespace");
    environment
}

/// Checks a template's syntax and variables.
pub(crate) fn check_template(template: &str) -> Result<(), String> {
    let environment = environment();
    let parsed = environment.template_from_str(template).map_err(|error| error.to_string())?;
    match parsed.undeclared_variables(false).into_iter().find(|name| {
        !VARIABLES.contains(&name.as_str()) && !["range", "dict", "debug"].contains(&name.as_str())
    }) {
        Some(name) => Err(format!("unknown variable `{name}`; known are {}", VARIABLES.join(", "))),
        None => Ok(()),
    }
}

/// The steps that a text refers to as `steps.<id>`, in order of appearance, each once.
#[must_use]
pub fn steps_used(text: &str) -> Vec<&str> {
    let mut used = Vec::new();
    for (at, _) in text.match_indices("steps.") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|char| char.is_alphanumeric() || char == '_' || char == '.') {
            continue;
        }
        let rest = &text[at + "steps.".len()..];
        let end = rest.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(rest.len());
        if end > 0 && !used.contains(&&rest[..end]) {
            used.push(&rest[..end]);
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_steps_that_a_text_uses() {
        assert_eq!(steps_used("steps.a.output + steps.b_2.output + my_steps.c + x.steps.d"), ["a", "b_2"]);
        assert_eq!(steps_used("{{ steps.plan.output.files }} {{steps.plan}}"), ["plan"]);
    }

    #[test]
    fn checks_variables() {
        assert!(check_expression("input.files.map(f, f.path).size() > 0").is_ok());
        assert!(check_expression("inputs.files").unwrap_err().contains("unknown variable `inputs`"));
        assert!(check_expression("1 +").is_err());
        assert!(check_template("{% for f in input.files %}{{ f }}{% endfor %}").is_ok());
        assert!(check_template("{{ inputs.x }}").is_err());
    }
}
