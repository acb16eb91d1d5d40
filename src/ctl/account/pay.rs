//! Credit that comes or goes otherwise than by use.

use clap::{Args, ValueEnum};
use serde_json::json;

use super::OneAccount;
use super::text::account_text;
use crate::ctl::authority::Door;
use crate::ctl::client::{Client, Failure, account_path};
use crate::ctl::exit::Exit;
use crate::ctl::{Format, print_as};
use crate::domain::bucket::Bucket;
use crate::domain::id::{AccountId, Epoch, PaymentId};
use crate::domain::ledger::{Direction, Expiry, PaymentState, Priority, Purpose, UnitName};
use crate::domain::money::{Credits, Decimal};
use crate::domain::request::{Amount, Pay};
use crate::domain::time::Wall;
use crate::node::local_api::operation::percent_encoded;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    /// Given away.
    Free,
    /// Paid for.
    Paid,
}

impl Part {
    fn bucket(self) -> Bucket {
        match self {
            Part::Free => Bucket::Free,
            Part::Paid => Bucket::Paid,
        }
    }
}

/// A deposit.
#[derive(Debug, Args)]
pub(in crate::ctl) struct TopUpArguments {
    /// The account.
    account: AccountId,
    /// How much, as a decimal number: credits, or with --unit so much of that.
    amount: Decimal,
    /// The unit of the amount; it must be the account's own.
    #[arg(long)]
    unit: Option<UnitName>,
    /// Into which part of the balance; free credit is used first.
    #[arg(long, value_enum, default_value = "paid")]
    bucket: Part,
    /// Which credit of one bucket is used first: the smaller number.
    #[arg(long, default_value_t = Priority::default().0)]
    priority: u8,
    /// Until when it may be used, such as 2027-01-01T00:00:00Z; for ever, if that is not said.
    #[arg(long, value_parser = instant, value_name = "INSTANT")]
    expires: Option<Wall>,
    /// It is announced and not there yet: `confirm` or `fail` says later what became of it.
    #[arg(long)]
    pending: bool,
    #[command(flatten)]
    named: Named,
}

/// The name and the form of an act.
#[derive(Debug, Args)]
struct Named {
    /// The payment's name: a repeated one is booked once. Without it a name is made and printed.
    #[arg(long)]
    payment: Option<PaymentId>,
    #[command(flatten)]
    format: Format,
}

/// Credit that is given back.
#[derive(Debug, Args)]
pub(in crate::ctl) struct RefundArguments {
    /// The account.
    account: AccountId,
    /// How many credits.
    amount: Credits,
    /// Into which part of the balance.
    #[arg(long, value_enum, default_value = "paid")]
    bucket: Part,
    #[command(flatten)]
    named: Named,
}

