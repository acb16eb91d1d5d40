//! What is asked for a job, and what a bid holds its price to.
//!
//! What is asked is the price of a start. It rises with a dearer card, other terms, and where a line has dearer bands by the job's own volume:
//! then it is the price of a start whose first step lies there. A line that minds the bid costs the bid's part of what its card asks at the
//! start, where that is more. Where it is not, what comes after the start may rise by what the bid leaves, and no further: several lines that
//! can rise share that in proportion to how far they can.

use num_bigint::BigUint;

use super::bill::{self, Held, Later};
use super::charge::{Charge, Priced, billed, counted, is_for, prices_device, start_price, start_usage};
use super::{Card, Line, OverBid, Rules, Stated};
use crate::domain::money::Credits;
use crate::domain::outcome::Outcome;
use crate::domain::usage::HeldGpu;

/// What a card asks for one start of such a job.
#[must_use]
pub fn ask(card: &Card, gpus: &[HeldGpu], stated: &Stated<'_>) -> Credits {
    let Charge { cost, pending, .. } = start_price(card, gpus, Stated { bid: None, ..*stated });
    cost.plus(pending)
}

/// What is to happen to a job whose bid is below what its card asks for it by now, and what that is; none where it is not, or where the card
/// does not mind.
#[must_use]
pub fn over_bid(card: &Card, priced: &Priced<'_>) -> Option<(OverBid, Credits)> {
    let Priced { gpus, ref stated, .. } = *priced;
    let bid = stated.bid.filter(|_| card.minds_bids())?;
    let rule = applying(card, gpus, stated).filter_map(|(_, rules)| rules.further.latest.over_bid).max()?;
    let risen: Credits = applying(card, gpus, stated).filter_map(|(line, rules)| risen(card, line, rules, priced)).sum();
    let asked = ask(card, gpus, stated).plus(risen);
    (bid < asked).then_some((rule, asked))
}

/// By what more is asked under a line than at the start, for the volume that the job has reached; less than nothing where that is cheaper.
fn risen(card: &Card, line: &Line, rules: &Rules, priced: &Priced<'_>) -> Option<Credits> {
    let step = step(card, line, rules, priced.gpus, &priced.stated).filter(|_| !rules.tiers.is_empty())?;
    let now = billed(card, line, rules, priced, counted(rules, priced)).ok()?;
    if now <= step {
        return None;
    }
    let (before, factor) = (&now - &step, rules.charged(Outcome::Completed));
    let price = |from: &BigUint, to: &BigUint| bill::window((line, priced.stated.at), rules, (from, to), factor);
    Some(price(&before, &now)?.minus(price(&BigUint::ZERO, &step)?))
}

/// What a line's price is held to under a card that minds the job's bid.
pub(super) fn held_to(card: &Card, line: &Line, gpus: &[HeldGpu], stated: &Stated<'_>) -> Held {
    let minds = |line: &Line| line.rules.as_deref().is_some_and(|rules| rules.further.latest.over_bid.is_some());
    let Some(bid) = stated.bid.filter(|_| minds(line)) else { return Held::NOT };
    let ask = ask(card, gpus, stated);
    Held { bid, ask, later: later(card, line, gpus, stated, bid.minus(ask).or_zero()) }
}

/// How far a line may rise after the start, of what the bid leaves; none where it may as far as it can.
fn later(card: &Card, line: &Line, gpus: &[HeldGpu], stated: &Stated<'_>, left: Credits) -> Option<Later> {
    let rises = |rules: &Rules| rules.further.latest.over_bid.is_some() && !rules.tiers.is_empty();
    let rules = line.rules.as_deref().filter(|rules| rises(rules))?;
    let rise = |line: &Line, rules: &Rules| {
        step(card, line, rules, gpus, stated).map_or(Credits::ZERO, |step| bill::rise((line, stated.at), rules, &step))
    };
    let own = rise(line, rules);
    let all: BigUint = applying(card, gpus, stated).filter(|(_, rules)| rises(rules)).map(|(line, rules)| wide(rise(line, rules))).sum();
    if own.is_zero() || all <= wide(left) {
        return None;
    }
    let more = i128::try_from(wide(left) * wide(own) / all).map_or(Credits::from_nano(i128::MAX), Credits::from_nano);
    Some(Later { step: step(card, line, rules, gpus, stated)?, more })
}

fn wide(amount: Credits) -> BigUint {
    BigUint::from(amount.or_zero().nano().unsigned_abs())
}

/// What a line bills at the start of such a job, in billionths of base units; none of one that bills nothing then.
fn step(card: &Card, line: &Line, rules: &Rules, gpus: &[HeldGpu], stated: &Stated<'_>) -> Option<BigUint> {
    let usage = start_usage(gpus);
    let priced = Priced { usage: &usage, gpus, before: &[], stated: Stated { bid: None, ..*stated }, ended: None };
    billed(card, line, rules, &priced, counted(rules, &priced)).ok().filter(|step| *step != BigUint::ZERO)
}

/// The lines with rules that price such a job.
fn applying<'a>(card: &'a Card, gpus: &'a [HeldGpu], stated: &'a Stated<'_>) -> impl Iterator<Item = (&'a Line, &'a Rules)> {
    let lines = card.lines.iter().filter(move |line| {
        if line.meter.is_of_gpus() { gpus.iter().any(|held| prices_device(card, line, held, stated)) } else { is_for(card, line, stated) }
    });
    lines.filter_map(|line| Some((line, line.rules.as_deref()?)))
}
