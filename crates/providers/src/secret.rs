//! Secrets: where they come from, and how they are kept out of texts.

use std::{env, fmt, fs, sync::Arc};

use parking_lot::Mutex;

/// Shorter secrets are not looked for in texts: they would be found everywhere.
const REDACTED_LEN_MIN: usize = 6;

/// A secret by reference: an environment variable, or the file that `<variable>_FILE` names. Read again for every
/// use, so that a rotated key is used without a restart.
#[derive(Clone)]
pub struct Secret {
    variable: String,
}

impl Secret {
    /// The secret in an environment variable, or in the file that `<variable>_FILE` names.
    #[must_use]
    pub fn from_env(variable: &str) -> Self {
        Self { variable: variable.to_owned() }
    }

    /// Its value now.
    ///
    /// # Errors
    ///
    /// Which variable or file is missing.
    pub fn read(&self) -> Result<String, String> {
        if let Ok(value) = env::var(&self.variable) {
            return Ok(value);
        }
        let file_variable = format!("{}_FILE", self.variable);
        let path = env::var(&file_variable)
            .map_err(|_| format!("neither {} nor {file_variable} is set", self.variable))?;
        let text = fs::read_to_string(&path).map_err(|error| format!("{file_variable}={path}: {error}"))?;
        Ok(text.trim_end_matches(['\n', '\r']).to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret(${})", self.variable)
    }
}

/// Takes known secrets out of texts.
#[derive(Clone, Default)]
pub struct Redactor {
    known: Arc<Mutex<Vec<String>>>,
}

impl Redactor {
    /// Looks for this value from now on.
    pub fn learn(&self, value: &str) {
        let mut known = self.known.lock();
        if value.len() >= REDACTED_LEN_MIN && !known.iter().any(|known| known == value) {
            known.push(value.to_owned());
        }
    }

    /// The text without any known secret.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        let known = self.known.lock();
        known.iter().fold(text.to_owned(), |text, secret| {
            if text.contains(secret) { text.replace(secret, "[redacted]") } else { text }
        })
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redactor({} secrets)", self.known.lock().len())
    }
}
