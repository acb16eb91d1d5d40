//! `meterctl quote`: what a job of this shape would cost, under a card or the running agent's, and how long a balance would last.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::card::Shape;
use super::client::{Client, Failure, account_path, typed};
use super::exit::Exit;
use super::quantity::show_length;
use super::verify::card;
use super::{Format, Output, print};
use crate::domain::id::AccountId;
use crate::domain::ledger;
use crate::domain::money::Credits;
use crate::domain::rates::charge::{LineCharge, explain, line_charges};
use crate::domain::rates::{Card, Trait};
use crate::domain::time::Nanos;
use crate::domain::view::AccountView;

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
    authority: ledger::AccountView,
    node: Option<AccountView>,
}

/// A quote.
#[derive(Debug, Serialize)]
struct Quote {
    card: String,
    version: u64,
    lines: Vec<LineCharge>,
    /// What it comes to, with what is charged at its end if it completes.
    cost: Credits,
    per_hour: Credits,
    balance: Option<Balance>,
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
    let (quote, text) = quoted(&card, &arguments.shape.at_most(), account.as_ref())?;
    match arguments.format.output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&quote).map_err(Failure::other)?)),
        Output::Text => print(&text),
    }
    Ok(Exit::Done)
}

fn quoted(card: &Card, shape: &Shape, account: Option<&(AccountId, OneAccount)>) -> Result<(Quote, String), Failure> {
    let (usage, gpus) = shape.usage()?;
    let mut traits = shape.traits();
    if let Some(account) = account.and_then(|(account, _)| account.as_str().parse().ok()) {
        traits.insert(Trait::Account, account);
    }
    let priced = shape.priced((&usage, &gpus), &traits, card);
    let unpriced = |why: &dyn std::fmt::Display| Failure::Other(format!("card {} version {}: {why}", card.name, card.version));
    card.cover(&gpus, &priced.stated).map_err(|why| unpriced(&why))?;
    let lines = line_charges(card, &priced).map_err(|why| unpriced(&why))?;
    let cost: Credits = lines.iter().map(|line| line.cost.plus(line.pending)).sum();
    let per_hour = by_the_hour(cost, shape.length());
    let balance = account.map(|(account, found)| balance(account, found, cost, per_hour));
    let mut text = explain(card, &priced);
    let _ = writeln!(text, "for {}: {cost} credits, {per_hour} an hour on average", show_length(shape.length()));
    if let Some(balance) = &balance {
        text.push_str(&balance_text(balance));
    }
    let quote = Quote { card: card.name.to_string(), version: card.version, lines, cost, per_hour, balance };
    Ok((quote, text))
}

/// Rounded up: a quote promises no less than it will be.
fn by_the_hour(cost: Credits, length: Nanos) -> Credits {
    const HOUR_NS: i128 = 3_600_000_000_000;
    let length = i128::from(length.0.max(1));
    let (whole, rest) = (cost.nano() / length, cost.nano() % length);
    let part = rest.saturating_mul(HOUR_NS).saturating_add(length - 1) / length;
    Credits::from_nano(whole.saturating_mul(HOUR_NS).saturating_add(part))
}

fn balance(account: &AccountId, found: &OneAccount, cost: Credits, per_hour: Credits) -> Balance {
    // What nodes hold is the account's as well, and what was charged within the last seconds may still be in here.
    let kept = &found.authority;
    let available = kept.free.plus(kept.paid).plus(kept.committed);
    let burning = found.node.as_ref().map_or(Credits::ZERO, |node| node.burn_per_hour);
    let with_this = burning.plus(per_hour);
    Balance {
        account: account.clone(),
        available,
        burning_per_hour: burning,
        with_this_per_hour: with_this,
        lasts_s: lasts_at(available, with_this),
        left: available.minus(cost),
    }
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
        "account {account}: {available} credits; its jobs burn {burning_per_hour} an hour, {with_this_per_hour} with this one: lasts {lasts}\n\
         if nothing else ran, {enough}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::sample;

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    fn account(available: &str, burn_per_hour: &str) -> (AccountId, OneAccount) {
        let node = AccountView { burn_per_hour: credits(burn_per_hour), ..sample::view().accounts.remove(0) };
        let authority = ledger::AccountView { free: Credits::ZERO, paid: credits(available), ..sample::ledger_account() };
        ("lab".parse().unwrap(), OneAccount { authority, node: Some(node) })
    }

    #[test]
    fn r2_a_balance_of_25_at_a_burn_of_2_00_and_0_50_lasts_ten_hours_and_at_none_it_has_no_end() {
        let lasts = |available: &str, now: &str, more: &str| {
            let (id, found) = account(available, now);
            balance(&id, &found, Credits::ZERO, credits(more)).lasts_s
        };
        assert_eq!(lasts("25", "2.00", "0.50"), Some(36_000), "10.0 h");
        assert_eq!(lasts("25.000000001", "2.00", "0.50"), Some(36_000));
        assert_eq!(lasts("24.999999999", "2.00", "0.50"), Some(35_999));
        assert_eq!(lasts("25", "0", "0"), None, "no end, and no division by zero");
        assert_eq!(lasts("0", "2.00", "0.50"), Some(0));
        assert_eq!(lasts("25", "0", "0.000000001"), Some(90_000_000_000_000), "a nano-credit an hour");
        let (id, found) = account("25", "0");
        let text = balance_text(&balance(&id, &found, Credits::ZERO, Credits::ZERO));
        assert!(text.contains("lasts no end"), "{text}");
    }

    #[test]
    fn s11_the_time_to_zero_is_that_of_all_burns_together() {
        for (now, more) in [("2.00", "0.50"), ("0.50", "2.00"), ("1.25", "1.25"), ("2.5", "0")] {
            let (id, found) = account("25", now);
            let made = balance(&id, &found, Credits::ZERO, credits(more));
            assert_eq!((made.with_this_per_hour, made.lasts_s), (credits("2.5"), Some(36_000)), "{now} and {more}");
        }
        let (id, mut found) = account("20", "2.5");
        (found.authority.free, found.authority.held) = (credits("5"), credits("25"));
        assert_eq!(balance(&id, &found, Credits::ZERO, Credits::ZERO).lasts_s, Some(36_000), "both buckets, and what nodes hold of them");
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
    fn an_hours_price_is_rounded_up() {
        assert_eq!(by_the_hour(credits("1"), Nanos::from_secs(10_800)), credits("0.333333334"));
        assert_eq!(by_the_hour(credits("64"), Nanos::from_secs(7_200)), credits("32"));
        assert_eq!(by_the_hour(Credits::ZERO, Nanos::from_secs(1)), Credits::ZERO);
    }
}
