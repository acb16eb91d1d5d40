//! What `rate explain` shows, read as a person would: each step follows from those before it, and the end is what the second rating says.

use meterd::domain::id::AccountId;
use meterd::domain::rates::explain::explain;
use meterd::domain::rates::{Priced, Stated};
use num_rational::BigRational;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::*;
use crate::second_rating::decimal;

/// Cases; how many of the long run is said by `METERD_RATING_CASES`.
const EXPLAINED: u32 = 1_500;

/// An amount as it is shown, whatever was cut off.
fn shown(text: &str) -> BigRational {
    decimal(text.trim_end_matches([',', '…'])).unwrap_or_else(|| panic!("{text} is no number"))
}

fn one() -> BigRational {
    BigRational::from(BigInt::from(1))
}

/// What is cut off behind the twelfth digit.
fn fine() -> BigRational {
    BigRational::new(1.into(), BigInt::from(10).pow(12))
}

fn near(shown: &BigRational, exact: &BigRational, most: &BigRational) -> bool {
    let apart = if shown < exact { exact - shown } else { shown - exact };
    apart <= *most
}

/// The steps of each line, by its name.
fn blocks(text: &str) -> Vec<(&str, Vec<(&str, &str)>)> {
    let mut blocks: Vec<(&str, Vec<(&str, &str)>)> = Vec::new();
    for line in text.lines() {
        if let Some(step) = line.strip_prefix("    ") {
            let (name, what) = step.split_at(10);
            blocks.last_mut().unwrap().1.push((name.trim_end(), what));
        } else if let Some(head) = line.strip_prefix("  ") {
            blocks.push((head.split_once(": ").unwrap().0, Vec::new()));
        }
    }
    blocks
}

/// The sum that the steps of a line come to, each checked with those before it.
fn followed(steps: &[(&str, &str)], all: &str) -> BigRational {
    let mut sum = BigRational::from(BigInt::ZERO);
    for (name, what) in steps {
        let words: Vec<&str> = what.split(' ').collect();
        let after = |word: &str| words.iter().position(|other| *other == word).map(|at| shown(words[at + 1]));
        let is = after("=");
        let (expected, tolerance) = match *name {
            "price" | "held" => {
                let (quantity, times, by) = (shown(words[0]), after("x").unwrap(), after("/").unwrap_or_else(one));
                let value = &quantity * &times / &by;
                // Each of the three may have lost something.
                let lost = (&times + &quantity + &value / &by) / &by + one();
                sum += is.clone().unwrap();
                (value, fine() * lost)
            }
            "fee" => (&sum + after("+").unwrap(), fine() * BigInt::from(20)),
            "bands" => {
                assert!(near(&shown(words[1]), &sum, &(fine() * BigInt::from(20))), "{what}: {all}");
                sum = shown(words[1]);
                continue;
            }
            "discount" | "bid" | "outcome" => {
                let factor = after("x").unwrap() / after("/").unwrap_or_else(one);
                (&sum * &factor, fine() * (factor + one()))
            }
            _ => continue,
        };
        let is = is.unwrap_or_else(|| panic!("{name} {what}: {all}"));
        assert!(near(&is, &expected, &tolerance), "{name} {what}: {all}");
        if !matches!(*name, "price" | "held") {
            sum = is;
        }
    }
    sum
}

/// The first number of a step, and the one behind a word.
fn numbers_of_cost(what: &str) -> (BigRational, Option<BigRational>) {
    let now = shown(what.split(' ').next().unwrap());
    let later = what.split_once("credits now; ").map(|(_, rest)| shown(rest.split(' ').next().unwrap()));
    (now, later)
}

fn credits_of(nano: &BigInt) -> BigRational {
    BigRational::new(nano.clone(), BigInt::from(1_000_000_000))
}

