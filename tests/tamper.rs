//! What is changed in a log or its card is found, whatever it is: every bit of a small log, many of a large one, and whole chains made anew.
//!
//! `METERD_TAMPER_BITS=200000` flips so many bits of the large log instead of 10,000.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/made_log.rs"]
mod made_log;

use std::collections::BTreeMap;

use made_log::{CARD, EPOCH, Numbers, facts};
use meterd::domain::anchor::{Anchor, Unanchored};
use meterd::domain::audit::{Fault, Found};
use meterd::domain::chain::Head;
use meterd::domain::fact::Fact;
use meterd::domain::id::Digest;
use meterd::domain::log::{LogFault, LogReader, LogWriter};
use meterd::domain::money::Credits;
use meterd::domain::rates::Card;
use meterd::domain::time::Wall;

fn card() -> Card {
    Card::parse(CARD, "card.toml").unwrap()
}

/// The facts chained, as an exported log.
fn exported(facts: &[Fact]) -> (Vec<String>, Vec<Head>) {
    let (mut writer, first) = LogWriter::begin(Head::START);
    let (mut lines, mut heads) = (vec![first], vec![Head::START]);
    for fact in facts {
        let bytes = fact.encode();
        let head = heads[heads.len() - 1].after(&bytes);
        lines.push(writer.row(head.seq, head.link, &bytes));
        heads.push(head);
    }
    lines.push(writer.end());
    (lines, heads)
}

fn made(jobs: u64, seconds: u64) -> Vec<Fact> {
    let mut made = Vec::new();
    facts(&card(), jobs, seconds, &mut |fact| made.push(fact));
    made
}

fn read(lines: &[String], anchors: Option<Vec<Anchor>>) -> Result<Found, LogFault> {
    let mut reader = LogReader::new(anchors);
    lines.iter().try_for_each(|line| reader.line(line))?;
    reader.finish()
}

/// Is the text right from here on? What was read before it is the same text.
fn goes_on(mut reader: LogReader, text: &[u8], rest: &[String]) -> bool {
    // As `meterctl verify` reads it: what is not UTF-8 is an error.
    let Ok(text) = std::str::from_utf8(text) else { return false };
    if text.split_inclusive('\n').any(|line| reader.line(line).is_err()) {
        return false;
    }
    rest.iter().all(|line| reader.line(line).is_ok()) && reader.finish().is_ok()
}

/// Flips one bit of a line, its end included.
fn is_found(before: &LogReader, lines: &[String], nth: usize, bit: usize) -> bool {
    let mut text = lines[nth].clone().into_bytes();
    let is_end = bit / 8 == text.len() - 1;
    text[bit / 8] ^= 1 << (bit % 8);
    // Without its end a line goes on in the next one.
    let next = if is_end { lines.get(nth + 1) } else { None };
    text.extend_from_slice(next.map_or(b"", |next| next.as_bytes()));
    let rest = &lines[(nth + 1 + usize::from(next.is_some())).min(lines.len())..];
    !goes_on(before.clone(), &text, rest)
}

#[test]
fn every_bit_of_a_log_of_a_hundred_rows_and_of_its_card_is_vouched_for() {
    let (lines, _) = exported(&made(1, 95));
    assert_eq!(lines.len(), 102, "two lines around a hundred rows");
    let found = read(&lines, None).unwrap();
    assert_eq!((found.counts.rows, found.counts.samples, found.counts.jobs), (100, 95, 1));
    let mut reader = LogReader::new(None);
    let mut flipped = 0;
    for (nth, line) in lines.iter().enumerate() {
        for bit in 0..line.len() * 8 {
            assert!(is_found(&reader, &lines, nth, bit), "bit {bit} of line {}: {line}", nth + 1);
            flipped += 1;
        }
        reader.line(line).unwrap();
    }
    println!("{flipped} bits of the log");
    // A card is known by the hash of its text: with another bit it is another card, or none.
    for bit in 0..CARD.len() * 8 {
        let mut text = CARD.as_bytes().to_vec();
        text[bit / 8] ^= 1 << (bit % 8);
        let changed = String::from_utf8(text).ok().and_then(|text| Card::parse(&text, "card.toml").ok());
        assert!(changed.is_none_or(|changed| !found.cards.contains(&changed.digest)), "bit {bit} of the card");
    }
    println!("{} bits of the card", CARD.len() * 8);
}

