//! Credit that some nodes hold and do not need, while nothing is free and others ask in vain.

use super::account::{Account, EpochState};
use super::sizing::{HORIZON_OF_THE_LAST, Holding, used_in};
use crate::domain::id::NodeId;
use crate::domain::time::Mono;

/// Whom to tell to ask again, after a grant came out short: nodes that are thought to hold much more than they need. They hear that nothing
/// is free and return what they can spare. Raises the version if there are any: push it to them after the commit, at most once a second.
#[must_use]
pub fn recall(account: &mut Account, now: Mono) -> Vec<NodeId> {
    if account.available().is_positive() {
        return Vec::new();
    }
    let open = account.epochs.values().filter(|epoch| epoch.state == EpochState::Open);
    let nodes: Vec<NodeId> = open
        .filter(|epoch| {
            let holding = Holding { escrow: epoch.escrow(), burn_per_s: epoch.burn_per_s, age: now.since(epoch.heard_at) };
            let kept = used_in(epoch.burn_per_s, HORIZON_OF_THE_LAST);
            kept.plus(kept) < holding.left()
        })
        .map(|epoch| epoch.node.clone())
        .collect();
    if !nodes.is_empty() {
        account.version = account.version.saturating_add(1);
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::bucket::Bucket;
    use crate::domain::id::{AccountId, BootId, Epoch};
    use crate::domain::ledger::{ClosePolicy, Payment, PaymentState, Rules, answer, book};
    use crate::domain::money::Credits;
    use crate::domain::time::{Boot, Nanos, Now, Wall};
    use crate::domain::wire::{AccountPolicy, PROTOCOL, Request, RequestEntry, UNIT};

    fn now(secs: u64) -> Now {
        let ns = secs * 1_000_000_000;
        Now { mono: Mono(ns), boot: Boot(ns), wall: Wall(secs * 1_000) }
    }

    fn ask(account: &mut Account, node: u8, request: u64, burn: &str, at: Now) {
        let entry = RequestEntry {
            account: account.id.clone(),
            unit: UNIT.to_owned(),
            granted_seen: Credits::ZERO,
            returned: Credits::ZERO,
            spent: Credits::ZERO,
            unfunded: Credits::ZERO,
            owed: Credits::ZERO,
            burn_per_s: burn.parse().unwrap(),
            at_least: Credits::from_nano(1),
            validity: None,
            proof: None,
        };
        let (name, epoch) = (format!("node-{node}").parse().unwrap(), Epoch([node; 16]));
        let request = Request {
            protocol: PROTOCOL,
            node: name,
            epoch,
            boot: BootId([node; 16]),
            request,
            previous: Vec::new(),
            refunds: Vec::new(),
            entries: vec![entry.clone()],
            generation_seen: 0,
            history: None,
            gangs: Vec::new(),
        };
        let _answered = answer(account, &request, &entry, &Rules::of(ClosePolicy::AfterSilence(Nanos::from_secs(667))), at);
    }

    #[test]
    fn whoever_holds_much_more_than_he_needs_is_asked_once_nothing_is_free() {
        let id: AccountId = "a".parse().unwrap();
        let mut account = Account::new(id, AccountPolicy::default());
        let payment = Payment::deposit("p".parse().unwrap(), Bucket::Paid, "100".parse().unwrap());
        book(&mut account, &payment, PaymentState::Completed, None, now(0)).unwrap();
        ask(&mut account, 1, 1, "40", now(0)); // a job that has just begun: all that it may burn
        assert!(recall(&mut account, now(0).mono).is_empty(), "something is free");
        ask(&mut account, 1, 2, "0.1", now(11)); // … and what it turned out to burn
        for request in 1..20 {
            ask(&mut account, 2, request, "10", now(11));
        }
        assert!(!account.available().is_positive());
        let version = account.version;
        assert_eq!(recall(&mut account, now(11).mono), ["node-1".parse::<NodeId>().unwrap()], "the other needs what it holds");
        assert_eq!(account.version, version + 1);
    }
}
