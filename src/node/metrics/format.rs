//! In which of two text formats the metrics are given: `OpenMetrics` 1.0, or the classic Prometheus text.

use std::fmt::Write as _;

use crate::node::metrics::Value;

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4: for whoever does not ask for the other.
    Classic,
}

impl Format {
    /// Its media type, as it is sent.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// What a request with this `Accept` wants (RFC 9110, 12.5.1). Who accepts neither gets the classic text: a scrape that fails helps nobody.
    #[must_use]
    pub fn accepted(accept: &str) -> Format {
        let best = |format: Format| accept.split(',').filter_map(|range| Match::of(range, format)).max_by_key(|found| found.specificity);
        match (best(Format::OpenMetrics), best(Format::Classic)) {
            (Some(open), classic) if open.beats(classic) => Format::OpenMetrics,
            _ => Format::Classic,
        }
    }

    const fn name(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Format::OpenMetrics => ("application", "openmetrics-text", "1.0.0"),
            Format::Classic => ("text", "plain", "0.0.4"),
        }
    }
}

/// How well a media range fits a format.
#[derive(Clone, Copy, Debug)]
struct Match {
    /// 0 for `*/*`, 1 for a whole type, 2 for the name, 3 for the name with its version.
    specificity: u8,
    permille: u16,
}

impl Match {
    fn of(range: &str, format: Format) -> Option<Match> {
        let mut parts = range.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let (own_kind, own_subtype, own_version) = format.name();
        let mut specificity = match (kind, subtype) {
            ("*", "*") => 0,
            (kind, "*") if kind.eq_ignore_ascii_case(own_kind) => 1,
            (kind, subtype) if kind.eq_ignore_ascii_case(own_kind) && subtype.eq_ignore_ascii_case(own_subtype) => 2,
            _ => return None,
        };
        let mut permille = 1_000;
        for (key, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
            match key.trim().to_ascii_lowercase().as_str() {
                "q" => permille = quality(value.trim())?,
                "version" if value.trim().trim_matches('"') == own_version => specificity = 3,
                "version" => return None,
                _ => {}
            }
        }
        Some(Match { specificity, permille })
    }

    /// With equal quality, a format that is named beats one that only a wildcard lets through.
    fn beats(self, other: Option<Match>) -> bool {
        let named = 2 <= self.specificity;
        0 < self.permille && other.is_none_or(|other| other.permille < self.permille || named && other.permille == self.permille)
    }
}

/// `1`, `0.5`, `0.125`, in thousandths.
fn quality(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || 3 < fraction.len() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let permille: u16 = format!("{whole}{fraction:0<3}").parse().ok()?;
    (permille <= 1_000).then_some(permille)
}

/// The classic text, family by family.
#[derive(Debug, Default)]
pub(super) struct ClassicText(String);

impl ClassicText {
    /// A family's head. `name` is as its samples have it, `_total` and `_info` included.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&'static str, String)], value: Value) {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let value = match value {
            Value::Whole(value) => value.to_string(),
            Value::Real(value) => value.to_string(),
        };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// All of it.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_scraper_gets_what_it_asks_for() {
        let prometheus_2_42 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let classic_only = "text/plain;version=0.0.4;q=1,*/*;q=0.1";
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        let table = [
            (prometheus_2_42, Format::OpenMetrics),
            (prometheus_3, Format::OpenMetrics),
            (classic_only, Format::Classic),
            (browser, Format::Classic),
            ("", Format::Classic),
            ("*/*", Format::Classic),
            ("application/*", Format::OpenMetrics),
            ("application/openmetrics-text, text/plain", Format::OpenMetrics),
            ("APPLICATION/OpenMetrics-Text; Version=\"1.0.0\"", Format::OpenMetrics),
            ("application/openmetrics-text;version=0.0.1", Format::Classic),
            ("application/openmetrics-text;q=0, */*", Format::Classic),
            ("application/openmetrics-text;q=0.2, text/plain;q=0.9", Format::Classic),
            ("application/openmetrics-text;q=nonsense", Format::Classic),
            ("image/png", Format::Classic),
        ];
        for (accept, format) in table {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }

    #[test]
    fn labels_and_help_are_escaped() {
        let mut text = ClassicText::default();
        text.family("a", "gauge", "back\\slash\nand line");
        text.sample("a", &[("l", "q\"b\\n\nx".to_owned())], Value::Whole(1));
        assert_eq!(text.finish(), "# HELP a back\\\\slash\\nand line\n# TYPE a gauge\na{l=\"q\\\"b\\\\n\\nx\"} 1\n");
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_there_is_an_answer(accept in "[ -~]{0,60}") {
            let _ = Format::accepted(&accept);
        }
    }
}
