//! `meterctl quote`: what a job of this shape would cost, under a card or the running agent's, and how long a balance would last.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::card::{Shape, unpriced};
use super::client::{Client, Failure, account_path, typed};
use super::exit::Exit;
use super::quantity::show_length;
use super::receipt::line_row;
use super::table::{Align, table};
use super::verify::card;
use super::{Format, Output, print};
use crate::domain::id::AccountId;
use crate::domain::ledger;
use crate::domain::money::Credits;
use crate::domain::rates::charge::{LineCharge, line_charges};
use crate::domain::rates::explain::explain;
use crate::domain::rates::{Card, Earlier, Priced, RateError, Stated};
use crate::domain::receipt::rfc3339;
use crate::domain::time::{Nanos, Wall};
use crate::domain::usage::{More, Usage};
use crate::domain::view::AccountView;
use crate::node::clock;

/// Most parts of a quote: a longer one is priced by the last one's lines.
const PIECES_MAX: usize = 1_000;

/// A job, a length and a card.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The card; without it, the one that the agent has in force.
    #[arg(long, value_name = "FILE")]
    card: Option<PathBuf>,
    #[command(flatten)]
    shape: Shape,
    /// How long would the balance of this account last if such a job ran besides what runs now?
    #[arg(long)]
    account: Option<AccountId>,
    #[command(flatten)]
    format: Format,
}

/// `GET /v1/card`.
#[derive(Deserialize)]
struct InForce {
    card: String,
}

#[derive(Deserialize)]
struct OneAccount {
    /// None on a node of a fleet, which knows what the authority last said to it.
    authority: Option<ledger::AccountView>,
    node: Option<AccountView>,
}

/// A quote.
#[derive(Debug, Serialize)]
struct Quote {
    card: String,
    version: u64,
    /// One, or one more for each date of its lines and each month that passes meanwhile.
    segments: Vec<Piece>,
    /// What it comes to, with what is charged at its end if it completes.
    cost: Credits,
    per_hour: Credits,
    balance: Option<Balance>,
}

/// A part of its time under the same lines.
#[derive(Debug, Serialize)]
struct Piece {
    from: String,
    lines: Vec<LineCharge>,
}

/// How a balance stands to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Balance {
    account: AccountId,
    available: Credits,
    /// What its jobs burn now, by the hour …
    burning_per_hour: Credits,
    /// … and with this one.
    with_this_per_hour: Credits,
    /// None: no end.
    lasts_s: Option<u64>,
    /// What is left after this job, if nothing else ran; negative if it is not enough.
    left: Credits,
}

pub(super) fn main(socket: &Path, arguments: Arguments) -> Result<Exit, Failure> {
    let card = if let Some(path) = &arguments.card {
        card(path)?
    } else {
        let InForce { card } = typed(Client::new(socket)?.read("/v1/card")?)?;
        serde_json::from_str(&card).map_err(Failure::other)?
    };
    let account = arguments.account.as_ref().map(|account| {
        let found: OneAccount = typed(Client::new(socket)?.read(&account_path(account.as_str(), ""))?)?;
        Ok::<_, Failure>((account.clone(), found))
    });
    let account = account.transpose()?;
    let unpriced = arguments.shape.unpriced_text(&card);
    let shape = arguments.shape.at_most().begun(clock::now().wall, &card);
    let (quote, text) = quoted(&card, &shape, account.as_ref())?;
    match arguments.format.output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&quote).map_err(Failure::other)?)),
        Output::Text => print(&format!("{text}{unpriced}")),
    }
    Ok(Exit::Done)
}

fn quoted(card: &Card, shape: &Shape, account: Option<&(AccountId, OneAccount)>) -> Result<(Quote, String), Failure> {
    let (usage, gpus) = shape.usage()?;
    let traits = shape.traits();
    let mut whole = shape.priced((&usage, &gpus), &traits, card);
    whole.stated.account = account.map(|(account, _)| account);
    shape.named_are_priced(card)?;
    let pieces = pieces(card, &usage, whole.stated.at, shape.span_ns());
    let (mut segments, mut before) = (Vec::new(), Vec::new());
    for (usage, at) in &pieces {
        let stated = Stated { at: *at, ..whole.stated };
        card.cover(&gpus, &stated).map_err(|why| unpriced(card, &RateError::Uncovered(why)))?;
        let lines = line_charges(card, &Priced { usage, before: &before, stated, ..whole }).map_err(|why| unpriced(card, &why))?;
        segments.push(Piece { from: rfc3339(*at), lines });
        before.push(Earlier { usage, gpus: &gpus, stated });
    }
    let costs = segments.iter().flat_map(|segment| &segment.lines).map(|line| line.cost.plus(line.pending));
    let cost: Credits = costs.sum();
    let per_hour = by_the_hour(cost, shape.length());
    let balance = account.map(|(account, found)| balance(account, found, cost, per_hour)).transpose()?;
    let mut text = if segments.len() == 1 {
        explain(card, &whole).map_err(|why| unpriced(card, &why))?
    } else {
        segments.iter().fold(format!("card {} version {}\n", card.name, card.version), |text, piece| text + &piece_text(piece))
    };
    let _ = writeln!(text, "for {}: {cost} credits, {per_hour} an hour on average", show_length(shape.length()));
    if let Some(balance) = &balance {
        text.push_str(&balance_text(balance));
    }
    let quote = Quote { card: card.name.to_string(), version: card.version, segments, cost, per_hour, balance };
    Ok((quote, text))
}

