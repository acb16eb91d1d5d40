//! The lots that a balance is made of, in the order in which they are spent.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::bucket::{Bucket, Parts};
use crate::domain::money::Credits;
use crate::domain::time::Wall;

/// Which lots of one bucket are spent first: the smaller number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Priority(pub u8);

impl Default for Priority {
    fn default() -> Priority {
        Priority(10)
    }
}

/// Until when a lot may be spent. What expires soonest comes first, what never does comes last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Option<Wall>", into = "Option<Wall>")]
pub enum Expiry {
    /// Up to this instant, and not at it.
    At(Wall),
    /// For ever.
    #[default]
    Never,
}

impl From<Option<Wall>> for Expiry {
    fn from(at: Option<Wall>) -> Expiry {
        at.map_or(Expiry::Never, Expiry::At)
    }
}

impl From<Expiry> for Option<Wall> {
    fn from(expiry: Expiry) -> Option<Wall> {
        match expiry {
            Expiry::At(at) => Some(at),
            Expiry::Never => None,
        }
    }
}

impl Expiry {
    fn is_over(self, now: Wall) -> bool {
        matches!(self, Expiry::At(at) if at <= now)
    }
}

/// What tells one lot of an account from another. Its order is the order of spending: by bucket, then by priority, then what expires soonest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct LotKey {
    /// Committed, free or paid.
    pub bucket: Bucket,
    /// The smaller first.
    #[serde(default)]
    pub priority: Priority,
    /// Until when.
    #[serde(rename = "expires_ms", default)]
    pub expires: Expiry,
}

impl LotKey {
    /// What a bucket holds where nothing else is said.
    #[must_use]
    pub fn plain(bucket: Bucket) -> LotKey {
        LotKey { bucket, priority: Priority::default(), expires: Expiry::Never }
    }
}

/// One lot, as people and the store see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lot {
    /// Which.
    #[serde(flatten)]
    pub key: LotKey,
    /// Not charged yet; what nodes hold of it is still in here.
    pub left: Credits,
}

/// All lots of one account. Lots alike in all but their payment are one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Lot>", into = "Vec<Lot>")]
pub struct Lots(BTreeMap<LotKey, Credits>);

impl From<Vec<Lot>> for Lots {
    fn from(rows: Vec<Lot>) -> Lots {
        let mut lots = Lots::default();
        for lot in rows {
            lots.add(lot.key, lot.left);
        }
        lots
    }
}

impl From<Lots> for Vec<Lot> {
    fn from(lots: Lots) -> Vec<Lot> {
        lots.iter().collect()
    }
}

