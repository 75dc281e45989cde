//! Where traces go.

use serde::{Deserialize, Serialize};

/// Where traces go: an OTLP receiver over HTTP. What it asks for besides, as a header with a token, is in the variable
/// `OTEL_EXPORTER_OTLP_HEADERS` (`name=value,...`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traces {
    /// Its URL before `/v1/traces`, such as `http://127.0.0.1:4318`. A query, such as a key, stays behind the path.
    pub otlp: String,
    /// The share of sessions whose traces are told, 0 to 1. The same on every node: by the session's id.
    #[serde(default = "all")]
    pub share: f64,
    /// How the spans of steps are named.
    #[serde(default)]
    pub span_names: SpanNames,
}

fn all() -> f64 {
    1.0
}

/// How the spans of steps are named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpanNames {
    /// `step NAME` and `task NAME`.
    #[default]
    Orchestra,
    /// `oao.step.NUMBER` and `oao.tool.NAME`.
    Oao,
}

impl Traces {
    /// Where the receiver takes traces.
    ///
    /// # Errors
    ///
    /// The URL can not be read.
    pub(crate) fn endpoint(&self) -> Result<String, String> {
        let mut url = reqwest::Url::parse(&self.otlp).map_err(|error| error.to_string())?;
        let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
        url.set_path(&path);
        Ok(url.into())
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if !self.otlp.starts_with("http://") && !self.otlp.starts_with("https://") {
            return Err(format!("traces.otlp: expected http:// or https://, found {:?}", self.otlp));
        }
        self.endpoint().map_err(|error| format!("traces.otlp: {error}"))?;
        if !(0.0..=1.0).contains(&self.share) {
            return Err(format!("traces.share: expected 0 to 1, found {}", self.share));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::Config;

    #[test]
    fn a_receiver_that_can_not_be_is_refused() {
        let refused = |text: &str| Config::parse(text).unwrap().check().unwrap_err().to_string();
        assert!(refused("[traces]\notlp = \"collector:4317\"").contains("http://"));
        assert!(refused("[traces]\notlp = \"http://c\"\nshare = 2").contains("0 to 1"));
        assert!(refused("[traces]\notlp = \"http://c:port\"").contains("invalid port"));
    }

    #[test]
    fn the_path_goes_before_the_query() {
        let endpoint = |otlp: &str| {
            let config = Config::parse(&format!("[traces]\notlp = \"{otlp}\"")).unwrap();
            config.traces.unwrap().endpoint().unwrap()
        };
        assert_eq!(endpoint("http://c:4318"), "http://c:4318/v1/traces");
        assert_eq!(endpoint("https://c/in/?key=k"), "https://c/in/v1/traces?key=k");
    }
}