fn check(case: &Case, counts: &RefCell<Counts>) {
    let (text, used) = &case.segments[0];
    let card = Card::parse(text, "card.toml").unwrap();
    let all = devices(&case.models);
    let gpus: Vec<HeldGpu> = held(used, &all).into_iter().map(|(_, gpu)| gpu).collect();
    let usage = Usage { more: Some(Box::new(more(used, &all))), ..usage(used, &all) };
    let said = &case.said[0];
    let traits: Traits = said.traits.iter().map(|(which, value)| (which_trait(which), value.parse().unwrap())).collect();
    let account: AccountId = "lab".parse().unwrap();
    let stated = Stated {
        at: Wall(u64::try_from(case.from[0].parse::<jiff::Timestamp>().unwrap().as_millisecond()).unwrap()),
        traits: &traits,
        account: Some(&account),
        cpus: said.cpus,
        memory_bytes: said.memory_bytes,
        storage_bytes: said.storage_bytes,
        bid: case.bid.map(|bid| bid.parse().unwrap()),
    };
    let ended = case.outcome.map(|name| Outcome::ALL.into_iter().find(|outcome| outcome.name() == name).unwrap());
    let second = rate(text, &plain(case), 0);
    let told = match explain(&card, &Priced { usage: &usage, gpus: &gpus, before: &[], stated, ended }) {
        Ok(told) => told,
        Err(why) => {
            assert!(second.is_err(), "{why}, and the second rating has a price: {second:?}");
            return count(counts, "no price");
        }
    };
    let second = second.unwrap_or_else(|why| panic!("{why:?}, and this explains it: {told}"));
    let blocks = blocks(&told);
    assert_eq!(blocks.iter().map(|(id, _)| *id).collect::<Vec<_>>(), second.iter().map(|line| line.tariff.id.as_str()).collect::<Vec<_>>());
    for ((_, steps), line) in blocks.iter().zip(&second) {
        let sum = followed(steps, &told) * BigInt::from(1_000_000_000);
        assert!(near(&sum, &line.exact, &BigRational::new(1.into(), 1_000.into())), "exactly {}: {told}", line.exact);
        let (name, what) = steps.last().unwrap();
        assert_eq!(*name, "cost", "{told}");
        assert_eq!(
            numbers_of_cost(what),
            (credits_of(&line.cost), Some(credits_of(&line.pending)).filter(|_| line.pending != BigInt::ZERO))
        );
        assert_eq!(line.exact.is_integer(), !what.contains("rounded"), "{told}");
        count(counts, "lines");
        for name in ["used", "held", "counts", "billed", "fee", "bands", "discount", "bid", "outcome"] {
            if steps.iter().any(|(step, _)| *step == name) {
                count(counts, format!("step {name}"));
            }
        }
        let compared = |name: &str| steps.iter().any(|(step, _)| *step == name);
        let is_max = line.tariff.says.get("basis").and_then(toml::Value::as_str) == Some("max_of");
        assert_eq!((compared("used"), compared("asked")), (is_max, is_max), "{told}");
    }
    let of = |part: fn(&Charged) -> &BigInt| credits_of(&second.iter().map(part).sum());
    let total = told.lines().find_map(|line| line.strip_prefix("total ")?.split(' ').next().map(shown)).unwrap();
    assert_eq!(total, of(|line| &line.cost), "{told}");
    let pending = told.lines().find_map(|line| line.strip_prefix("and ")?.split(' ').next().map(shown));
    assert_eq!(pending.unwrap_or_else(|| BigRational::from(BigInt::ZERO)), of(|line| &line.pending), "{told}");
}

#[test]
fn each_step_of_an_explanation_follows_from_those_before_it_and_its_total_is_the_rating_s() {
    let counts = RefCell::new(Counts::new());
    let cases = std::env::var("METERD_RATING_CASES").ok().map_or(EXPLAINED, |cases| cases.parse().unwrap());
    let config = Config { failure_persistence: None, max_shrink_iters: 500, ..Config::with_cases(cases) };
    // The same cases each time, so that what is counted below is no matter of luck.
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let result = runner.run(&random::case(), |case| {
        check(&case, &counts);
        Ok(())
    });
    if let Err(TestError::Fail(why, case)) = &result {
        panic!(
            "{why}\nmodels {:?}, {:?}, bid {:?}, {:?}\n{}{:?}",
            case.models, case.said[0], case.bid, case.outcome, case.segments[0].0, case.segments[0].1
        );
    }
    result.unwrap();
    let counts = counts.into_inner();
    for (what, count) in &counts {
        println!("{count:7}  {what}");
    }
    for (step, least) in [
        ("used", 50),
        ("held", 5),
        ("counts", 50),
        ("billed", 50),
        ("fee", 50),
        ("bands", 50),
        ("discount", 50),
        ("bid", 50),
        ("outcome", 50),
    ] {
        let count = counts.get(&format!("step {step}")).copied().unwrap_or(0);
        assert!(least <= count, "{step}: {count} times");
    }
}
