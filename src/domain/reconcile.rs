//! Do the receipts of a node and the ledger of the authority tell the same story? Each difference is named.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::id::{AccountId, Epoch, NodeId};
use super::ledger::{Effect, EntryKind, EpochState, LedgerEntry};
use super::money::Credits;

/// The version of a node's side as a document.
pub const VERSION: u16 = 1;

/// A node's side as it is handed out, to be compared elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeExport {
    /// [`VERSION`].
    pub reconcile: u16,
    /// The names that the node has had on its receipts.
    pub nodes: BTreeSet<NodeId>,
    /// Its epoch, and the last question that it asked in it.
    pub asked: Option<(Epoch, u64)>,
    /// By account.
    pub accounts: BTreeMap<AccountId, NodeSide>,
}

/// What a node has, of one account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSide {
    /// On all receipts, those of running jobs included: out of grants …
    pub drawn: Credits,
    /// … and written off.
    pub unfunded: Credits,
    /// What of `drawn` the authority has acknowledged.
    pub told_drawn: Credits,
    /// What of `unfunded` it has.
    pub told_unfunded: Credits,
    /// Given back by the outcomes of jobs …
    pub refunded: Credits,
    /// … and what of that the authority has acknowledged.
    pub told_refunded: Credits,
}

/// How far the authority has heard one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Of which node.
    pub node: NodeId,
    /// Which.
    pub epoch: Epoch,
    /// The last question that was accepted.
    pub request: u64,
    /// Does more come of it?
    pub state: EpochState,
}

/// What the authority has, of one account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthoritySide {
    /// Charged, said by the account.
    pub settled: Credits,
    /// Written off, said by the account.
    pub written_off: Credits,
    /// Reported late and covered by nothing, said by the account.
    pub shortfall: Credits,
    /// Come in, said by the account.
    pub deposited: Credits,
    /// Gone otherwise than by use, said by the account.
    pub withdrawn: Credits,
    /// In both buckets.
    pub balance: Credits,
    /// The highest that the node's epochs have claimed.
    pub claimed: Credits,
    /// The highest that they have said was written off.
    pub unfunded: Credits,
    /// Charged to the node's epochs.
    pub epochs_settled: Credits,
    /// Claimed by them and covered by nothing.
    pub epochs_shortfall: Credits,
    /// Have other nodes epochs on this account?
    pub elsewhere: bool,
    /// Given back of what the node's epochs were charged.
    pub refunded: Credits,
    /// The node's epochs, and the last question that was heard of each.
    pub heard: Vec<Heard>,
}

/// The sums of the lines of an account's ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LedgerSums {
    /// Of all that came in.
    pub deposits: Credits,
    /// Of all that went otherwise than by use.
    pub withdrawals: Credits,
    /// Of use.
    pub usage: Credits,
    /// Of what was written off.
    pub write_offs: Credits,
    /// Of what was covered by nothing.
    pub shortfalls: Credits,
    /// Of what outcomes gave back; a part of `deposits`.
    pub refunds: Credits,
}

/// Two figures that must be one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Of which account.
    pub account: AccountId,
    /// A stable word.
    pub code: &'static str,
    /// What is compared with what.
    pub what: &'static str,
    /// The first one.
    pub one: Credits,
    /// The other one.
    pub other: Credits,
}

/// What is on its way: used, and to be told with the next question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Untold {
    /// Of which account.
    pub account: AccountId,
    /// Out of grants.
    pub drawn: Credits,
    /// Written off.
    pub unfunded: Credits,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reconciled {
    /// Accounts that were looked at.
    pub accounts: usize,
    /// On all receipts, out of grants.
    pub drawn: Credits,
    /// Charged by the authority.
    pub settled: Credits,
    /// On all receipts, given back.
    pub refunded: Credits,
    /// What does not agree.
    pub differences: Vec<Difference>,
    /// What is on its way.
    pub untold: Vec<Untold>,
    /// Accounts of which the authority has heard more since a node's side was written down: their receipts cannot be compared.
    pub newer: Vec<AccountId>,
}

impl LedgerSums {
    /// Adds the lines up.
    pub fn of<'a>(entries: impl Iterator<Item = &'a LedgerEntry>) -> LedgerSums {
        let mut sums = LedgerSums::default();
        for entry in entries {
            if matches!(entry.kind, EntryKind::OutcomeRefund { .. }) {
                sums.refunds = sums.refunds.plus(entry.amount);
            }
            let sum = match (&entry.kind, entry.effect()) {
                (EntryKind::Usage { .. }, _) => &mut sums.usage,
                (EntryKind::WriteOff { .. }, _) => &mut sums.write_offs,
                (EntryKind::Shortfall { .. }, _) => &mut sums.shortfalls,
                (_, Effect::Adds) => &mut sums.deposits,
                (_, Effect::Takes) => &mut sums.withdrawals,
                (_, Effect::Nothing) => continue,
            };
            *sum = sum.plus(entry.amount);
        }
        sums
    }
}

