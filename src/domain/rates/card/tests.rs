use super::*;
use crate::domain::id::GpuId;
use crate::domain::rates::unit::Span;

fn card(lines: &str) -> Result<Card, Vec<Mistake>> {
    let head = "card = \"c\"\nversion = 1\neffective_from = \"2026-11-01T00:00:00Z\"\n";
    Card::parse(&format!("{head}{lines}"), "card.toml")
}

fn gpu_line(id: &str, price: &str, model: Option<&str>) -> String {
    let model = model.map_or(String::new(), |model| format!("gpu_model = {model:?}\n"));
    format!("[[line]]\nid = {id:?}\nmeter = \"gpu_held\"\nprice = {price:?}\nunit = \"gpu-hour\"\n{model}")
}

fn held(model: &str) -> HeldGpu {
    let gpu: GpuId = "GPU-1".parse().unwrap();
    HeldGpu { gpu, model: GpuModel::new(model) }
}

#[test]
fn the_example_card_is_read_and_prices_an_h100_by_its_own_line() {
    let text = include_str!("../../../../packaging/ratecards/standard.toml");
    let card = Card::parse(text, "standard.toml").unwrap();
    assert_eq!((card.name.as_str(), card.version, card.effective_from), ("standard", 1, Wall(1_767_225_600_000)));
    assert_eq!(card.digest, Digest(Sha256::digest(text).into()));
    let id = |model: &str| card.gpu_line(Meter::GpuHeld, &GpuModel::new(model), &Stated::NOTHING).unwrap().id.to_string();
    assert_eq!(id("NVIDIA H100 80GB HBM3"), "gpu-h100");
    assert_eq!(id("NVIDIA L4"), "gpu");
    let cpu = &card.lines[0];
    assert_eq!((cpu.meter, cpu.unit, cpu.per, cpu.round), (Meter::CpuTime, Unit::Core(Span::Hour), 1, Rounding::Down));
    assert_eq!(cpu.price.to_string(), "0.04");
}

#[test]
fn ten_mistakes_in_one_card_are_all_named_with_line_and_hint() {
    let text = r#"card = "my card"
version = 0
effective_from = "2026-11-01T00:00:00"
currency = "EUR"

[[line]]
id = "cpu"
meter = "cpu"
price = "0.04"
unit = "core-hour"

[[line]]
id = "cpu"
meter = "cpu_time"
price = 0.04
unit = "gpu-hour"

[[line]]
id = "memory"
meter = "memory_charged"
price = "-1"
unit = "GiB-hours"
per = 0
gpu_model = "NVIDIA L4"

[[line]]
id = "gpu"
meter = "gpu_held"
price = "0.1234567890123456789"
unit = "gpu-hour"
round = "nearest"
gpu_model = "NVIDIA * 80GB"

[[line]]
meter = "gpu_held"
price = "1"
unit = "gpu-hour"
gpu_modle = "NVIDIA L4"

[[line]]
id = "gpu-b"
meter = "gpu_held"
price = ""
unit = 3
"#;
    let mistakes = Card::parse(text, "card.toml").unwrap_err();
    let codes: std::collections::BTreeSet<_> = mistakes.iter().map(|mistake| mistake.code).collect();
    assert!(10 <= codes.len(), "{codes:?}");
    assert!(mistakes.iter().all(|mistake| mistake.hint.is_some()), "{mistakes:?}");
    let printed: Vec<String> = mistakes.iter().map(|mistake| format!("[{}] {mistake}", mistake.code)).collect();
    insta::assert_snapshot!(printed.join("\n"));
}

#[test]
fn a_card_without_lines_is_no_card() {
    let code = |lines: &str| card(lines).unwrap_err()[0].code;
    assert_eq!(code(""), "missing_key");
    assert_eq!(code("line = []\n"), "no_lines");
}

#[test]
fn an_effective_date_may_be_text_or_a_toml_date_and_has_an_offset() {
    let from = |date: &str| {
        let text = format!("card = \"c\"\nversion = 1\neffective_from = {date}\n{}", gpu_line("gpu", "1", None));
        Card::parse(&text, "card.toml").map(|card| card.effective_from.0).map_err(|mistakes| mistakes[0].code)
    };
    assert_eq!(from("\"2026-11-01T00:00:00Z\""), Ok(1_793_491_200_000));
    assert_eq!(from("2026-11-01T00:00:00Z"), Ok(1_793_491_200_000));
    assert_eq!(from("2026-11-01T02:00:00+02:00"), Ok(1_793_491_200_000));
    assert_eq!(from("2026-11-01T00:00:00"), Err("malformed"));
    assert_eq!(from("2026-11-01"), Err("malformed"));
    assert_eq!(from("\"1969-12-31T23:59:59Z\""), Err("out_of_range"));
}

