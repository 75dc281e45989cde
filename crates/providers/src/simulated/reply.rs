//! Replies made up from the request.

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// The most items and nesting of made-up JSON.
const ITEMS_MAX: u64 = 8;
const DEPTH_MAX: usize = 8;
/// Lines of the request that a made-up text quotes.
const QUOTED_LINES: usize = 40;

/// A small seeded generator: `SplitMix64` (Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", 2014).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// In `0.0..1.0`.
    pub(super) fn share(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let share = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        share
    }
}

pub(super) fn hash(text: &str) -> u64 {
    let digest = Sha256::digest(text.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

/// A text that quotes the request.
pub(super) fn text(prompt: &str, seed: u64) -> String {
    let lines: Vec<&str> = prompt.lines().filter(|line| !line.trim().is_empty()).take(QUOTED_LINES).collect();
    format!(
        "# Simulated reply {:08x}, made up from this request:\n{}\n",
        hash(prompt) ^ seed,
        lines.join("\n")
    )
}

/// A value of a JSON Schema, filled with words of the request.
pub(super) fn json(schema: &Value, prompt: &str, seed: u64, true_rate: f64) -> Value {
    let mut maker = Maker {
        random: Random::new(seed ^ hash(prompt)),
        words: words(prompt),
        paths: paths(prompt),
        true_rate,
        made: 0,
    };
    maker.value(schema, "", 0)
}

struct Maker {
    random: Random,
    words: Vec<String>,
    paths: Vec<String>,
    true_rate: f64,
    made: usize,
}

impl Maker {
    fn value(&mut self, schema: &Value, name: &str, depth: usize) -> Value {
        if let Some(choices) =
            schema.get("enum").and_then(Value::as_array).filter(|choices| !choices.is_empty())
        {
            let at = self.random.below(choices.len() as u64);
            return choices[usize::try_from(at).unwrap_or(0)].clone();
        }
        match schema.get("type").and_then(Value::as_str) {
            Some("object") if depth < DEPTH_MAX => self.object(schema, depth),
            Some("array") if depth < DEPTH_MAX => self.array(schema, name, depth),
            Some("string") => Value::String(self.string(name)),
            Some("boolean") => Value::Bool(self.random.share() < self.true_rate),
            Some("integer") => json!(self.random.below(100)),
            Some("number") => json!(self.random.share()),
            _ => Value::Null,
        }
    }

    fn object(&mut self, schema: &Value, depth: usize) -> Value {
        let mut object = Map::new();
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            for (name, property) in properties {
                object.insert(name.clone(), self.value(property, name, depth + 1));
            }
        }
        Value::Object(object)
    }

    fn array(&mut self, schema: &Value, name: &str, depth: usize) -> Value {
        let bound = |key: &str| schema.get(key).and_then(Value::as_u64);
        let min = bound("minItems").unwrap_or(0).min(ITEMS_MAX);
        let max = bound("maxItems").unwrap_or(ITEMS_MAX).clamp(min, ITEMS_MAX);
        let count = (min + self.random.below(max - min + 1)).max(min.max(1).min(max));
        let item = schema.get("items").cloned().unwrap_or(Value::Null);
        (0..count).map(|_| self.value(&item, name, depth + 1)).collect()
    }

    /// A path where one is asked for: one of the request's, or one of its words; else a few of its words.
    fn string(&mut self, name: &str) -> String {
        self.made += 1;
        if matches!(name, "path" | "file" | "filename") {
            if !self.paths.is_empty() && self.random.share() < 0.6 {
                let at = self.random.below(self.paths.len() as u64);
                return self.paths.swap_remove(usize::try_from(at).unwrap_or(0));
            }
            return format!("{}_{}.md", self.word(), self.made);
        }
        let count = 3 + self.random.below(6);
        (0..count).map(|_| self.word()).collect::<Vec<_>>().join(" ")
    }

    fn word(&mut self) -> String {
        if self.words.is_empty() {
            return format!("word{}", self.random.below(1000));
        }
        let at = self.random.below(self.words.len() as u64);
        self.words[usize::try_from(at).unwrap_or(0)].clone()
    }
}

fn words(prompt: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in prompt.split(|char: char| !char.is_ascii_alphanumeric()) {
        let word = word.to_ascii_lowercase();
        if (3..=16).contains(&word.len()) && !words.contains(&word) && words.len() < 200 {
            words.push(word);
        }
    }
    words
}

/// What looks like a path: a dot and an extension, perhaps slashes.
fn paths(prompt: &str) -> Vec<String> {
    let mut paths: Vec<String> = Vec::new();
    let is_path_char = |char: char| char.is_ascii_alphanumeric() || "._-/".contains(char);
    for token in prompt.split(|char: char| !is_path_char(char)) {
        let token = token.trim_matches(['.', '/', '-']);
        let Some((stem, extension)) = token.rsplit_once('.') else { continue };
        let is_path = !stem.is_empty()
            && (1..=5).contains(&extension.len())
            && extension.bytes().all(|byte| byte.is_ascii_alphabetic())
            && !token.contains("..")
            && !token.contains("//");
        if is_path && !paths.iter().any(|path| path == token) && paths.len() < 50 {
            paths.push(token.to_owned());
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_satisfies_the_schema_and_depends_on_the_request() {
        let schema = json!({"type": "object", "properties": {"files": {"type": "array", "minItems": 2, "maxItems": 4,
            "items": {"type": "object", "properties": {"path": {"type": "string"}, "ok": {"type": "boolean"}}}}}});
        let made = json(&schema, "Task: add a health endpoint to src/app.py", 7, 1.0);
        let files = made["files"].as_array().unwrap();
        assert!((2..=4).contains(&files.len()), "{made}");
        assert!(files.iter().all(|file| file["path"].is_string() && file["ok"] == true));
        assert_eq!(made, json(&schema, "Task: add a health endpoint to src/app.py", 7, 1.0));
        assert_ne!(made, json(&schema, "Task: write a parser for config.toml", 7, 1.0));
    }

    #[test]
    fn finds_paths() {
        assert_eq!(
            paths("see src/main.rs, ../x.py and a.b.c; e.g. 3.14 http://x.yz/"),
            ["src/main.rs", "x.py", "a.b.c", "e.g", "x.yz"]
        );
    }
}
