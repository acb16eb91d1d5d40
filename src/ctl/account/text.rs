//! Accounts and ledgers as people read them.

use super::{Accounts, Ledger, OneAccount};
use crate::ctl::quantity::show_length;
use crate::ctl::table::{Align, pairs, table};
use crate::domain::enforcement::Enforcement;
use crate::domain::ladder::{Then, Victims};
use crate::domain::ledger::{
    self, Alerts, Commitment, CommitmentPeriod, DetachedStorage, Direction, EntryKind, EntryStatus, Expiry, LedgerEntry, Lot, LotKey,
    Storage, StorageAtZero, Terms, Threshold, Verification,
};
use crate::domain::money::Credits;
use crate::domain::receipt::rfc3339;
use crate::domain::time::{Nanos, Wall};
use crate::domain::view::{AccountState, AccountView};
use crate::domain::wire::{AccountPolicy, OnExhaustion, StartPredicted, Unreachable};
use crate::node::status::state_name;

/// The accounts in columns.
pub(in crate::ctl) fn list_text(accounts: &Accounts) -> String {
    if accounts.accounts.is_empty() {
        return "no accounts that you may see\n".to_owned();
    }
    let headings = [
        ("ACCOUNT", Align::Left),
        ("AVAILABLE", Align::Right),
        ("HELD", Align::Right),
        ("CHARGED", Align::Right),
        ("HERE", Align::Left),
        ("IN HAND", Align::Right),
        ("PER HOUR", Align::Right),
        ("LASTS", Align::Right),
    ];
    let row = |account: &OneAccount| {
        let kept =
            |part: fn(&ledger::AccountView) -> Credits| account.authority.as_ref().map_or("?".to_owned(), |kept| part(kept).to_string());
        let here = |part: &dyn Fn(&AccountView) -> String| account.node.as_ref().map_or("-".to_owned(), part);
        vec![
            account.account.to_string(),
            kept(|kept| kept.available),
            kept(|kept| kept.held),
            kept(|kept| kept.settled),
            here(&|node| state_name(node.state).to_owned()),
            here(&|node| node.in_hand.to_string()),
            here(&|node| node.burn_per_hour.to_string()),
            here(&lasts),
        ]
    };
    table(&headings, &accounts.accounts.iter().map(row).collect::<Vec<_>>())
}

fn lasts(node: &AccountView) -> String {
    node.lasts_s.map_or("no end".to_owned(), |seconds| show_length(Nanos::from_secs(seconds)))
}

pub(super) fn account_text(account: &OneAccount) -> String {
    let mut lines = vec![("account", account.account.to_string())];
    if let Some(kept) = &account.authority {
        let shown = |credits: Credits| match &kept.terms.unit {
            Some(unit) => format!("{credits} ({})", unit.show(credits)),
            None => credits.to_string(),
        };
        lines.extend([
            ("available", shown(kept.available)),
            ("held by nodes", shown(kept.held)),
            ("free", shown(kept.free)),
            ("paid", shown(kept.paid)),
        ]);
        if kept.terms.commitment.is_some() || kept.committed.is_positive() {
            lines.push(("committed", shown(kept.committed)));
        }
        lines.extend([
            ("paid in", shown(kept.deposited)),
            ("charged", shown(kept.settled)),
            ("written off", shown(kept.written_off)),
            ("shortfall", shown(kept.shortfall)),
        ]);
        if kept.withdrawn.is_positive() {
            lines.push(("withdrawn", shown(kept.withdrawn)));
        }
        lines.extend(lots(kept));
        lines.push(("policy", policy_text(&kept.policy)));
        lines.extend(terms(kept));
    }
    if let Some(node) = &account.node {
        lines.extend([
            ("on this node", on_this_node(node)),
            ("  in hand", node.in_hand.to_string()),
            ("  drawn", node.spent.to_string()),
            ("  unfunded", node.unfunded.to_string()),
            ("  owed", node.owed.to_string()),
            ("  per hour", node.burn_per_hour.to_string()),
            ("  lasts", lasts(node)),
        ]);
        if let Some(balance) = &node.balance {
            lines.extend([("  free", balance.free.to_string()), ("  paid", balance.paid.to_string())]);
            if balance.committed.is_positive() {
                lines.push(("  committed", balance.committed.to_string()));
            }
            lines.extend(balance.reset.map(|reset| ("  next reset", rfc3339(reset))));
        }
    }
    pairs(&lines)
}

