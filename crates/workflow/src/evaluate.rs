//! Evaluation of templates and expressions against the values of a session. On the leader only.

use std::{collections::HashMap, io, sync::LazyLock};

use cel::{Context, objects::Key};
use serde_json::Value;

use crate::expression;

/// Bytes of a rendered template.
pub const RENDERED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How often the macros of an expression may look at items, where one stands inside another: about a second.
const EVALUATIONS_MAX: u64 = 1_000_000;

/// Why a text could not be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The template failed: an undefined value, too many steps.
    #[error("template: {0}")]
    Template(String),
    /// The expression failed.
    #[error("expression `{expression}`: {reason}")]
    Expression {
        /// The expression, as written.
        expression: String,
        /// Why.
        reason: String,
    },
    /// The expression's value is of another type.
    #[error("expression `{expression}`: expected {expected}, found {found}")]
    Type {
        /// The expression, as written.
        expression: String,
        /// The type that is needed.
        expected: &'static str,
        /// What there is, cut.
        found: String,
    },
}

/// Renders a template.
///
/// # Errors
///
/// An undefined value, a filter that fails, or more work than a template may do.
pub fn render(template: &str, variables: &Value) -> Result<String, Error> {
    let mut environment = expression::environment();
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    let mut rendered = Rendered(Vec::new());
    let fail = |error: minijinja::Error, full: bool| {
        Error::Template(if full { Rendered::full().to_string() } else { error.to_string() })
    };
    environment
        .template_from_str(template)
        .map_err(|error| fail(error, false))?
        .render_captured_to(minijinja::Value::from(minijinja::value::Serde(variables)), &mut rendered)
        .map_err(|error| fail(error, rendered.0.len() >= RENDERED_BYTES_MAX))?;
    String::from_utf8(rendered.0).map_err(|error| Error::Template(error.to_string()))
}

/// What a template has come to. Fuel bounds how much a template does, not how much each step of it writes.
struct Rendered(Vec<u8>);

impl Rendered {
    fn full() -> io::Error {
        io::Error::other(format!("renders to more than {RENDERED_BYTES_MAX} bytes"))
    }
}