/// A correction.
#[derive(Debug, Args)]
pub(in crate::ctl) struct CorrectArguments {
    /// The account.
    account: AccountId,
    /// Is credit added or taken?
    #[arg(value_enum)]
    direction: Way,
    /// How many credits.
    amount: Credits,
    /// In which part of the balance.
    #[arg(long, value_enum, default_value = "paid")]
    bucket: Part,
    #[command(flatten)]
    named: Named,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Way {
    /// Credit is added.
    Add,
    /// Credit that no node holds is taken.
    Take,
}

/// Credit that moves.
#[derive(Debug, Args)]
pub(in crate::ctl) struct TransferArguments {
    /// From this account.
    from: AccountId,
    /// To this one.
    to: AccountId,
    /// How many credits, with their dates and priorities.
    amount: Credits,
    /// Of which part of the balance.
    #[arg(long, value_enum, default_value = "paid")]
    bucket: Part,
    #[command(flatten)]
    named: Named,
}

/// A payment that was pending.
#[derive(Debug, Args)]
pub(in crate::ctl) struct SettleArguments {
    /// The account.
    account: AccountId,
    /// The payment's name, as the ledger shows it.
    payment: PaymentId,
    #[command(flatten)]
    format: Format,
}

/// An account that may spend.
#[derive(Debug, Args)]
pub(in crate::ctl) struct VerifyArguments {
    /// The account.
    account: AccountId,
    /// Nobody vouches for it any more: nothing more is granted to it.
    #[arg(long)]
    revoke: bool,
    #[command(flatten)]
    format: Format,
}

fn instant(text: &str) -> Result<Wall, String> {
    let at: jiff::Timestamp = text.parse().map_err(|_| "not an instant such as 2027-01-01T00:00:00Z".to_owned())?;
    u64::try_from(at.as_millisecond()).map(Wall).map_err(|_| "before 1970".to_owned())
}

pub(super) fn top_up(to: &Door, arguments: TopUpArguments) -> Result<Exit, Failure> {
    let amount = match arguments.unit {
        Some(unit) => Amount::InUnit { amount: arguments.amount, unit },
        None => Amount::Credits(arguments.amount.to_string().parse().map_err(|error| Failure::other(format!("{error}")))?),
    };
    let pay = Pay {
        purpose: Purpose::Deposit,
        amount,
        bucket: arguments.bucket.bucket(),
        payment: None,
        priority: Priority(arguments.priority),
        expires: Expiry::from(arguments.expires),
        state: if arguments.pending { PaymentState::Pending } else { PaymentState::Completed },
    };
    let done = if arguments.pending { "announced" } else { "booked" };
    send(to, &arguments.account, "/topup", pay, arguments.named, done)
}

pub(super) fn refund(to: &Door, arguments: RefundArguments) -> Result<Exit, Failure> {
    let pay = Pay { purpose: Purpose::Refund, ..Pay::deposit(arguments.amount, arguments.bucket.bucket(), None) };
    send(to, &arguments.account, "/payments", pay, arguments.named, "given back")
}

pub(super) fn correct(to: &Door, arguments: CorrectArguments) -> Result<Exit, Failure> {
    let (direction, done) = match arguments.direction {
        Way::Add => (Direction::Adds, "added"),
        Way::Take => (Direction::Takes, "taken"),
    };
    let pay = Pay { purpose: Purpose::Correction(direction), ..Pay::deposit(arguments.amount, arguments.bucket.bucket(), None) };
    send(to, &arguments.account, "/payments", pay, arguments.named, done)
}

pub(super) fn transfer(to: &Door, arguments: TransferArguments) -> Result<Exit, Failure> {
    let pay = Pay { purpose: Purpose::Transfer(arguments.to), ..Pay::deposit(arguments.amount, arguments.bucket.bucket(), None) };
    send(to, &arguments.from, "/payments", pay, arguments.named, "moved")
}

fn send(to: &Door, account: &AccountId, path: &str, pay: Pay, named: Named, done: &str) -> Result<Exit, Failure> {
    // Named here, not by the agent: a call that is lost half way can then be made again.
    let payment = match named.payment {
        Some(payment) => payment,
        None => made_payment().ok_or_else(|| Failure::other("no name can be made for the payment: give one with --payment"))?,
    };
    let amount = match &pay.amount {
        Amount::Credits(credits) => format!("{credits} credits are"),
        Amount::InUnit { amount, unit } => format!("{amount} {unit} are"),
    };
    let body = Pay { payment: Some(payment.clone()), ..pay }.to_json();
    let answer = Client::new(to)?.write(&account_path(account.as_str(), path), &body).map_err(|failure| {
        if failure.is_passing() {
            Failure::Other(format!("{failure}\nwhether it is booked is not known: make the same call with --payment {payment}"))
        } else {
            failure
        }
    })?;
    print_as(&answer, named.format, |account: &OneAccount| format!("{amount} {done} as payment {payment}\n{}", account_text(account)))
}

pub(super) fn settle(to: &Door, arguments: &SettleArguments, state: &str) -> Result<Exit, Failure> {
    let payment = percent_encoded(arguments.payment.as_str());
    let path = account_path(arguments.account.as_str(), &format!("/payments/{payment}"));
    let answer = Client::new(to)?.write(&path, &json!({ "state": state }))?;
    print_as(&answer, arguments.format, |account: &OneAccount| {
        format!("payment {} is {state}\n{}", arguments.payment, account_text(account))
    })
}

pub(super) fn verify(to: &Door, arguments: &VerifyArguments) -> Result<Exit, Failure> {
    let path = account_path(arguments.account.as_str(), "/verification");
    let answer = Client::new(to)?.write(&path, &json!({ "vouched": if arguments.revoke { "no" } else { "yes" } }))?;
    print_as(&answer, arguments.format, account_text)
}

pub(in crate::ctl) fn made_payment() -> Option<PaymentId> {
    let mut bytes = [0_u8; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    (filled == Ok(bytes.len())).then(|| format!("meterctl-{}", Epoch(bytes)).parse().ok())?
}
