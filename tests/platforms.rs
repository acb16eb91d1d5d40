//! The five cards as whoever reads a platform's page would try them: each price and rule of the page by `meterctl rate explain` and `quote`.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::path::Path;
use std::process::{Command, Output};

use meterd::domain::rates::Basis;
use meterd::domain::rates::check::check;
use meterd::domain::usage::Meter;
use proptest::prelude::*;

fn meterctl(command: &[&str], card: &str, words: &str) -> Output {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("packaging/ratecards/{card}.toml"));
    let mut meterctl = Command::new(env!("CARGO_BIN_EXE_meterctl"));
    meterctl.args(command).arg("--card").arg(path).args(words.split_whitespace()).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn explained(card: &str, words: &str) -> String {
    text(&meterctl(&["rate", "explain"], card, words))
}

/// What is charged, and what of it only at the end.
fn cost(card: &str, words: &str) -> (String, String) {
    let said = explained(card, words);
    let after = |start: &str| said.lines().find_map(|line| line.strip_prefix(start)?.split(' ').next().map(str::to_owned));
    (after("total ").unwrap(), after("and ").unwrap_or_else(|| "0".to_owned()))
}

fn charged(card: &str, words: &str) -> String {
    let (charged, later) = cost(card, words);
    assert_eq!(later, "0", "{card} {words}");
    charged
}

fn refused(card: &str, words: &str) -> String {
    let output = meterctl(&["rate", "explain"], card, words);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "nothing that looks like a price: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn v2_v6_v7_v8_a_run_costs_what_it_used_when_it_is_over_and_nothing_if_it_never_began() {
    let run = "--run 2h --cpu 10h --memory 4GiB";
    assert_eq!(cost("settle-at-end", run), ("0".to_owned(), "0.58".to_owned()), "10 core-hours at 0.05 and 8 GiB-hours at 0.01");
    for outcome in ["completed", "out_of_memory", "timed_out", "failed", "cancelled"] {
        assert_eq!(charged("settle-at-end", &format!("{run} --outcome {outcome}")), "0.58", "{outcome}");
    }
    for outcome in ["validation", "infrastructure", "node_rebooted"] {
        assert_eq!(charged("settle-at-end", &format!("{run} --outcome {outcome}")), "0", "{outcome}");
    }
    let (asked, other) = (format!("{run} --cpus 64 --outcome completed"), format!("{run} --cpus 1 --trait label=api --outcome completed"));
    assert_eq!(charged("settle-at-end", &asked), charged("settle-at-end", &other), "not what was asked for, nor by which way it came");
    let read = explained("settle-at-end", "--run 1s --event read=40 --outcome completed");
    assert!(read.contains("quantity  40 event") && read.contains("total 0 credits"), "free, and said: {read}");
}

#[test]
fn d1_d2_whole_instances_by_the_hour() {
    for (class, run, expected) in [
        ("S", "1", "0.6"),
        ("S", "1h", "0.6"),
        ("S", "3601s", "1.2"),
        ("S", "10h", "6"),
        ("S", "10h1s", "6.6"),
        ("M", "10h", "18"),
        ("L", "30m", "3.5"),
        ("L", "24h", "84"),
    ] {
        assert_eq!(
            charged("hourly-instance", &format!("--run {run} --trait instance_class={class} --gpus 1")),
            expected,
            "{class} for {run}"
        );
    }
    assert_eq!(charged("hourly-instance", "--run 1h --paused 5h --trait instance_class=S"), "0.6", "d8: its owner's pause costs nothing");
    let why = refused("hourly-instance", "--run 1h --trait instance_class=XL");
    assert!(
        why.contains("of the lines for wall_time none is for such a job") && why.contains("instance_class=S; instance_class=M"),
        "{why}"
    );
}

