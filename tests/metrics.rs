//! What a scraper gets from the real agent, read by strict parsers of both formats, by promtool, and by Prometheus itself.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod agent;
#[path = "support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use agent::{Agent, PATIENCE};
use serde_json::json;

const CARD: &str = "card = \"test\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-hour\"\n";
const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
const CLASSIC: &str = "text/plain;version=0.0.4";

/// An agent with a status port, an account, and some ticks behind it.
fn agent() -> (Agent, SocketAddr) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let agent = Agent::start(CARD, "", &format!("[status]\nlisten = \"{address}\"\n"));
    agent.done("POST", "/v1/accounts", Some(&json!({ "account": "lab" })));
    (agent, address)
}

/// The media type and the text.
fn scraped(mut stream: impl Read + Write, accept: &str) -> (String, String) {
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\naccept: {accept}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.to_lowercase().contains("vary: accept"), "{head}");
    let media_type = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap();
    (media_type.to_owned(), body.to_owned())
}

/// The samples of one text: series with their values.
type Samples = BTreeMap<String, f64>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Open,
    Classic,
}

/// Reads a text as strictly as its specification says, as far as it concerns counters, gauges and infos.
fn parsed(text: &str, format: Format) -> Samples {
    let body = match format {
        Format::Open => text.strip_suffix("# EOF\n").expect("OpenMetrics ends with # EOF"),
        Format::Classic => text,
    };
    assert!(body.ends_with('\n') && !body.contains("# EOF") && !body.contains('\r'));
    let mut samples = Samples::new();
    let mut families: BTreeSet<String> = BTreeSet::new();
    let mut family: Option<(String, String)> = None;
    let mut helped = String::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && families.insert(name.to_owned()), "{name} has one help and one place");
            name.clone_into(&mut helped);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, helped, "the type stands behind the help");
            let kinds = if format == Format::Open { &["counter", "gauge", "info"][..] } else { &["counter", "gauge"][..] };
            assert!(kinds.contains(&kind), "{line}");
            family = Some((name.to_owned(), kind.to_owned()));
        } else {
            assert!(!line.starts_with('#') && !line.is_empty(), "{line:?}");
            let (series, name, value) = sample(line);
            let (family, kind) = family.as_ref().expect("a sample stands behind its type");
            let expected = match (format, kind.as_str()) {
                (Format::Open, "counter") => format!("{family}_total"),
                (Format::Open, "info") => format!("{family}_info"),
                _ => family.clone(),
            };
            assert_eq!(name, expected, "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "counters and nothing else end with _total: {line}");
            assert!(kind != "counter" || 0.0 <= value, "{line}");
            assert!(samples.insert(series.clone(), value).is_none(), "{series} twice");
        }
    }
    samples
}

/// `name{label="value",…} number`: the series, its name, the number.
fn sample(line: &str) -> (String, String, f64) {
    let plain = |name: &str| {
        !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let (series, value) = line.rsplit_once(' ').unwrap();
    let value: f64 = value.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
    let (name, labels) = series.split_once('{').map_or((series, None), |(name, rest)| (name, Some(rest.strip_suffix('}').unwrap())));
    assert!(plain(name), "{line}");
    let mut rest = labels.unwrap_or_default();
    while !rest.is_empty() {
        let (key, quoted) = rest.split_once("=\"").unwrap();
        assert!(plain(key), "{line}");
        let mut escaped = false;
        let end = quoted.find(|c: char| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        rest = &quoted[end.expect("a label value has an end") + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    (series.to_owned(), name.to_owned(), value)
}

#[test]
fn both_formats_parse_and_hold_the_same_series() {
    let (agent, address) = agent();
    let unix = || UnixStream::connect(agent.path("run/meterd.sock")).unwrap();
    let tcp = || TcpStream::connect(address).unwrap();
    let (media_type, open) = scraped(unix(), OPEN_METRICS);
    assert_eq!(media_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let (media_type, classic) = scraped(unix(), CLASSIC);
    assert_eq!(media_type, "text/plain; version=0.0.4; charset=utf-8");
    let (open, classic) = (parsed(&open, Format::Open), parsed(&classic, Format::Classic));
    assert!(20 < open.len(), "{open:?}");
    assert_eq!(open.keys().collect::<Vec<_>>(), classic.keys().collect::<Vec<_>>());
    let (_, stranger) = scraped(tcp(), OPEN_METRICS);
    assert!(parsed(&stranger, Format::Open).keys().all(|series| !series.contains("account=")));
    assert_eq!(scraped(tcp(), "*/*").0, "text/plain; version=0.0.4; charset=utf-8");
}

#[test]
fn the_strict_parser_finds_what_is_wrong() {
    let good = "# HELP a_total Help.\n# TYPE a_total counter\na_total{l=\"\\\"x\\\\\"} 1\n";
    assert_eq!(parsed(good, Format::Classic).len(), 1);
    let bad = [
        good.replace("# TYPE a_total counter\n", ""),
        good.replace("a_total{", "a{"),
        good.replace(" 1\n", " one\n"),
        format!("{good}{good}"),
        format!("{good}# EOF\n"),
    ];
    for text in bad {
        assert!(std::panic::catch_unwind(|| parsed(&text, Format::Classic)).is_err(), "{text}");
    }
    assert!(std::panic::catch_unwind(|| parsed(good, Format::Open)).is_err(), "no # EOF, and the family is called after its samples");
}

fn program(name: &str) -> Result<(), String> {
    let found = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.map(drop).map_err(|error| format!("{name}: {error} (Debian's package prometheus has it)"))
}

#[test]
fn promtool_has_nothing_to_say_about_the_classic_text() {
    let Some(()) = support::need("promtool", program("promtool")) else { return };
    let (agent, _) = agent();
    let (_, text) = scraped(UnixStream::connect(agent.path("run/meterd.sock")).unwrap(), CLASSIC);
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What Prometheus answers to a query: the values, by text.
fn queried(address: SocketAddr, query: &str) -> Option<Vec<String>> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET /api/v1/query?query={query} HTTP/1.0\r\nhost: x\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let document: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    let results = document["data"]["result"].as_array()?;
    Some(results.iter().map(|result| result["value"][1].as_str().unwrap_or_default().to_owned()).collect())
}

#[test]
fn prometheus_scrapes_the_agent() {
    let Some(()) = support::need("prometheus", program("prometheus")) else { return };
    let (agent, target) = agent();
    let own = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = agent.path("prometheus.yml");
    let text = format!("scrape_configs:\n- job_name: meterd\n  scrape_interval: 1s\n  static_configs:\n  - targets: ['{target}']\n");
    std::fs::write(&config, text).unwrap();
    let log = std::fs::File::create(agent.path("prometheus.log")).unwrap();
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", agent.path("tsdb").display()))
        .arg(format!("--web.listen-address={own}"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let _running = Running(child);
    let deadline = Instant::now() + PATIENCE;
    let log = || std::fs::read_to_string(agent.path("prometheus.log")).unwrap_or_default();
    // A text that cannot be parsed leaves `up` at 0 and its series away.
    while queried(own, "up") != Some(vec!["1".to_owned()]) || queried(own, "meterd_ticks_total").is_none_or(|values| values.is_empty()) {
        assert!(Instant::now() < deadline, "not scraped: up is {:?}; {}", queried(own, "up"), log());
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let build = queried(own, "meterd_build_info").unwrap();
    assert_eq!(build, ["1"]);
}