/// An account from which nothing is needed is no less funded than others, and may yet hold nothing.
fn on_this_node(node: &AccountView) -> String {
    let state = state_name(node.state);
    if node.state == AccountState::Funded && node.in_hand.is_zero() { format!("{state}: no job needs anything") } else { state.to_owned() }
}

fn policy_text(policy: &AccountPolicy) -> String {
    let grace = show_length(policy.grace);
    let at_zero = match policy.on_exhaustion {
        OnExhaustion::Freeze => "at zero, jobs are frozen until credit arrives".to_owned(),
        OnExhaustion::Stop => format!("at zero, jobs are frozen, then asked to end, and stand still if they have not after {grace}"),
        OnExhaustion::Terminate => format!("at zero, jobs are frozen, then terminated, and killed after {grace}"),
        OnExhaustion::Kill => "at zero, jobs are frozen, then killed".to_owned(),
        OnExhaustion::RefuseNew => "at zero, jobs run on, what they use is written off, and no other starts".to_owned(),
        OnExhaustion::AllowNegative => "at zero, jobs run on and others start, and what they use is written off".to_owned(),
    };
    let threshold =
        if policy.start_threshold.is_zero() { String::new() } else { format!("; no start below {} credits", policy.start_threshold) };
    let predicted = match policy.start_predicted {
        StartPredicted::Check => "; starts are measured against their time limit",
        StartPredicted::Ignore => "",
    };
    let funded = policy.start_funded.map_or(String::new(), |length| format!("; no start that leaves less than {}", show_length(length)));
    let silence = match policy.unreachable {
        Unreachable::Freeze => "",
        Unreachable::RunOn => "; while the authority is silent, jobs run on",
    };
    let before: Vec<String> = policy.warn_before.iter().map(show_length).collect();
    let warning = if before.is_empty() { "no warning".to_owned() } else { format!("warning {} before", before.join(" and ")) };
    let ttl = policy.freeze_ttl.map_or(String::new(), |ttl| {
        let then = if policy.then == Then::Kill { "killed" } else { "terminated" };
        format!("; frozen ones are {then} after {}", show_length(ttl))
    });
    let victims = match policy.victims {
        Victims::Together => String::new(),
        Victims::NewestFirst => format!("; the newest stops first, {} before", show_length(policy.victims_before)),
        Victims::OldestFirst => format!("; the oldest stops first, {} before", show_length(policy.victims_before)),
        Victims::DearestFirst => format!("; the dearest stops first, {} before", show_length(policy.victims_before)),
    };
    let most = if policy.enforcement == Enforcement::Enforce { String::new() } else { format!("; no further than {}", policy.enforcement) };
    format!("{at_zero}{ttl}{victims}; {warning}{threshold}{predicted}{funded}{silence}{most}")
}

