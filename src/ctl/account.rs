//! `meterctl account` and `meterctl accounts`.

use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::authority::{Door, RevokeArguments};
use super::client::{Client, Failure, account_path, typed};
use super::exit::Exit;
use super::quantity::{length, length_or_none, show_length};
use super::table::{Align, pairs, table};
use super::{Format, print, print_as, show};
use crate::domain::bucket::Bucket;
use crate::domain::enforcement::Enforcement;
use crate::domain::id::{AccountId, Epoch, PaymentId};
use crate::domain::ladder::{Then, Victims};
use crate::domain::ledger::{self, EntryKind, EntryStatus, LedgerEntry};
use crate::domain::money::Credits;
use crate::domain::receipt::rfc3339;
use crate::domain::request::TopUp;
use crate::domain::time::{Nanos, Wall};
use crate::domain::view::AccountView;
use crate::domain::wire::{AccountPolicy, OnExhaustion, StartPredicted};
use crate::node::status::state_name;

/// What to do with an account.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Open an account, without credit.
    Create(PolicyArguments),
    /// Change what is to be done when an account is empty.
    Policy(PolicyArguments),
    /// Put credit into an account.
    Topup(TopUpArguments),
    /// Take credit back from an account; what nodes hold of it comes as they give it back.
    Revoke(RevokeArguments),
    /// One account.
    Show(ShowArguments),
    /// The accounts that you may see.
    List(Format),
    /// What was paid in and charged, newest first.
    Ledger(LedgerArguments),
}