#[test]
fn s2_s3_s4_s5_gpus_by_model_and_tier_with_cores_memory_and_storage() {
    let job = |model: &str, more: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_meterctl"))
            .args(["rate", "explain", "--card"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/ratecards/per-second-gpu.toml"))
            .args(["--gpus", "8", "--run", "2h", "--cpus", "0", "--memory", "0", "--storage", "0", "--gpu-model", model])
            .args(more.split_whitespace())
            .output()
            .unwrap();
        text(&output).lines().find_map(|line| line.strip_prefix("total ")?.strip_suffix(" credits").map(str::to_owned)).unwrap()
    };
    assert_eq!(job("NVIDIA H100 80GB HBM3", ""), "64", "8 GPUs x 2 hours x 4.00");
    for (model, on_demand, spot, reserved) in [
        ("NVIDIA A100-SXM4-80GB", "35.2", "14.4", "24.64"),
        ("NVIDIA A100 80GB PCIe", "35.2", "14.4", "24.64"),
        ("NVIDIA H100 NVL", "64", "25.6", "44.8"),
        ("NVIDIA H200", "80", "32", "56"),
        ("NVIDIA B200", "112", "44.8", "78.4"),
        ("NVIDIA GB200", "128", "51.2", "89.6"),
        ("NVIDIA B300 SXM6 AC", "144", "57.6", "100.8"),
        ("NVIDIA GB300", "160", "64", "112"),
    ] {
        let by_tier = ["", "--trait tier=spot", "--trait tier=reserved"].map(|tier| job(model, tier));
        assert_eq!(by_tier, [on_demand, spot, reserved], "{model}");
    }
    let none = "--run 1h --cpus 8 --memory 64GiB --storage 0";
    assert_eq!(charged("per-second-gpu", none), "0.64", "a node without GPUs: 8 x 0.04 and 64 x 0.005");
    assert_eq!(charged("per-second-gpu", "--run 31d --cpus 0 --memory 0 --storage 100GB --at 2026-01-01T00:00:00Z"), "10", "100 GB-months");
    assert_eq!(
        charged("per-second-gpu", "--run 14d --cpus 0 --memory 0 --storage 100GB --at 2026-02-01T00:00:00Z"),
        "5",
        "half of February"
    );
    let data = "--counter cluster-io-bytes=5000000000 --counter object-gb-hours=7300 --counter object-egress-bytes=2000000000 --counter object-operations=3000";
    let empty = "--run 1s --cpus 0 --memory 0 --storage 0";
    assert_eq!(charged("per-second-gpu", &format!("{empty} {data}")), "0.344", "0.01 + 0.219 + 0.1 + 0.015");
    let why = refused("per-second-gpu", "--run 1h --gpus 1 --cpus 1 --memory 1GiB --storage 0");
    assert!(why.contains("--gpu-model") && why.contains("NVIDIA H200*"), "{why}");
    let why = refused("per-second-gpu", "--run 1h --cpus 1 --memory 1GiB");
    assert!(why.contains("storage_bytes") && why.contains("--storage (0 for none)"), "{why}");
}

#[test]
fn a2_a_request_has_one_price_by_what_is_run() {
    for (cargo, least, most) in [("chat", 1, 5), ("chat-high", 5, 20), ("image", 10, 50)] {
        let price = |run: &str| charged("per-request", &format!("--run {run} --gpus 2 --trait cargo={cargo}"));
        assert_eq!(price("1s"), price("5h"), "however long it runs");
        let price: u32 = price("1s").parse().unwrap();
        assert!((least..=most).contains(&price), "{cargo} at {price}");
    }
    assert_eq!(charged("per-request", "--run 1s --trait cargo=chat --trait model=large"), "5");
    assert!(refused("per-request", "--run 1s --trait cargo=music").contains("cargo=chat"));
}

#[test]
fn r2_r3_instances_calls_and_storage_by_the_hour() {
    let at = |words: &str| charged("hourly-posted", words);
    assert_eq!(at("--run 10h --storage 0"), "20");
    assert_eq!(at("--run 10h --storage 0 --trait instance_class=small"), "5", "25 last ten hours with both");
    assert_eq!(at("--run 1h --storage 100GB --event call=250"), "2.26");
    assert!(refused("hourly-posted", "--run 1h --storage 0 --event cal=1").contains("no line prices the event cal"));
    let quote = text(&meterctl(&["quote"], "hourly-posted", "--run 730h --storage 1TB --trait instance_class=small"));
    assert!(quote.contains("438 credits, 0.6 an hour on average"), "{quote}");
}

/// By which option of `rate explain` each meter's quantity is said: what two GPUs, two hours and so on come to.
const EACH: [(&str, &str, &str, &str); 18] = [
    ("cpu_time", "used", "core-hour", "3"),
    ("cpu_time", "allocated", "core-hour", "8"),
    ("cpu_time", "max_of", "core-hour", "8"),
    ("memory_charged", "used", "GiB-hour", "12"),
    ("memory_charged", "allocated", "GiB-hour", "8"),
    ("memory_charged", "max_of", "GiB-hour", "12"),
    ("memory_anon", "used", "GiB-hour", "2"),
    ("memory_anon", "allocated", "GiB-hour", "8"),
    ("memory_anon", "max_of", "GiB-hour", "8"),
    ("gpu_held", "allocated", "gpu-hour", "4"),
    ("wall_time", "instance", "hour", "2"),
    ("wall_time", "used", "hour", "2"),
    ("gpu_busy", "used", "gpu-hour", "2"),
    ("gpu_memory", "used", "GiB-hour", "40"),
    ("energy", "used", "Wh", "1000"),
    ("io_bytes", "used", "GB", "7"),
    ("storage", "allocated", "GB-hour", "16"),
    ("counter", "used", "count", "9"),
];

#[test]
fn every_meter_by_every_basis_has_its_options_and_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("card.toml");
    let options = "--run 2h --cpu 3h --cpus 4 --memory 4GiB --memory-used 6GiB --memory-anon 1GiB --gpus 2 --gpu-busy 1h --gpu-memory 10GiB \
                   --energy-wh 500 --io 7GB --storage 8GB --counter counted=9";
    let explained = |meter: &str, basis: &str, unit: &str, options: &str| {
        let name = if matches!(meter, "counter" | "events") { "name = \"counted\"\n" } else { "" };
        let line = format!("[[line]]\nid = \"one\"\nmeter = \"{meter}\"\nprice = \"1\"\nunit = \"{unit}\"\nbasis = \"{basis}\"\n{name}");
        let held = "[[line]]\nid = \"held\"\nmeter = \"gpu_held\"\nprice = \"0\"\nunit = \"gpu-hour\"\n";
        let more = if meter == "gpu_held" { "" } else { held };
        std::fs::write(&file, format!("card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n{line}{more}")).unwrap();
        let mut meterctl = Command::new(env!("CARGO_BIN_EXE_meterctl"));
        text(&meterctl.args(["rate", "explain", "--card"]).arg(&file).args(options.split_whitespace()).output().unwrap())
    };
    let without = options.replace("--counter counted=9", "");
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (meter, basis, unit, quantity) in EACH {
        let said = explained(meter, basis, unit, if meter == "counter" { options } else { &without });
        assert!(said.contains(&format!("total {quantity} credits\n")), "{meter} {basis}: {said}");
        pairs.push((meter.to_owned(), basis.to_owned()));
    }
    let starts = explained("job_starts", "event", "start", &without);
    assert!(starts.contains("total 1 credits\n"), "{starts}");
    let events = explained("events", "event", "event", &format!("{without} --event counted=10"));
    assert!(events.contains("total 10 credits\n"), "{events}");
    pairs.extend([("job_starts", "event"), ("events", "event")].map(|(meter, basis)| (meter.to_owned(), basis.to_owned())));
    let grammar = Meter::ALL
        .into_iter()
        .flat_map(|meter| Basis::allowed(meter).iter().map(move |basis| (meter.name().to_owned(), basis.name().to_owned())));
    let (mut grammar, mut tried) = (grammar.collect::<Vec<_>>(), pairs);
    grammar.sort();
    tried.sort();
    assert_eq!(tried, grammar);
}