/// Compares both sides, account by account. The authority was read first, the node after it: what the node was charged meanwhile is on its way.
#[must_use]
pub fn reconcile(node: &BTreeMap<AccountId, NodeSide>, authority: &BTreeMap<AccountId, (AuthoritySide, LedgerSums)>) -> Reconciled {
    let ids: BTreeSet<&AccountId> = node.keys().chain(authority.keys()).collect();
    let mut found = Reconciled { accounts: ids.len(), ..Reconciled::default() };
    for id in ids {
        let here = node.get(id).copied().unwrap_or_default();
        found.refunded = found.refunded.plus(here.refunded);
        found.drawn = found.drawn.plus(here.drawn);
        let Some((there, ledger)) = authority.get(id) else {
            if here != NodeSide::default() {
                let what = "on receipts here, of an account that the authority does not know";
                found.differences.push(Difference {
                    account: id.clone(),
                    code: "unknown_account",
                    what,
                    one: here.drawn,
                    other: Credits::ZERO,
                });
            }
            continue;
        };
        found.settled = found.settled.plus(there.settled);
        compare(id, &here, there, ledger, &mut found);
    }
    found
}

/// The same for the nodes of a fleet, whose sides were written down before the ledger was read, one after the other. Where the authority has heard
/// of an account from one of them since, its receipts are not compared, and it is named.
///
/// # Errors
/// Two documents that are of one node.
pub fn reconcile_fleet(nodes: &[NodeExport], authority: &BTreeMap<AccountId, (AuthoritySide, LedgerSums)>) -> Result<Reconciled, NodeId> {
    let mut names = BTreeSet::new();
    let mut together: BTreeMap<AccountId, NodeSide> = BTreeMap::new();
    for node in nodes {
        if let Some(twice) = node.nodes.iter().find(|name| !names.insert((*name).clone())) {
            return Err(twice.clone());
        }
        for (id, side) in &node.accounts {
            together.entry(id.clone()).or_default().add(side);
        }
    }
    let is_newer = |side: &AuthoritySide| {
        side.heard.iter().any(|Heard { node: name, epoch, request, state }| {
            let asked = nodes.iter().find(|node| node.nodes.contains(name)).map(|node| node.asked);
            match asked {
                None => false,
                Some(Some((last, asked))) if last == *epoch => asked < *request,
                // Of an epoch that is over nothing new comes.
                Some(_) => *state == EpochState::Open,
            }
        })
    };
    let newer: Vec<AccountId> = authority.iter().filter(|(_, (side, _))| is_newer(side)).map(|(id, _)| id.clone()).collect();
    // What the authority has heard since stands in place of what the receipts said before.
    let level = |(id, (side, _)): (&AccountId, &(AuthoritySide, LedgerSums))| {
        let heard = NodeSide {
            drawn: side.claimed,
            unfunded: side.unfunded,
            told_drawn: side.claimed,
            told_unfunded: side.unfunded,
            refunded: side.refunded,
            told_refunded: side.refunded,
        };
        newer.contains(id).then(|| (id.clone(), heard))
    };
    together.extend(authority.iter().filter_map(level));
    let mut found = reconcile(&together, authority);
    found.newer = newer;
    Ok(found)
}

impl NodeSide {
    fn add(&mut self, other: &NodeSide) {
        let NodeSide { drawn, unfunded, told_drawn, told_unfunded, refunded, told_refunded } = self;
        *drawn = drawn.plus(other.drawn);
        *unfunded = unfunded.plus(other.unfunded);
        *told_drawn = told_drawn.plus(other.told_drawn);
        *told_unfunded = told_unfunded.plus(other.told_unfunded);
        *refunded = refunded.plus(other.refunded);
        *told_refunded = told_refunded.plus(other.told_refunded);
    }
}