#[test]
fn the_most_specific_line_prices_a_gpu() {
    let lines = [
        gpu_line("any", "1", None),
        gpu_line("exact", "2", Some("NVIDIA H100 80GB HBM3")),
        gpu_line("long", "3", Some("NVIDIA H100 8*")),
        gpu_line("short", "4", Some("NVIDIA H*")),
    ];
    let card = card(&lines.concat()).unwrap();
    let id = |model: &str| card.gpu_line(Meter::GpuHeld, &GpuModel::new(model), &Stated::NOTHING).unwrap().id.to_string();
    assert_eq!(id("NVIDIA H100 80GB HBM3"), "exact");
    assert_eq!(id("NVIDIA H100 80GB PCIe"), "long");
    assert_eq!(id("NVIDIA H200"), "short");
    assert_eq!(id("AMD MI300X"), "any");
}

#[test]
fn two_lines_that_select_the_same_gpus_are_a_mistake() {
    for model in [None, Some("NVIDIA L4"), Some("NVIDIA H*")] {
        let lines = gpu_line("a", "1", model) + &gpu_line("b", "2", model);
        let mistakes = card(&lines).unwrap_err();
        assert_eq!(mistakes.iter().map(|mistake| mistake.code).collect::<Vec<_>>(), ["duplicate_selector"], "{model:?}");
    }
    assert!(card(&(gpu_line("a", "1", Some("NVIDIA L4")) + &gpu_line("b", "2", Some("NVIDIA L4*")))).is_ok());
}

#[test]
fn f19_a_gpu_without_a_price_is_named_and_a_free_one_has_a_line() {
    let priced = card(&(gpu_line("h100", "4", Some("NVIDIA H100*")) + &gpu_line("t4", "0", Some("Tesla T4")))).unwrap();
    let gpus = [held("NVIDIA H100 80GB HBM3"), held("NVIDIA A100"), held("Tesla T4")];
    assert_eq!(priced.cover(&gpus, &Stated::NOTHING), Err(Uncovered::Gpu(gpus[1].gpu.clone())));
}

#[test]
fn a_stored_card_reads_back_and_is_checked_again() {
    let card = Card::parse(include_str!("../../../../packaging/ratecards/standard.toml"), "standard.toml").unwrap();
    let bytes = postcard::to_stdvec(&card).unwrap();
    assert_eq!(postcard::from_bytes::<Card>(&bytes).unwrap(), card);
    let json = serde_json::to_value(&card).unwrap();
    assert_eq!(serde_json::from_value::<Card>(json.clone()).unwrap(), card);
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut changed = json.clone();
        change(&mut changed);
        serde_json::from_value::<Card>(changed).unwrap_err().to_string()
    };
    assert!(refused(&|card| card["lines"] = serde_json::json!([])).contains("lines"));
    assert!(refused(&|card| card["lines"][0]["unit"] = "gpu-hour".into()).contains("does not measure"));
    assert!(refused(&|card| card["lines"][0]["price"] = "-1".into()).contains("negative"));
    assert!(refused(&|card| card["lines"][0]["per"] = 0.into()).contains("per = 0"));
    assert!(refused(&|card| card["lines"][0]["id"] = "memory".into()).contains("two lines"));
    assert!(refused(&|card| card["lines"][0]["gpu_model"] = serde_json::json!({"prefix": "N"})).contains("another meter"));
    assert!(refused(&|card| card["lines"][3]["gpu_model"] = "any".into()).contains("same GPUs"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_card_reader_panic(at: proptest::sample::Index, insert in "[\"\\[\\]=.a-z0-9*\n-]{0,6}") {
        let mut text = include_str!("../../../../packaging/ratecards/standard.toml").to_owned();
        text.insert_str(at.index(text.len()), &insert);
        if let Ok(card) = Card::parse(&text, "card.toml") {
            let bytes = postcard::to_stdvec(&card).unwrap();
            proptest::prop_assert_eq!(postcard::from_bytes::<Card>(&bytes).unwrap(), card);
        }
    }
}