#[test]
fn the_greater_of_used_and_asked_for_is_shown_with_both() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("card.toml");
    let line = "[[line]]\nid = \"m\"\nmeter = \"memory_charged\"\nprice = \"0.5\"\nunit = \"GiB-hour\"\nbasis = \"max_of\"\n";
    std::fs::write(&file, format!("card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n{line}")).unwrap();
    let explain = |words: &str| {
        let mut meterctl = Command::new(env!("CARGO_BIN_EXE_meterctl"));
        meterctl.args(["rate", "explain", "--card"]).arg(&file).args(words.split_whitespace()).output().unwrap()
    };
    for (words, used, asked, cost) in [
        ("--memory 4GiB --memory-used 6GiB", "6", "4", "3"),
        ("--memory 4GiB --memory-used 4GiB", "4", "4", "2"),
        ("--memory 4GiB --memory-used 3GiB", "3", "4", "2"),
        ("--memory 4GiB --memory-used 0", "0", "4", "2"),
        ("--memory 4GiB", "4", "4", "2"),
        ("--memory 0 --memory-used 6GiB", "6", "0", "3"),
    ] {
        let said = text(&explain(words));
        let wanted = format!("    used      {used} GiB-hour\n    asked     {asked} GiB-hour\n    quantity  ");
        assert!(said.contains(&wanted) && said.contains(&format!("total {cost} credits")), "{words}: {said}");
    }
    let said = text(&explain("--memory 4GiB --run 1h --paused 1h --memory-used 0"));
    assert!(said.contains("asked     running 4 GiB-hour, paused 4 GiB-hour\n") && said.contains("total 4 credits"), "{said}");
    let refused = String::from_utf8(explain("--memory-used 6GiB").stderr).unwrap();
    assert!(refused.contains("the start did not say how much (hint: say it with --memory)"), "{refused}");
}