impl Lots {
    /// They, in the order of spending.
    pub fn iter(&self) -> impl Iterator<Item = Lot> + '_ {
        self.0.iter().map(|(key, left)| Lot { key: *key, left: *left })
    }

    /// All of them together.
    #[must_use]
    pub fn total(&self) -> Credits {
        self.0.values().copied().sum()
    }

    /// What one bucket holds.
    #[must_use]
    pub fn of(&self, bucket: Bucket) -> Credits {
        self.0.iter().filter(|(key, _)| key.bucket == bucket).map(|(_, left)| *left).sum()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Is there one of this key?
    #[must_use]
    pub fn knows(&self, key: LotKey) -> bool {
        self.0.contains_key(&key)
    }

    pub(super) fn add(&mut self, key: LotKey, amount: Credits) {
        if !amount.is_zero() {
            let left = self.0.entry(key).or_default();
            *left = left.plus(amount);
        }
    }

    /// Takes an amount out, the first lots first; what came from each bucket. Less where there is less.
    pub(super) fn draw(&mut self, amount: Credits) -> Parts {
        let pieces = self.pieces(amount, |_| true);
        self.remove(&pieces);
        let mut parts = Parts::default();
        for piece in pieces {
            let part = parts.part(piece.key.bucket);
            *part = part.plus(piece.left);
        }
        parts
    }

    /// Takes an amount out of one bucket, the first lots first; `None` if it does not hold as much.
    pub(super) fn take(&mut self, bucket: Bucket, amount: Credits) -> Option<Vec<Lot>> {
        if self.of(bucket) < amount {
            return None;
        }
        let pieces = self.pieces(amount, |key| key.bucket == bucket);
        self.remove(&pieces);
        Some(pieces)
    }

    /// Takes out what has expired, but for what nodes hold: that may still be spent. What they hold is of the first lots.
    pub(super) fn lapse(&mut self, held: Credits, now: Wall) -> Vec<Lot> {
        let mut covered = held;
        let mut over = Vec::new();
        for lot in self.iter() {
            let kept = lot.left.min(covered.or_zero());
            covered = covered.minus(kept);
            let lapsed = lot.left.minus(kept);
            if lot.key.expires.is_over(now) && lapsed.is_positive() {
                over.push(Lot { left: lapsed, ..lot });
            }
        }
        self.remove(&over);
        over
    }

    fn pieces(&self, amount: Credits, of: impl Fn(&LotKey) -> bool) -> Vec<Lot> {
        let mut missing = amount.or_zero();
        let mut pieces = Vec::new();
        for lot in self.iter().filter(|lot| of(&lot.key)) {
            let part = lot.left.min(missing);
            missing = missing.minus(part);
            if part.is_positive() {
                pieces.push(Lot { left: part, ..lot });
            }
        }
        pieces
    }

    fn remove(&mut self, pieces: &[Lot]) {
        for piece in pieces {
            if let Some(left) = self.0.get_mut(&piece.key) {
                *left = left.minus(piece.left);
            }
        }
        self.0.retain(|_, left| !left.is_zero());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn credits(nano: i128) -> Credits {
        Credits::from_nano(nano)
    }

    fn lots(rows: &[(Bucket, u8, Option<u64>, i128)]) -> Lots {
        let row = |(bucket, priority, expires, left): &(Bucket, u8, Option<u64>, i128)| Lot {
            key: LotKey { bucket: *bucket, priority: Priority(*priority), expires: expires.map(Wall).into() },
            left: credits(*left),
        };
        rows.iter().map(row).collect::<Vec<_>>().into()
    }

    #[test]
    fn free_comes_before_paid_then_priority_then_what_expires_soonest() {
        let mut all =
            lots(&[(Bucket::Paid, 1, Some(5), 4), (Bucket::Free, 10, None, 1), (Bucket::Free, 10, Some(9), 2), (Bucket::Free, 2, None, 3)]);
        let draw = |all: &mut Lots, amount| {
            let Parts { free, paid, committed } = all.draw(credits(amount));
            assert_eq!(committed, credits(0));
            (free, paid)
        };
        assert_eq!(draw(&mut all, 3), (credits(3), credits(0)));
        assert_eq!(all, lots(&[(Bucket::Paid, 1, Some(5), 4), (Bucket::Free, 10, None, 1), (Bucket::Free, 10, Some(9), 2)]));
        assert_eq!(draw(&mut all, 2), (credits(2), credits(0)));
        assert_eq!(all, lots(&[(Bucket::Paid, 1, Some(5), 4), (Bucket::Free, 10, None, 1)]));
        assert_eq!(draw(&mut all, 4), (credits(1), credits(3)));
        assert_eq!(draw(&mut all, 4), (credits(0), credits(1)), "no more than there is");
        assert_eq!(all, Lots::default());
    }

    #[test]
    fn s7_what_is_committed_comes_before_everything_else_what_ends_first_before_the_rest() {
        let mut all = lots(&[
            (Bucket::Free, 0, Some(1), 3),
            (Bucket::Paid, 0, Some(1), 4),
            (Bucket::Committed, 10, Some(9), 5),
            (Bucket::Committed, 10, Some(8), 2),
        ]);
        let parts = |committed, free, paid| Parts { committed: credits(committed), free: credits(free), paid: credits(paid) };
        assert_eq!(all.draw(credits(2)), parts(2, 0, 0));
        assert_eq!(all.iter().next().unwrap().key.expires, Expiry::At(Wall(9)));
        assert_eq!(all.draw(credits(5)), parts(5, 0, 0), "used up exactly");
        assert_eq!(all.draw(credits(1)), parts(0, 1, 0), "a nano-credit more is of the next bucket");
        assert_eq!(all.draw(credits(9)), parts(0, 2, 4));
    }

    #[test]
    fn a_lot_lapses_at_its_instant_and_not_before_but_for_what_nodes_hold() {
        let mut all = lots(&[(Bucket::Free, 10, Some(100), 7), (Bucket::Paid, 10, None, 5)]);
        assert_eq!(all.lapse(credits(0), Wall(99)), []);
        let lapsed = all.lapse(credits(3), Wall(100));
        assert_eq!(lapsed.iter().map(|lot| lot.left).collect::<Vec<_>>(), [credits(4)]);
        assert_eq!((all.of(Bucket::Free), all.of(Bucket::Paid)), (credits(3), credits(5)));
        assert_eq!(all.lapse(credits(0), Wall(101)).len(), 1, "what was held came back");
        assert_eq!(all.total(), credits(5));
    }

    #[test]
    fn lots_read_back_from_their_text() {
        let all = lots(&[(Bucket::Free, 2, Some(9), 1), (Bucket::Paid, 10, None, 5)]);
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(
            text,
            r#"[{"bucket":"free","priority":2,"expires_ms":9,"left":"0.000000001"},{"bucket":"paid","priority":10,"expires_ms":null,"left":"0.000000005"}]"#
        );
        assert_eq!(serde_json::from_str::<Lots>(&text).unwrap(), all);
        let bare: Lots = serde_json::from_str(r#"[{"bucket":"paid","left":"0.000000005"}]"#).unwrap();
        assert_eq!(bare, lots(&[(Bucket::Paid, 10, None, 5)]));
    }

    proptest! {
        #[test]
        fn what_is_taken_out_is_what_is_missing_afterwards_and_no_lot_falls_below_zero(
            rows in prop::collection::vec((prop::sample::select(&Bucket::ALL[..]), 0..3_u8, prop::option::of(0..5_u64), 1..100_i128), 0..8),
            amount in 0..300_i128, held in 0..300_i128, now in 0..6_u64,
        ) {
            let mut all = lots(&rows);
            let before = all.total();
            let parts = all.draw(credits(amount));
            let Parts { free, paid, .. } = parts;
            prop_assert_eq!(parts.total(), credits(amount).min(before));
            prop_assert_eq!(all.total(), before.minus(parts.total()));
            prop_assert!(free.plus(paid).is_zero() || all.of(Bucket::Committed).is_zero(), "what is committed goes first");
            prop_assert!(paid.is_zero() || all.of(Bucket::Free).is_zero(), "paid credit is never touched while something free is left");
            let before = all.total();
            let held = credits(held).min(before);
            let lapsed: Credits = all.lapse(held, Wall(now)).iter().map(|lot| lot.left).sum();
            prop_assert_eq!(all.total(), before.minus(lapsed));
            prop_assert!(held <= all.total(), "what nodes hold stays");
            prop_assert!(all.iter().all(|lot| lot.left.is_positive()));
        }
    }
}