impl io::Write for Rendered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = RENDERED_BYTES_MAX - self.0.len();
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if bytes.len() > room { Err(Self::full()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Evaluates an expression (CEL).
///
/// # Errors
///
/// A syntax error, an unknown field, or an operator on the wrong types.
pub fn value(text: &str, variables: &Value) -> Result<Value, Error> {
    if let Some(found) = at_path(text, variables) {
        return Ok(found.clone());
    }
    let fail = |reason: String| Error::Expression { expression: text.to_owned(), reason };
    let program = expression::program(text).map_err(fail)?;
    let evaluations = evaluations(text, variables);
    if evaluations > EVALUATIONS_MAX {
        return Err(fail(format!(
            "its macros, one inside another, would look at items up to {evaluations} times; the limit is \
             {EVALUATIONS_MAX}"
        )));
    }
    // The library's functions are declared once: that costs more than most expressions.
    static LIBRARY: LazyLock<Context<'static, 'static>> = LazyLock::new(Context::default);
    let mut context = LIBRARY.new_inner_scope();
    if let Value::Object(variables) = variables {
        for (name, value) in variables {
            context.add_variable_from_value(name.clone(), to_cel(value));
        }
    }
    let value = program.execute(&context).map_err(|error| fail(error.to_string()))?;
    value.json().map_err(|error| fail(error.to_string()))
}

/// How often the innermost of the expression's macros may look at an item: the longest list, once for every macro that
/// stands inside another. The library itself sets no limit to what an expression costs.
fn evaluations(text: &str, variables: &Value) -> u64 {
    let depth = expression::macro_depth(text);
    if depth < 2 { 0 } else { longest(variables).saturating_pow(depth) }
}

/// Items of the longest list or object.
fn longest(value: &Value) -> u64 {
    match value {
        Value::Array(items) => items.iter().map(longest).fold(items.len() as u64, u64::max),
        Value::Object(fields) => fields.values().map(longest).fold(fields.len() as u64, u64::max),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// The names in an expression that only names a value, such as `steps.plan.output.files`: most are like that. `None`
/// for any other expression.
#[must_use]
pub fn path(text: &str) -> Option<Vec<&str>> {
    let is_name = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && name.chars().all(|of| of.is_ascii_alphanumeric() || of == '_')
            && !matches!(name, "true" | "false" | "null" | "in")
    };
    let names: Vec<&str> = text.trim().split('.').collect();
    names.iter().all(|name| is_name(name)).then_some(names)
}

/// What an expression that only names a value names. `None` also for a value that is not there, which is the
/// evaluation's to explain.
fn at_path<'a>(text: &str, variables: &'a Value) -> Option<&'a Value> {
    path(text)?.into_iter().try_fold(variables, |found, name| found.as_object()?.get(name))
}

/// Evaluates a condition.
///
/// # Errors
///
/// As [`value`], and for a value that is neither true nor false.
pub fn condition(text: &str, variables: &Value) -> Result<bool, Error> {
    match value(text, variables)? {
        Value::Bool(holds) => Ok(holds),
        other => Err(type_error(text, "true or false", &other)),
    }
}

/// Evaluates a list.
///
/// # Errors
///
/// As [`value`], and for a value that is not a list.
pub fn list(text: &str, variables: &Value) -> Result<Vec<Value>, Error> {
    match value(text, variables)? {
        Value::Array(items) => Ok(items),
        other => Err(type_error(text, "a list", &other)),
    }
}

fn type_error(text: &str, expected: &'static str, found: &Value) -> Error {
    Error::Type {
        expression: text.to_owned(),
        expected,
        found: found.to_string().chars().take(100).collect(),
    }
}

/// JSON numbers become integers where they are whole, so that `x > 3` compares like with like.
fn to_cel(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(value) => cel::Value::Bool(*value),
        Value::Number(number) => match number.as_i64() {
            Some(number) => cel::Value::Int(number),
            None => cel::Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => cel::Value::from(text.as_str()),
        Value::Array(items) => cel::Value::List(items.iter().map(to_cel).collect::<Vec<_>>().into()),
        Value::Object(fields) => {
            let map: HashMap<Key, cel::Value> =
                fields.iter().map(|(key, value)| (Key::from(key.as_str()), to_cel(value))).collect();
            cel::Value::Map(map.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn evaluates() {
        let variables = json!({"input": {"n": 3, "files": [{"path": "a"}, {"path": "b"}]}, "last": null});
        assert_eq!(value("input.files.map(f, f.path)", &variables).unwrap(), json!(["a", "b"]));
        assert!(condition("input.n > 2 && last == null", &variables).unwrap());
        assert!(matches!(condition("input.n", &variables), Err(Error::Type { .. })));
        assert!(matches!(list("input.n", &variables), Err(Error::Type { .. })));
        assert!(value("input.missing.x", &variables).is_err());
        assert_eq!(value(" input.files ", &variables).unwrap(), json!([{"path": "a"}, {"path": "b"}]));
        assert_eq!(value("true", &json!({"true": 1})).unwrap(), json!(true));
        assert_eq!(render("{{ input.n }} < & {{ input.files[1].path }}", &variables).unwrap(), "3 < & b");
        assert!(render("{{ input.missing }}", &variables).is_err());
    }

    #[test]
    fn a_template_that_loops_is_stopped() {
        let template = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        let error = render(template, &json!({})).unwrap_err().to_string();
        assert!(error.contains("fuel"), "{error}");
    }

    #[test]
    fn a_template_that_grows_is_stopped() {
        let long = json!({"input": {"text": "x".repeat(200_000)}});
        let error =
            render("{% for i in range(9999) %}{{ input.text }}{% endfor %}", &long).unwrap_err().to_string();
        assert!(error.contains("renders to more than"), "{error}");
        let whole = "{% for i in range(20) %}{{ input.text }}{% endfor %}";
        assert_eq!(render(whole, &long).unwrap().len(), 4_000_000);
        assert!(render("{% set n = namespace(text='x') %}", &long).is_err(), "it could double without end");
    }

    #[test]
    fn an_expression_of_nested_macros_is_stopped() {
        let nested = "input.all(a, input.all(b, input.all(c, input.all(d, a + b + c + d >= 0))))";
        let numbers = |count: i32| json!({"input": (0..count).collect::<Vec<_>>()});
        let error = condition(nested, &numbers(1_000)).unwrap_err().to_string();
        assert!(error.contains("one inside another"), "{error}");
        assert!(condition(nested, &numbers(10)).unwrap());
        let beside = "input.map(a, a).size() + input.filter(b, true).map(c, c).size()";
        assert_eq!(value(beside, &numbers(2_000)).unwrap(), json!(4_000));
    }

    #[test]
    fn and_binds_tighter_than_or() {
        let variables = json!({"input": {"a": true, "b": false, "c": false}});
        assert!(condition("input.a || input.b && input.c", &variables).unwrap());
    }
}