/// Every card that there is here, the good and the bad ones.
fn cards() -> Vec<String> {
    let folders = ["packaging/ratecards", "tests/ratecards"].map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder));
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// However a card is spoilt: what is said against it has a line of the file and says what to do.
    #[test]
    fn whatever_is_wrong_with_a_card_is_said_with_its_line_and_a_hint(
        which in any::<proptest::sample::Index>(), line in any::<proptest::sample::Index>(),
        change in prop_oneof![
            Just(None),
            prop::sample::select(vec![
                "", "0", "-1", "1.5", "\"\"", "\"-1\"", "\"1e5\"", "\"99999999999999999999999999999\"", "\"0.0000000000000000001\"", "true", "[1]", "{ a = 1 }", "{}", "\"word\"",
                "\"\\t\"", "\"*\"", "\"a*b\"", "\"2026-01-01\"", "\"1960-01-01T00:00:00Z\"", "{ tier = \"spot\" }", "{ account = \"a\" }", "{ frozen = \"2000\" }",
                "{ completed = \"0\" }", "[{ above = \"1\", price = \"2\" }]", "[{ above = \"0\" }]", "\"GB-month\"", "\"advance\"", "\"allocated\"", "\"day\"", "\"calendar\"",
            ]).prop_map(Some),
        ],
        key in prop::sample::select(vec![
            "", "price", "unit", "meter", "per", "round", "increment", "minimum", "connect_fee", "timing", "anchor", "basis", "state", "outcome", "select", "tiers", "name", "month",
            "discount", "started", "over_bid", "effective_from", "effective_to", "gpu_model", "version", "card", "predecessor", "tier", "typo",
        ]),
    ) {
        let cards = cards();
        let text = which.get(&cards);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let at = line.index(lines.len());
        match change {
            None => drop(lines.remove(at)),
            Some(value) if key.is_empty() => {
                if let Some((key, _)) = lines[at].clone().split_once('=') {
                    lines[at] = format!("{key}= {value}");
                }
            }
            Some(value) => lines.insert(at, format!("{key} = {value}")),
        }
        let text = lines.join("\n");
        let found = check(&text, "card.toml").map_or_else(|found| found, |(_, found)| found);
        for mistake in found {
            prop_assert!(mistake.hint.as_ref().is_some_and(|hint| 5 <= hint.len()), "{}: {mistake}\n{text}", mistake.code);
            let place = mistake.place.to_string();
            let nth: usize = place.split(':').nth(1).unwrap().parse().unwrap();
            prop_assert!(1 <= nth && nth <= lines.len().max(1), "{place}");
        }
    }
}
