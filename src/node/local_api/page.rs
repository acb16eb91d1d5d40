//! The status page: one HTML text, made here from the status, so that it needs no script and loads nothing. It names nobody.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::domain::money::Credits;
use crate::domain::time::Nanos;
use crate::domain::view::{AccountView, View};
use crate::node::status::{Disk, GpuStatus, Status};

const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="refresh" content="5">
<title>meterd</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; --line: #8884; --ok: #15803d; --bad: #b91c1c; }
  @media (prefers-color-scheme: dark) { :root { --ok: #4ade80; --bad: #fca5a5; } }
  body { max-width: 46rem; margin: 1.5rem auto; padding: 0 1rem; }
  h1 { font-size: 1.3rem; margin: 0; }
  h2 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
  .state { margin: .75rem 0; padding: .6rem .8rem; border-left: .3rem solid; font-weight: 600; }
  .ok { color: var(--ok); } .bad { color: var(--bad); }
  ul { margin: .4rem 0 0; padding-left: 1.2rem; font-weight: 400; }
  .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; margin: 0; }
  .tiles div { border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .6rem; }
  .tiles dt { font-size: .85rem; } .tiles dd { margin: 0; font-size: 1.1rem; overflow-wrap: anywhere; }
  table { border-collapse: collapse; width: 100%; }
  th, td { text-align: left; padding: .3rem .5rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
  th { font-weight: 600; width: 9rem; }
  td, dd { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
  footer { margin-top: 1.5rem; font-size: .85rem; }
</style>
</head>
<body>
"#;

/// The page. `view` gives the sums over all accounts; it is the same picture that the status is of, or a newer one.
pub(super) fn html(status: &Status, view: Option<&View>) -> String {
    let mut page = HEAD.to_owned();
    let node = status.node.as_ref().map_or(String::new(), |node| format!(" on {}", escaped(node.as_str())));
    let _ = writeln!(page, "<h1>meterd{node}</h1>");
    page.push_str(&state(status));
    page.push_str(&tiles("Jobs", &counts(&status.jobs)));
    page.push_str(&tiles("Accounts", &counts(&status.accounts)));
    page.push_str(&tiles("Credits since the node's last start", &sums(view)));
    page.push_str("<h2>Agent</h2>\n<table>\n");
    for (name, value) in rows(status) {
        let _ = writeln!(page, "<tr><th scope=\"row\">{name}</th><td>{}</td></tr>", escaped(&value));
    }
    page.push_str("</table>\n<footer>");
    let _ = write!(page, "{} · a new look every 5 s · <a href=\"/metrics\">metrics</a> · <a href=\"/v1/status\">JSON</a>", time(status));
    page.push_str("</footer>\n</body>\n</html>\n");
    page
}

fn state(status: &Status) -> String {
    if status.not_ready.is_empty() {
        return "<div class=\"state ok\" role=\"status\">Ready</div>\n".to_owned();
    }
    let lines =
        status.not_ready.iter().map(|reason| format!("<li>{} <code>{}</code></li>", escaped(&reason.message), escaped(&reason.code)));
    format!("<div class=\"state bad\" role=\"alert\">Not ready<ul>{}</ul></div>\n", lines.collect::<String>())
}

fn tiles(title: &str, values: &[(String, String)]) -> String {
    if values.is_empty() {
        return format!("<h2>{title}</h2>\n<p>unknown before the first look</p>\n");
    }
    let shown = |(name, value): &(String, String)| format!("<div><dt>{}</dt><dd>{}</dd></div>", escaped(name), escaped(value));
    format!("<h2>{title}</h2>\n<dl class=\"tiles\">{}</dl>\n", values.iter().map(shown).collect::<String>())
}

fn counts(counts: &BTreeMap<String, u64>) -> Vec<(String, String)> {
    counts.iter().map(|(name, count)| (name.clone(), count.to_string())).collect()
}

fn sums(view: Option<&View>) -> Vec<(String, String)> {
    let Some(view) = view else { return Vec::new() };
    let sum = |part: fn(&AccountView) -> Credits| view.accounts.iter().map(part).sum::<Credits>().to_string();
    vec![
        ("charged".to_owned(), sum(|account| account.spent)),
        ("owed".to_owned(), sum(|account| account.owed)),
        ("written off".to_owned(), sum(|account| account.unfunded)),
        ("burn an hour".to_owned(), sum(|account| account.burn_per_hour)),
    ]
}

fn rows(status: &Status) -> Vec<(&'static str, String)> {
    let unknown = || "unknown".to_owned();
    let agent = &status.agent;
    vec![
        ("Enforcement", status.enforcement.map_or_else(unknown, |mode| mode.to_string())),
        (
            "Rate card",
            status
                .card
                .as_ref()
                .map_or("none".to_owned(), |card| format!("{} version {}, from {}", card.name, card.version, card.effective_from)),
        ),
        (
            "GPUs",
            match &status.gpus {
                GpuStatus::Count(count) => count.to_string(),
                GpuStatus::Missing(why) => format!("unknown: {why}"),
            },
        ),
        ("Journal", journal(status)),
        (
            "Authority",
            match (status.authority.asked, status.authority.unanswered) {
                (None, _) => unknown(),
                (Some(_), None) => "answered".to_owned(),
                (Some(_), Some(number)) => format!("question {number} is open"),
            },
        ),
        ("Ticks", format!("{}, {} left out, the last took {}", agent.tick_count, agent.tick_missed_count, Nanos(agent.tick_ns))),
        ("The agent itself", format!("{} of CPU time, {} KiB resident", Nanos(agent.cpu_ns), agent.resident_bytes / 1_024)),
        ("Version", status.version.clone()),
    ]
}

fn journal(status: &Status) -> String {
    let (Some(seq), Some(durable)) = (status.journal.seq, status.journal.durable_seq) else { return "unknown".to_owned() };
    let disk = match status.journal.disk {
        Disk::Writable => "",
        Disk::Full => "; the disk takes nothing",
    };
    format!("{durable} of {seq} facts on disk{disk}")
}

fn time(status: &Status) -> String {
    match (&status.at, status.age_ms) {
        (Some(at), Some(age_ms)) => format!("{}, {} old", escaped(at), Nanos::from_millis(age_ms)),
        _ => "no look yet".to_owned(),
    }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Mono;
    use crate::node::handle::Picture;
    use crate::node::sample;
    use crate::node::status::not_ready;

    fn page_of(picture: &Picture) -> String {
        let now = Mono(picture.taken_at_ns + 120_000_000);
        let reasons = not_ready(picture, now, Nanos::from_secs(1), Nanos(0));
        html(&Status::of(picture, now, reasons).for_strangers(), picture.view.as_ref())
    }

    #[test]
    fn the_page_says_how_the_agent_does_and_names_nobody() {
        let page = page_of(&sample::picture());
        for word in ["Ready", "gpu-07", "campus version 3", "<dt>frozen</dt><dd>1</dd>", "<dt>charged</dt><dd>64.2</dd>"] {
            assert!(page.contains(word), "{word} is not in {page}");
        }
        for name in ["lab", "u1000", "slurm:4711"] {
            assert!(!page.contains(name), "{name} is in {page}");
        }
    }

    #[test]
    fn the_page_runs_nothing_and_loads_nothing() {
        let page = page_of(&sample::picture());
        for word in ["<script", "src=", "http:", "https:", "url(", "@import", "<link"] {
            assert!(!page.contains(word), "{word} is in the page");
        }
        assert!(page.contains("http-equiv=\"refresh\""));
    }

    #[test]
    fn before_the_first_look_nothing_is_zero() {
        let page = page_of(&Picture::default());
        assert!(page.contains("Not ready") && page.contains("no_picture") && page.contains("unknown before the first look"), "{page}");
        assert!(!page.contains("<dd>0</dd>"), "{page}");
    }

    #[test]
    fn what_comes_from_outside_is_escaped() {
        let mut picture = sample::picture();
        picture.gpus = Some(crate::domain::meter::Reading::Missing(crate::domain::meter::Missing::Failed("<b>\"&'".to_owned())));
        let page = page_of(&picture);
        assert!(page.contains("&lt;b&gt;&quot;&amp;&#39;") && !page.contains("<b>"), "{page}");
    }
}