/// What the balance is made of, where that is more than a free and a paid part.
fn lots(kept: &ledger::AccountView) -> Vec<(&'static str, String)> {
    let plain = |lot: &Lot| lot.key == LotKey::plain(lot.key.bucket);
    if kept.lots.iter().all(plain) {
        return Vec::new();
    }
    let line = |lot: &Lot| {
        let until = match lot.key.expires {
            Expiry::At(at) => format!(", until {}", rfc3339(at)),
            Expiry::Never => String::new(),
        };
        ("  then", format!("{} {}, priority {}{until}", lot.left, lot.key.bucket, lot.key.priority.0))
    };
    let mut lines: Vec<(&'static str, String)> = kept.lots.iter().map(line).collect();
    lines[0].0 = "spent first";
    lines
}

/// What the authority does for the account, and how far it has come with that.
fn terms(kept: &ledger::AccountView) -> Vec<(&'static str, String)> {
    let Terms { unit, topup_min, credit_lasts, verification, alerts, refill, allowance, storage, detached_storage, commitment } =
        &kept.terms;
    let mut lines = Vec::new();
    if let Some(unit) = unit {
        let are = if unit.credits_per_unit.is_one() { "1 credit is".to_owned() } else { format!("{} credits are", unit.credits_per_unit) };
        lines.push(("unit", format!("{are} 1 {}", unit.name)));
    }
    if topup_min.is_positive() {
        lines.push(("smallest top-up", topup_min.to_string()));
    }
    if let Some(lasts) = credit_lasts {
        lines.push(("credit lasts", show_length(*lasts)));
    }
    if *verification == Verification::Required {
        let since = |at| format!("since {}", rfc3339(at));
        lines.push(("verified", kept.verified.map_or("not yet: it may not spend".to_owned(), since)));
    }
    if let Some(allowance) = allowance {
        let next = kept.reset.map_or(String::new(), |reset| format!(", next at {}", rfc3339(reset)));
        lines.push(("allowance", format!("{} each month{next}", allowance.amount)));
    }
    if let Some(commitment) = commitment {
        lines.push(("commitment", commitment_text(commitment, kept.committed_until)));
    }
    if let Some(refill) = refill {
        lines.push(("refill", format!("{} as soon as less than {} is left", refill.amount, refill.below)));
    }
    if let Some(pending) = &kept.refill {
        lines.push(("  pending", format!("{} since {}, payment {}", pending.amount, rfc3339(pending.asked), pending.payment)));
    }
    if *alerts != Alerts::default() {
        let percents = alerts.percents.iter().map(|percent| Threshold::Percent(*percent));
        let all = percents.chain(alerts.below.iter().map(|below| Threshold::Below(*below)));
        lines.push(("alerts", all.map(threshold_text).collect::<Vec<_>>().join(", ")));
    }
    lines.extend(kept.alerted.iter().map(|given| ("  given", format!("{} at {}", threshold_text(given.threshold), rfc3339(given.at)))));
    if *storage == StorageAtZero::Detach {
        let costs = match detached_storage {
            DetachedStorage::Costs => "and still costs",
            DetachedStorage::Free => "and costs nothing then",
        };
        let now = match kept.storage {
            Storage::Attached => "attached",
            Storage::Detached => "detached",
        };
        lines.push(("storage", format!("{now}; at zero it is detached, {costs}")));
    }
    lines
}

/// Such as `1200 each month; what is left lapses at 2027-02-01T00:00:00.000Z; to 2028-01-01T00:00:00.000Z`.
fn commitment_text(commitment: &Commitment, runs_until: Option<Wall>) -> String {
    let Commitment { amount, period, day: _, starts, ends } = commitment;
    let each = match period {
        CommitmentPeriod::Monthly => " each month",
        CommitmentPeriod::Once => "",
    };
    let lapses = match (runs_until, starts) {
        (Some(until), _) => format!("; what is left lapses at {}", rfc3339(until)),
        (None, Some(starts)) => format!("; none runs now, from {} on", rfc3339(*starts)),
        (None, None) => "; none runs now".to_owned(),
    };
    let ends = ends.filter(|ends| Some(*ends) != runs_until).map_or(String::new(), |ends| format!("; to {}", rfc3339(ends)));
    format!("{amount}{each}{lapses}{ends}")
}

fn threshold_text(threshold: Threshold) -> String {
    match threshold {
        Threshold::Percent(percent) => format!("{percent} % left"),
        Threshold::Below(below) => format!("below {below}"),
    }
}

pub(super) fn ledger_text(ledger: &Ledger) -> String {
    if ledger.entries.is_empty() {
        return format!("account {} has no entries\n", ledger.account);
    }
    let commits = ledger.entries.iter().any(|entry| !entry.committed().is_zero());
    let mut headings = vec![
        ("CHANGED", Align::Left),
        ("WHAT", Align::Left),
        ("AMOUNT", Align::Right),
        ("FREE", Align::Right),
        ("PAID", Align::Right),
        ("STATE", Align::Left),
    ];
    if commits {
        headings.insert(5, ("COMMITTED", Align::Right));
    }
    let row = |entry: &LedgerEntry| {
        let state = match entry.status {
            EntryStatus::Accumulating => "accumulating",
            EntryStatus::Completed => "completed",
            EntryStatus::Pending => "pending",
            EntryStatus::Failed => "failed",
        };
        let amounts = [entry.amount, entry.free, entry.paid].map(|amount| amount.to_string());
        let [amount, free, paid] = amounts;
        let mut row = vec![rfc3339(entry.at), entry_text(&entry.kind), amount, free, paid, state.to_owned()];
        if commits {
            row.insert(5, entry.committed().to_string());
        }
        row
    };
    table(&headings, &ledger.entries.iter().map(row).collect::<Vec<_>>())
}

fn entry_text(kind: &EntryKind) -> String {
    let in_hour = |hour: u64| rfc3339(Wall(hour.saturating_mul(3_600_000)));
    match kind {
        EntryKind::Deposit { bucket, payment } => format!("deposit ({bucket}), payment {payment}"),
        EntryKind::Usage { hour, .. } => format!("usage in the hour from {}", in_hour(*hour)),
        EntryKind::WriteOff { hour, .. } => format!("written off in the hour from {}", in_hour(*hour)),
        EntryKind::Shortfall { hour, .. } => format!("shortfall in the hour from {}", in_hour(*hour)),
        EntryKind::OutcomeRefund { hour, .. } => format!("given back by outcome in the hour from {}", in_hour(*hour)),
        EntryKind::Mirrored { movement, .. } => format!("as the billing engine says, by {movement}"),
        EntryKind::Revoked { revocation, asked, part } => format!("revoked, {part} of {asked}, by {revocation}"),
        EntryKind::Refill { payment } => format!("refill, payment {payment}"),
        EntryKind::Refund { bucket, payment } => format!("refund ({bucket}), payment {payment}"),
        EntryKind::Correction { bucket, payment, direction } => {
            let way = match direction {
                Direction::Adds => "added",
                Direction::Takes => "taken",
            };
            format!("correction ({bucket}), {way}, payment {payment}")
        }
        EntryKind::Allowance { until } => format!("allowance until {}", rfc3339(*until)),
        EntryKind::Expired { bucket, .. } => format!("lapsed ({bucket})"),
        EntryKind::Commitment { until } => format!("commitment until {}", rfc3339(*until)),
        EntryKind::CommitmentLapsed { until, .. } => format!("lapsed of the commitment until {}", rfc3339(*until)),
        EntryKind::TransferOut { to, payment } => format!("moved to {to}, payment {payment}"),
        EntryKind::TransferIn { from, payment } => format!("moved from {from}, payment {payment}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::sample;

    fn account() -> OneAccount {
        let node = sample::view().accounts.remove(0);
        OneAccount { account: node.account.clone(), authority: Some(sample::ledger_account()), node: Some(node) }
    }

    #[test]
    fn an_account_is_shown_from_both_sides() {
        insta::assert_snapshot!(account_text(&account()));
    }

    #[test]
    fn an_account_with_nothing_in_hand_and_no_job_is_not_said_to_have_credit() {
        let mut account = account();
        let node = account.node.as_mut().unwrap();
        node.in_hand = Credits::ZERO;
        assert_eq!(on_this_node(node), "funded: no job needs anything");
        node.state = AccountState::Exhausted;
        assert_eq!(on_this_node(node), "exhausted");
    }

    #[test]
    fn what_the_authority_does_for_an_account_is_shown() {
        let account = OneAccount { account: "lab".parse().unwrap(), authority: Some(sample::tended_account()), node: None };
        insta::assert_snapshot!(account_text(&account));
    }

    #[test]
    fn accounts_stand_in_columns() {
        let elsewhere = OneAccount { account: "other".parse().unwrap(), authority: Some(sample::ledger_account()), node: None };
        insta::assert_snapshot!(list_text(&Accounts { accounts: vec![account(), elsewhere] }));
    }

    #[test]
    fn a_ledger_stands_in_columns() {
        let ledger = Ledger { account: "lab".parse().unwrap(), entries: sample::ledger_entries() };
        insta::assert_snapshot!(ledger_text(&ledger));
    }
}