/// The parts of a job's time, each with its usage: as its agent would have it, a new one begins where other lines apply, or another month. What
/// is used is spread evenly.
fn pieces(card: &Card, usage: &Usage, from: Wall, span_ns: u128) -> Vec<(Usage, Wall)> {
    let ns_since = |at: Wall| u128::from(at.0 - from.0) * 1_000_000;
    let next = |at: &Wall| card.next_date(*at).filter(|date| ns_since(*date) < span_ns);
    let begins: Vec<Wall> = std::iter::successors(Some(from), next).take(PIECES_MAX).collect();
    let ends = begins.iter().skip(1).map(|at| ns_since(*at)).chain([span_ns]);
    let part = |at: Wall, end: u128| {
        let (begin, span_ns) = (ns_since(at), span_ns.max(1));
        let upto = |total: u128, ns: u128| total / span_ns * ns + total % span_ns * ns / span_ns;
        let within = |total: u128| upto(total, end) - upto(total, begin);
        (within_each(usage, within, if begin == 0 { usage.job_starts } else { 0 }), at)
    };
    begins.iter().zip(ends).map(|(at, end)| part(*at, end)).collect()
}

fn within_each(usage: &Usage, within: impl Fn(u128) -> u128, job_starts: u64) -> Usage {
    fn each<K: Ord + Clone>(totals: &BTreeMap<K, u128>, within: &impl Fn(u128) -> u128) -> BTreeMap<K, u128> {
        totals.iter().map(|(key, total)| (key.clone(), within(*total))).collect()
    }
    let more = |more: &More| More {
        gpu_busy_ns: each(&more.gpu_busy_ns, &within),
        gpu_memory_byte_ns: each(&more.gpu_memory_byte_ns, &within),
        energy_mj: each(&more.energy_mj, &within),
        io_bytes: within(more.io_bytes),
        counters: each(&more.counters, &within),
        events: each(&more.events, &within),
    };
    let wall_ns = within(usage.wall_ns);
    Usage {
        cpu_ns: within(usage.cpu_ns),
        memory_byte_ns: within(usage.memory_byte_ns),
        gpu_held_ns: each(&usage.gpu_held_ns, &within),
        wall_ns,
        job_starts,
        frozen_ns: within(usage.frozen_ns),
        memory_anon_byte_ns: within(usage.memory_anon_byte_ns),
        // It never stands still for longer than it has its place, whatever was cut off.
        paused_ns: within(usage.paused_ns).min(wall_ns),
        more: usage.more.as_deref().map(|of| Box::new(more(of))),
    }
}

fn piece_text(piece: &Piece) -> String {
    let headings =
        [("  LINE", Align::Left), ("QUANTITY", Align::Right), ("UNIT", Align::Left), ("PRICE", Align::Right), ("COST", Align::Right)];
    let rows = |line: &LineCharge| LineCharge { cost: line.cost.plus(line.pending), ..line.clone() };
    let rows: Vec<Vec<String>> = piece.lines.iter().map(|line| line_row(&rows(line))).collect();
    format!("from {}\n{}", piece.from, table(&headings, &rows))
}

/// Rounded up: a quote promises no less than it will be.
fn by_the_hour(cost: Credits, length: Nanos) -> Credits {
    const HOUR_NS: i128 = 3_600_000_000_000;
    let length = i128::from(length.0.max(1));
    let (whole, rest) = (cost.nano() / length, cost.nano() % length);
    let part = rest.saturating_mul(HOUR_NS).saturating_add(length - 1) / length;
    Credits::from_nano(whole.saturating_mul(HOUR_NS).saturating_add(part))
}