fn compare(id: &AccountId, here: &NodeSide, there: &AuthoritySide, ledger: &LedgerSums, found: &mut Reconciled) {
    let mut differs = |code, what, one, other| {
        if one != other {
            found.differences.push(Difference { account: id.clone(), code, what, one, other });
        }
    };
    differs("ledger_deposits", "come in by the ledger's lines, and by the account", ledger.deposits, there.deposited);
    differs(
        "ledger_withdrawals",
        "gone otherwise than by use, by the ledger's lines and by the account",
        ledger.withdrawals,
        there.withdrawn,
    );
    differs("ledger_usage", "use by the ledger's lines, and charged by the account", ledger.usage, there.settled);
    differs("ledger_write_offs", "written off by the ledger's lines, and by the account", ledger.write_offs, there.written_off);
    differs("ledger_shortfalls", "shortfall by the ledger's lines, and by the account", ledger.shortfalls, there.shortfall);
    let accounted = there.balance.plus(there.settled).plus(there.withdrawn);
    differs("balance", "balance, charged and gone, and come in", accounted, there.deposited);
    if !there.elsewhere {
        let settled = there.epochs_settled;
        differs("epochs_settled", "charged to this node's epochs, and to the account", settled, there.settled);
    }
    let booked = there.epochs_settled.plus(there.epochs_shortfall);
    differs("claimed", "claimed by this node's epochs, and charged to them or covered by nothing", there.claimed, booked);
    // What the authority has heard lies between what it had acknowledged and what the receipts say by now.
    let between = |told: Credits, heard: Credits, said: Credits| told <= heard && heard <= said;
    if !between(here.told_drawn, there.claimed, here.drawn) {
        differs("receipts_drawn", "drawn on this node's receipts, and claimed at the authority", here.drawn, there.claimed);
    }
    // No more is given back than was charged, so what was covered by nothing is not.
    let told_refunded = if there.epochs_shortfall.is_zero() { here.told_refunded } else { Credits::ZERO };
    if !between(told_refunded, there.refunded, here.refunded) {
        differs("receipts_refunded", "given back on this node's receipts, and booked by the authority", here.refunded, there.refunded);
    }
    if !there.elsewhere {
        differs("epochs_refunded", "given back to this node's epochs, and by the ledger's lines", there.refunded, ledger.refunds);
    }
    if !between(here.told_unfunded, there.unfunded, here.unfunded) {
        differs("receipts_unfunded", "written off on this node's receipts, and heard of by the authority", here.unfunded, there.unfunded);
    }
    let untold = (here.drawn.minus(there.claimed), here.unfunded.minus(there.unfunded));
    if untold.0.is_positive() || untold.1.is_positive() {
        found.untold.push(Untold { account: id.clone(), drawn: untold.0.or_zero(), unfunded: untold.1.or_zero() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nano(nano: i128) -> Credits {
        Credits::from_nano(nano)
    }

    fn lab() -> AccountId {
        "lab".parse().unwrap()
    }

    /// 105 paid in, 5 taken out, 40 used by this node, 3 written off.
    fn agreed() -> (NodeSide, AuthoritySide, LedgerSums) {
        let here = NodeSide {
            drawn: nano(40),
            unfunded: nano(3),
            told_drawn: nano(40),
            told_unfunded: nano(3),
            refunded: nano(6),
            told_refunded: nano(6),
        };
        let there = AuthoritySide {
            settled: nano(40),
            written_off: nano(3),
            shortfall: nano(0),
            deposited: nano(105),
            withdrawn: nano(5),
            balance: nano(60),
            claimed: nano(40),
            unfunded: nano(3),
            epochs_settled: nano(40),
            epochs_shortfall: nano(0),
            elsewhere: false,
            refunded: nano(6),
            heard: vec![heard("n", 1, 9)],
        };
        let ledger = LedgerSums {
            deposits: nano(105),
            withdrawals: nano(5),
            usage: nano(40),
            write_offs: nano(3),
            shortfalls: nano(0),
            refunds: nano(6),
        };
        (here, there, ledger)
    }

    fn heard(node: &str, epoch: u8, request: u64) -> Heard {
        Heard { node: node.parse().unwrap(), epoch: Epoch([epoch; 16]), request, state: EpochState::Open }
    }

    fn export(name: &str, asked: u64, here: NodeSide) -> NodeExport {
        NodeExport {
            reconcile: VERSION,
            nodes: [name.parse().unwrap()].into(),
            asked: Some((Epoch([1; 16]), asked)),
            accounts: [(lab(), here)].into(),
        }
    }

    #[test]
    fn several_nodes_are_compared_together_with_one_ledger() {
        let (here, mut there, ledger) = agreed();
        let half = NodeSide {
            drawn: nano(20),
            told_drawn: nano(20),
            unfunded: nano(0),
            told_unfunded: nano(0),
            refunded: nano(0),
            told_refunded: nano(0),
        };
        let rest = NodeSide { drawn: nano(20), told_drawn: nano(20), ..here };
        there.heard.push(heard("m", 2, 4));
        let second = NodeExport { asked: Some((Epoch([2; 16]), 4)), ..export("m", 0, rest) };
        let authority = BTreeMap::from([(lab(), (there, ledger))]);
        let found = reconcile_fleet(&[export("n", 9, half), second.clone()], &authority).unwrap();
        assert_eq!((codes(&found), found.drawn, found.newer.len()), (vec![], nano(40), 0));
        let short = NodeSide { drawn: nano(19), told_drawn: nano(19), ..half };
        let found = reconcile_fleet(&[export("n", 9, short), second.clone()], &authority).unwrap();
        assert_eq!(codes(&found), ["receipts_drawn"], "a nano-credit that no receipt holds");
        assert_eq!(reconcile_fleet(&[second.clone(), second], &authority), Err("m".parse().unwrap()));
    }

    #[test]
    fn what_the_authority_has_heard_since_is_no_difference_and_is_named() {
        let (here, there, ledger) = agreed();
        let before = NodeSide { drawn: nano(30), told_drawn: nano(30), ..here };
        let authority = BTreeMap::from([(lab(), (there.clone(), ledger))]);
        let found = reconcile_fleet(&[export("n", 8, before)], &authority).unwrap();
        assert_eq!((codes(&found), found.newer), (vec![], vec![lab()]), "question 9 was asked after the export");
        let found = reconcile_fleet(&[export("n", 9, before)], &authority).unwrap();
        assert_eq!((codes(&found), found.newer), (vec!["receipts_drawn"], vec![]), "with the same question there is no excuse");
        let mut broken = there;
        broken.epochs_settled = nano(39);
        let authority = BTreeMap::from([(lab(), (broken, ledger))]);
        let found = reconcile_fleet(&[export("n", 8, before)], &authority).unwrap();
        assert_eq!(codes(&found), ["epochs_settled", "claimed"], "the ledger must agree with itself all the same");
    }

    fn reconciled(change: impl FnOnce(&mut NodeSide, &mut AuthoritySide, &mut LedgerSums)) -> Reconciled {
        let (mut here, mut there, mut ledger) = agreed();
        change(&mut here, &mut there, &mut ledger);
        reconcile(&BTreeMap::from([(lab(), here)]), &BTreeMap::from([(lab(), (there, ledger))]))
    }

    fn codes(found: &Reconciled) -> Vec<&'static str> {
        found.differences.iter().map(|difference| difference.code).collect()
    }

    #[test]
    fn what_agrees_has_no_difference() {
        let found = reconciled(|_, _, _| ());
        assert_eq!((found.differences.len(), found.untold.len(), found.drawn, found.settled), (0, 0, nano(40), nano(40)));
    }

    #[test]
    fn every_nano_credit_too_much_or_too_little_is_named_where_it_is() {
        type Change = fn(&mut NodeSide, &mut AuthoritySide, &mut LedgerSums);
        let cases: [(&str, Change); 11] = [
            ("receipts_refunded", |here, _, _| (here.refunded, here.told_refunded) = (nano(5), nano(5))),
            ("epochs_refunded", |_, _, ledger| ledger.refunds = nano(7)),
            ("ledger_deposits", |_, _, ledger| ledger.deposits = nano(106)),
            ("ledger_withdrawals", |_, _, ledger| ledger.withdrawals = nano(4)),
            ("ledger_usage", |_, _, ledger| ledger.usage = nano(39)),
            ("ledger_write_offs", |_, _, ledger| ledger.write_offs = nano(4)),
            ("ledger_shortfalls", |_, _, ledger| ledger.shortfalls = nano(1)),
            ("balance", |_, there, _| there.balance = nano(61)),
            ("epochs_settled", |_, there, _| (there.epochs_settled, there.claimed) = (nano(39), nano(39))),
            ("claimed", |_, there, _| there.claimed = nano(41)),
            ("receipts_drawn", |here, _, _| (here.drawn, here.told_drawn) = (nano(39), nano(39))),
        ];
        for (code, change) in cases {
            let found = reconciled(change);
            assert!(codes(&found).contains(&code), "{code}: {found:?}");
        }
        assert_eq!(codes(&reconciled(|here, _, _| here.unfunded = nano(2))), ["receipts_unfunded"]);
        assert_eq!(codes(&reconciled(|here, _, _| (here.drawn, here.told_drawn) = (nano(41), nano(41)))), ["receipts_drawn"]);
    }

    #[test]
    fn what_is_on_its_way_is_no_difference() {
        let found = reconciled(|here, _, _| here.drawn = nano(45));
        assert_eq!(codes(&found), Vec::<&str>::new());
        assert_eq!(found.untold, [Untold { account: lab(), drawn: nano(5), unfunded: nano(0) }]);
    }

    #[test]
    fn an_account_that_another_node_uses_too_is_compared_by_this_nodes_epochs() {
        let found = reconciled(|_, there, ledger| {
            (there.settled, there.balance, there.elsewhere) = (nano(55), nano(45), true);
            ledger.usage = nano(55);
        });
        assert_eq!(codes(&found), Vec::<&str>::new());
    }

    #[test]
    fn use_on_an_account_that_the_authority_does_not_know_is_a_difference() {
        let (here, ..) = agreed();
        let found = reconcile(&BTreeMap::from([(lab(), here)]), &BTreeMap::new());
        assert_eq!(codes(&found), ["unknown_account"]);
    }
}