#[test]
fn random_bits_of_a_log_of_ten_thousand_rows_are_vouched_for() {
    let (lines, _) = exported(&made(1, 9_995));
    assert_eq!(lines.len(), 10_002);
    let count = std::env::var("METERD_TAMPER_BITS").map_or(10_000, |text| text.parse::<u64>().unwrap());
    let bits: u64 = lines.iter().map(|line| line.len() as u64 * 8).sum();
    let mut numbers = Numbers(2_026);
    let mut by_line: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let ends: Vec<u64> = lines
        .iter()
        .scan(0, |end, line| {
            *end += line.len() as u64 * 8;
            Some(*end)
        })
        .collect();
    for _ in 0..count {
        let bit = numbers.below(bits);
        let nth = ends.partition_point(|end| *end <= bit);
        let start = if nth == 0 { 0 } else { ends[nth - 1] };
        by_line.entry(nth).or_default().push(usize::try_from(bit - start).unwrap());
    }
    let mut reader = LogReader::new(None);
    for (nth, line) in lines.iter().enumerate() {
        for bit in by_line.get(&nth).into_iter().flatten() {
            assert!(is_found(&reader, &lines, nth, *bit), "bit {bit} of line {}: {line}", nth + 1);
        }
        reader.line(line).unwrap();
    }
    assert_eq!(reader.finish().unwrap().counts.samples, 9_995);
    println!("{count} bits of {bits}");
}

/// Takes a hundred nano-credits off one charge, at the same price of everything else.
fn with_one_changed(mut facts: Vec<Fact>) -> Vec<Fact> {
    let changed = facts.iter_mut().rev().find_map(|fact| match fact {
        Fact::Counted { rows, .. } => rows.first_mut(),
        _ => None,
    });
    let row = changed.unwrap();
    let less = Credits::from_nano(row.cost.nano() - 100);
    (row.cost, row.drawn) = (less, less);
    facts
}

/// Uses less, and pays for that exactly: no arithmetic can find it.
fn with_less_used(facts: Vec<Fact>) -> Vec<Fact> {
    let mut left = 2;
    let without_one = |fact: &Fact| {
        let counted = matches!(fact, Fact::Counted { .. });
        left -= i32::from(counted);
        !(counted && left == 0)
    };
    let mut rest = facts;
    rest.retain(without_one);
    rest
}

fn anchor(head: Head) -> Anchor {
    Anchor { node: "n".parse().unwrap(), epoch: EPOCH, head, at: Wall(0) }
}

#[test]
fn a_chain_made_anew_over_a_changed_charge_is_found_by_the_price() {
    let (lines, _) = exported(&with_one_changed(made(2, 30)));
    let fault = read(&lines, None).unwrap_err();
    assert!(matches!(fault, LogFault::Row(Fault::Price { what: "the cost", .. })), "{fault}");
}

#[test]
fn a_chain_made_anew_over_what_was_really_never_used_is_found_by_the_anchor_alone() {
    let facts = made(2, 30);
    let (lines, heads) = exported(&facts);
    let (forged, _) = exported(&with_less_used(facts));
    read(&forged, None).expect("in itself it is right");
    let anchors = |row: usize| Some(vec![anchor(heads[row])]);
    read(&lines, anchors(20)).expect("the true one is anchored");
    assert_eq!(read(&lines, anchors(20)).unwrap().anchored.unwrap().last, Some(heads[20]));
    assert_eq!(read(&forged, anchors(20)), Err(LogFault::Row(Fault::Anchor(Unanchored::Rewritten { seq: 20 }))));
    assert!(read(&forged, anchors(4)).is_ok(), "what came before the change is as it was");
    let last = heads.len() - 1;
    let cut = Err(LogFault::Row(Fault::Anchor(Unanchored::CutOff { end: last as u64 - 1, seq: last as u64 })));
    assert_eq!(read(&forged, anchors(last)), cut, "one row fewer");
}

#[test]
fn rows_left_out_doubled_swapped_or_cut_off_are_found() {
    let (lines, _) = exported(&made(1, 20));
    let ends = lines.len() - 1;
    for at in 1..ends {
        let mut left_out = lines.clone();
        left_out.remove(at);
        let mut doubled = lines.clone();
        doubled.insert(at, lines[at].clone());
        let mut swapped = lines.clone();
        swapped.swap(at, (at % (ends - 1)) + 1);
        for changed in [left_out, doubled, swapped] {
            assert!(read(&changed, None).is_err(), "line {at}");
        }
        assert!(matches!(read(&lines[..at], None), Err(LogFault::CutOff(_))), "line {at}");
    }
    let mut longer = lines.clone();
    longer.push(lines[1].clone());
    assert!(read(&longer, None).is_err(), "a row behind the end");
    assert_ne!(read(&lines, None).unwrap().head.link, Digest([0; 32]));
}