fn balance(account: &AccountId, found: &OneAccount, cost: Credits, per_hour: Credits) -> Result<Balance, Failure> {
    // What nodes hold is the account's as well, and what was charged within the last seconds may still be in here.
    let kept = found.authority.as_ref().map(|kept| kept.free.plus(kept.paid).plus(kept.committed));
    let told = || found.node.as_ref()?.balance.as_ref().map(|told| told.free.plus(told.paid).plus(told.committed));
    let unknown = || {
        let hint = "run it where a job of the account runs, or leave --account out";
        Failure::Other(format!("the authority has not told this node the balance of account {account} yet (hint: {hint})"))
    };
    let available = kept.or_else(told).ok_or_else(unknown)?;
    let burning = found.node.as_ref().map_or(Credits::ZERO, |node| node.burn_per_hour);
    let with_this = burning.plus(per_hour);
    Ok(Balance {
        account: account.clone(),
        available,
        burning_per_hour: burning,
        with_this_per_hour: with_this,
        lasts_s: lasts_at(available, with_this),
        left: available.minus(cost),
    })
}

/// How many seconds a balance lasts at so much an hour; none if nothing burns.
fn lasts_at(available: Credits, per_hour: Credits) -> Option<u64> {
    if !per_hour.is_positive() {
        return None;
    }
    let available = available.or_zero().nano();
    let seconds = available.checked_mul(3_600).map_or(i128::MAX, |hours| hours / per_hour.nano());
    Some(u64::try_from(seconds).unwrap_or(u64::MAX))
}