/// An account, and those parts of its policy that are given.
#[derive(Debug, Args)]
pub(super) struct PolicyArguments {
    /// The account.
    account: AccountId,
    /// What happens to its jobs when nothing is left.
    #[arg(long, value_enum)]
    on_exhaustion: Option<Exhaustion>,
    /// Between SIGTERM and SIGKILL.
    #[arg(long, value_parser = length, value_name = "LENGTH")]
    grace: Option<Nanos>,
    /// How long before the expected end warnings come: up to four lengths, with commas between.
    #[arg(long, value_parser = length, value_delimiter = ',', value_name = "LENGTH,…")]
    warn_before: Option<Vec<Nanos>>,
    /// Starts are refused below this much credit.
    #[arg(long, value_name = "CREDITS")]
    start_threshold: Option<Credits>,
    /// Are starts refused whose time limit would use more than there is?
    #[arg(long, value_enum)]
    start_predicted: Option<Predicted>,
    /// How far the agent goes against its jobs, where the node goes further.
    #[arg(long, value_enum)]
    enforcement: Option<Most>,
    /// How long its jobs stand still at most; 0s: for as long as it takes.
    #[arg(long, value_parser = length_or_none, value_name = "LENGTH")]
    freeze_ttl: Option<Nanos>,
    /// What comes after that.
    #[arg(long, value_enum)]
    then: Option<Last>,
    /// Which jobs stop first while credit runs short.
    #[arg(long, value_enum)]
    victims: Option<First>,
    /// From when on.
    #[arg(long, value_parser = length, value_name = "LENGTH")]
    victims_before: Option<Nanos>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Most {
    /// Record what would have been done.
    Observe,
    /// Warn as well.
    Notify,
    /// Freeze, terminate and kill as well.
    Enforce,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Last {
    /// SIGTERM, and SIGKILL after the grace.
    Terminate,
    /// SIGKILL.
    Kill,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
#[expect(clippy::enum_variant_names, reason = "the words of the configuration")]
enum First {
    /// All at zero.
    Together,
    /// The last one started.
    NewestFirst,
    /// The first one started.
    OldestFirst,
    /// The one that costs the most.
    DearestFirst,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Exhaustion {
    /// Frozen in place until credit arrives.
    Freeze,
    /// Frozen; then SIGTERM, and SIGKILL after the grace.
    Terminate,
    /// Frozen; then killed.
    Kill,
    /// They run on; what they use is written off.
    AllowNegative,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Predicted {
    /// They are.
    Check,
    /// They are not.
    Ignore,
}

/// A payment.
#[derive(Debug, Args)]
pub(super) struct TopUpArguments {
    /// The account.
    account: AccountId,
    /// How much, as a decimal number.
    amount: Credits,
    /// Into which part of the balance; free credit is used first.
    #[arg(long, value_enum, default_value = "paid")]
    bucket: Part,
    /// The payment's name: a repeated one is booked once. Without it a name is made and printed.
    #[arg(long)]
    payment: Option<PaymentId>,
    #[command(flatten)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    /// Given away.
    Free,
    /// Paid for.
    Paid,
}

/// One account.
#[derive(Debug, Args)]
pub(super) struct ShowArguments {
    /// The account.
    account: AccountId,
    #[command(flatten)]
    format: Format,
}

/// An account's ledger.
#[derive(Debug, Args)]
pub(super) struct LedgerArguments {
    /// The account.
    account: AccountId,
    /// At most so many lines.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    #[command(flatten)]
    format: Format,
}

/// One account: as the authority keeps it, and as this node sees it.
#[derive(Debug, Deserialize)]
pub(super) struct OneAccount {
    account: AccountId,
    authority: Option<ledger::AccountView>,
    node: Option<AccountView>,
}

/// `GET /v1/accounts`.
#[derive(Debug, Deserialize)]
pub(super) struct Accounts {
    accounts: Vec<OneAccount>,
}

/// `GET /v1/accounts/{account}/ledger`.
#[derive(Debug, Deserialize)]
struct Ledger {
    account: AccountId,
    entries: Vec<LedgerEntry>,
}

/// The word that stands for it on the command line and in a body alike.
fn word<T: ValueEnum>(value: &T) -> Value {
    value.to_possible_value().map_or(Value::Null, |value| json!(value.get_name()))
}

impl PolicyArguments {
    /// What is given, as the parts of a body.
    fn parts(&self) -> Map<String, Value> {
        let on_exhaustion = self.on_exhaustion.map(|on| match on {
            Exhaustion::Freeze => OnExhaustion::Freeze,
            Exhaustion::Terminate => OnExhaustion::Terminate,
            Exhaustion::Kill => OnExhaustion::Kill,
            Exhaustion::AllowNegative => OnExhaustion::AllowNegative,
        });
        let predicted = self.start_predicted.map(|predicted| match predicted {
            Predicted::Check => StartPredicted::Check,
            Predicted::Ignore => StartPredicted::Ignore,
        });
        let seconds = |length: Nanos| json!(length.0 / 1_000_000_000);
        let parts = [
            ("on_exhaustion", on_exhaustion.map(|on| json!(on))),
            ("grace_s", self.grace.map(seconds)),
            ("warn_before_s", self.warn_before.as_ref().map(|lengths| lengths.iter().copied().map(seconds).collect())),
            ("enforcement", self.enforcement.as_ref().map(word)),
            ("freeze_ttl_s", self.freeze_ttl.map(seconds)),
            ("then", self.then.as_ref().map(word)),
            ("victims", self.victims.as_ref().map(word)),
            ("victims_before_s", self.victims_before.map(seconds)),
            ("start_threshold", self.start_threshold.map(|amount| json!(amount))),
            ("start_predicted", predicted.map(|predicted| json!(predicted))),
        ];
        parts.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

pub(super) fn main(to: &Door, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::List(format) => show(to, "/v1/accounts", format, list_text),
        Command::Show(arguments) => show(to, &account_path(arguments.account.as_str(), ""), arguments.format, account_text),
        Command::Ledger(arguments) => {
            let path = account_path(arguments.account.as_str(), &format!("/ledger?limit={}", arguments.limit));
            show(to, &path, arguments.format, ledger_text)
        }
        Command::Create(arguments) => {
            let mut body = arguments.parts();
            body.insert("account".to_owned(), json!(arguments.account));
            let document = Client::new(to)?.write("/v1/accounts", &Value::Object(body))?;
            print(&account_text(&typed(document)?));
            Ok(Exit::Done)
        }
        Command::Policy(arguments) => {
            let path = account_path(arguments.account.as_str(), "/policy");
            let document = Client::new(to)?.write(&path, &Value::Object(arguments.parts()))?;
            print(&account_text(&typed(document)?));
            Ok(Exit::Done)
        }
        Command::Revoke(arguments) => super::authority::revoke(to, &arguments),
        Command::Topup(arguments) => top_up(to, arguments),
    }
}

fn top_up(to: &Door, arguments: TopUpArguments) -> Result<Exit, Failure> {
    // Named here, not by the agent: a call that is lost half way can then be made again.
    let payment = match arguments.payment {
        Some(payment) => payment,
        None => made_payment().ok_or_else(|| Failure::other("no name can be made for the payment: give one with --payment"))?,
    };
    let bucket = match arguments.bucket {
        Part::Free => Bucket::Free,
        Part::Paid => Bucket::Paid,
    };
    let body = TopUp { amount: arguments.amount, bucket, payment: Some(payment.clone()) }.to_json();
    let path = account_path(arguments.account.as_str(), "/topup");
    let answer = Client::new(to)?.write(&path, &body).map_err(|failure| {
        if failure.is_passing() {
            Failure::Other(format!("{failure}\nwhether it is booked is not known: make the same call with --payment {payment}"))
        } else {
            failure
        }
    })?;
    print_as(&answer, arguments.format, |account: &OneAccount| {
        format!("{} credits are booked as payment {payment}\n{}", arguments.amount, account_text(account))
    })
}

pub(super) fn made_payment() -> Option<PaymentId> {
    let mut bytes = [0_u8; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    (filled == Ok(bytes.len())).then(|| format!("meterctl-{}", Epoch(bytes)).parse().ok())?
}

/// The accounts in columns.
pub(super) fn list_text(accounts: &Accounts) -> String {
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

fn account_text(account: &OneAccount) -> String {
    let mut lines = vec![("account", account.account.to_string())];
    if let Some(kept) = &account.authority {
        lines.extend([
            ("available", kept.available.to_string()),
            ("held by nodes", kept.held.to_string()),
            ("free", kept.free.to_string()),
            ("paid", kept.paid.to_string()),
            ("paid in", kept.deposited.to_string()),
            ("charged", kept.settled.to_string()),
            ("written off", kept.written_off.to_string()),
            ("shortfall", kept.shortfall.to_string()),
            ("policy", policy_text(&kept.policy)),
        ]);
    }
    if let Some(kept) = account.authority.as_ref().filter(|kept| kept.revoked.is_positive() || kept.revoke_pending.is_positive()) {
        lines.extend([("revoked", kept.revoked.to_string()), ("to be revoked", kept.revoke_pending.to_string())]);
    }
    if let Some(node) = &account.node {
        lines.extend([
            ("on this node", state_name(node.state).to_owned()),
            ("  in hand", node.in_hand.to_string()),
            ("  drawn", node.spent.to_string()),
            ("  unfunded", node.unfunded.to_string()),
            ("  owed", node.owed.to_string()),
            ("  per hour", node.burn_per_hour.to_string()),
            ("  lasts", lasts(node)),
        ]);
    }
    pairs(&lines)
}

fn policy_text(policy: &AccountPolicy) -> String {
    let grace = show_length(policy.grace);
    let at_zero = match policy.on_exhaustion {
        OnExhaustion::Freeze => "at zero, jobs are frozen until credit arrives".to_owned(),
        OnExhaustion::Terminate => format!("at zero, jobs are frozen, then terminated, and killed after {grace}"),
        OnExhaustion::Kill => "at zero, jobs are frozen, then killed".to_owned(),
        OnExhaustion::AllowNegative => "at zero, jobs run on and what they use is written off".to_owned(),
    };
    let threshold =
        if policy.start_threshold.is_zero() { String::new() } else { format!("; no start below {} credits", policy.start_threshold) };
    let predicted = match policy.start_predicted {
        StartPredicted::Check => "; starts are measured against their time limit",
        StartPredicted::Ignore => "",
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
    format!("{at_zero}{ttl}{victims}; {warning}{threshold}{predicted}{most}")
}

fn ledger_text(ledger: &Ledger) -> String {
    if ledger.entries.is_empty() {
        return format!("account {} has no entries\n", ledger.account);
    }
    let headings = [
        ("CHANGED", Align::Left),
        ("WHAT", Align::Left),
        ("AMOUNT", Align::Right),
        ("FREE", Align::Right),
        ("PAID", Align::Right),
        ("STATE", Align::Left),
    ];
    let row = |entry: &LedgerEntry| {
        let state = match entry.status {
            EntryStatus::Accumulating => "grows",
            EntryStatus::Completed => "stands",
        };
        let amounts = [entry.amount, entry.free, entry.paid].map(|amount| amount.to_string());
        let [amount, free, paid] = amounts;
        vec![rfc3339(entry.at), entry_text(&entry.kind), amount, free, paid, state.to_owned()]
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
        EntryKind::Revoked { revocation, asked, part } => format!("revoked, {part} of {asked}, by {revocation}"),
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