fn balance_text(balance: &Balance) -> String {
    let Balance { account, available, burning_per_hour, with_this_per_hour, lasts_s, left } = balance;
    let lasts = lasts_s.map_or_else(|| "no end".to_owned(), |seconds| show_length(Nanos::from_secs(seconds)));
    let enough = if *left < Credits::ZERO {
        format!("{} credits too little for this job", Credits::ZERO.minus(*left))
    } else {
        format!("{left} credits are left after this job")
    };
    format!(
        "account {account}: {available} credits; its jobs here burn {burning_per_hour} credits an hour, {with_this_per_hour} with this one: lasts {lasts}\n\
         if nothing else ran, {enough}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::wire::Balance as Told;
    use crate::node::sample;

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    fn account(available: &str, burn_per_hour: &str) -> (AccountId, OneAccount) {
        let node = AccountView { burn_per_hour: credits(burn_per_hour), ..sample::view().accounts.remove(0) };
        let authority = ledger::AccountView { free: Credits::ZERO, paid: credits(available), ..sample::ledger_account() };
        ("lab".parse().unwrap(), OneAccount { authority: Some(authority), node: Some(node) })
    }

    #[test]
    fn r2_a_balance_of_25_at_a_burn_of_2_00_and_0_50_lasts_ten_hours_and_at_none_it_has_no_end() {
        let lasts = |available: &str, now: &str, more: &str| {
            let (id, found) = account(available, now);
            balance(&id, &found, Credits::ZERO, credits(more)).unwrap().lasts_s
        };
        assert_eq!(lasts("25", "2.00", "0.50"), Some(36_000), "10.0 h");
        assert_eq!(lasts("25.000000001", "2.00", "0.50"), Some(36_000));
        assert_eq!(lasts("24.999999999", "2.00", "0.50"), Some(35_999));
        assert_eq!(lasts("25", "0", "0"), None, "no end, and no division by zero");
        assert_eq!(lasts("0", "2.00", "0.50"), Some(0));
        assert_eq!(lasts("25", "0", "0.000000001"), Some(90_000_000_000_000), "a nano-credit an hour");
        let (id, found) = account("25", "0");
        let text = balance_text(&balance(&id, &found, Credits::ZERO, Credits::ZERO).unwrap());
        assert!(text.contains("lasts no end"), "{text}");
    }

    #[test]
    fn s11_the_time_to_zero_is_that_of_all_burns_together() {
        for (now, more) in [("2.00", "0.50"), ("0.50", "2.00"), ("1.25", "1.25"), ("2.5", "0")] {
            let (id, found) = account("25", now);
            let made = balance(&id, &found, Credits::ZERO, credits(more)).unwrap();
            assert_eq!((made.with_this_per_hour, made.lasts_s), (credits("2.5"), Some(36_000)), "{now} and {more}");
        }
        let (id, mut found) = account("20", "2.5");
        let kept = found.authority.as_mut().unwrap();
        (kept.free, kept.held) = (credits("5"), credits("25"));
        assert_eq!(balance(&id, &found, Credits::ZERO, Credits::ZERO).unwrap().lasts_s, Some(36_000), "both buckets, and what nodes hold");
    }

    #[test]
    fn in_a_fleet_a_quote_goes_by_the_balance_that_the_authority_told_and_says_if_there_is_none() {
        let (id, mut found) = account("25", "2.5");
        found.authority = None;
        let node = found.node.as_mut().unwrap();
        node.balance = None;
        assert!(balance(&id, &found, Credits::ZERO, Credits::ZERO).unwrap_err().to_string().contains("has not told this node"));
        let (free, paid, nothing) = (credits("5"), credits("20"), Credits::ZERO);
        let told = Told { account: id.clone(), free, paid, reset: None, refill: nothing, alerts: 0, committed: nothing };
        found.node.as_mut().unwrap().balance = Some(told);
        assert_eq!(balance(&id, &found, Credits::ZERO, Credits::ZERO).unwrap().lasts_s, Some(36_000));
    }

    #[test]
    fn a_quote_reads_line_by_line_and_against_the_balance() {
        let shape = Shape::of(7_200, 8, "NVIDIA H100 80GB HBM3");
        let (quote, text) = quoted(&sample::card(), &shape, Some(&account("100", "4"))).unwrap();
        assert_eq!((quote.cost, quote.per_hour), (credits("64"), credits("32")), "8 x 2 h x 4.00");
        assert_eq!(quote.balance.unwrap().left, credits("36"));
        insta::assert_snapshot!(text);
        let (quote, _) = quoted(&sample::card(), &shape, Some(&account("63.999999999", "0"))).unwrap();
        assert_eq!(quote.balance.unwrap().left, credits("-0.000000001"));
    }

    #[test]
    fn f19_what_has_no_price_has_no_quote() {
        let text = "card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n[[line]]\nid = \"w\"\nmeter = \"wall_time\"\nprice = \"1\"\nunit = \"hour\"\n";
        let card = Card::parse(text, "card.toml").unwrap();
        let why = quoted(&card, &Shape::of(3_600, 1, "Tesla T4"), None).unwrap_err().to_string();
        assert!(why.contains("no line prices the GPU"), "{why}");
        assert_eq!(quoted(&card, &Shape::of(3_600, 0, "GPU"), None).unwrap().0.cost, credits("1"));
    }

    #[test]
    fn s5_a_quote_over_two_months_is_the_sum_of_both_and_a_line_s_date_is_kept() {
        let head = "card = \"c\"\nversion = 1\neffective_from = \"2027-01-01T00:00:00Z\"\n";
        let stored = "[[line]]\nid = \"s\"\nmeter = \"storage\"\nprice = \"0.31\"\nunit = \"GB-month\"\nmonth = \"calendar\"\n";
        let dated = "[[line]]\nid = \"w\"\nmeter = \"wall_time\"\nprice = \"1\"\nunit = \"hour\"\neffective_to = \"2027-02-01T00:00:00Z\"\n\
            [[line]]\nid = \"x\"\nmeter = \"wall_time\"\nprice = \"2\"\nunit = \"hour\"\neffective_from = \"2027-02-01T00:00:00Z\"\n";
        let of = |lines: &str, days: u64| {
            let card = Card::parse(&format!("{head}{lines}"), "card.toml").unwrap();
            let shape = Shape::of(days * 86_400, 0, "GPU").storing(100_000_000_000).begun(Wall(0), &card);
            let (quote, text) = quoted(&card, &shape, None).unwrap();
            (quote.cost.to_string(), quote.segments.len(), text)
        };
        assert_eq!(of(stored, 31).0, "31", "100 GB for the whole of January");
        let (cost, segments, text) = of(stored, 59);
        assert_eq!((cost.as_str(), segments), ("62", 2), "and of February: {text}");
        assert_eq!(of(stored, 90).0, "93", "and of March");
        assert_eq!(of(dated, 31).0, "744");
        let (cost, segments, text) = of(dated, 32);
        assert_eq!((cost.as_str(), segments), ("792", 2), "{text}");
        assert!(text.contains("from 2027-02-01T00:00:00.000Z") && text.contains("48"), "{text}");
    }

    #[test]
    fn an_hours_price_is_rounded_up() {
        assert_eq!(by_the_hour(credits("1"), Nanos::from_secs(10_800)), credits("0.333333334"));
        assert_eq!(by_the_hour(credits("64"), Nanos::from_secs(7_200)), credits("32"));
        assert_eq!(by_the_hour(Credits::ZERO, Nanos::from_secs(1)), Credits::ZERO);
    }
}
