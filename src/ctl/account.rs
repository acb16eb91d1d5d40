//! `meterctl account` and `meterctl accounts`.

mod pay;
mod policy;
mod text;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use super::authority::{Door, RevokeArguments};
use super::client::{Client, Failure, account_path, typed};
use super::exit::Exit;
use super::{Format, anchor, print, show};
use crate::domain::id::AccountId;
use crate::domain::ledger::{self, LedgerEntry};
use crate::domain::view::AccountView;
pub(super) use pay::made_payment;
use pay::{CorrectArguments, RefundArguments, SettleArguments, TopUpArguments, TransferArguments, VerifyArguments};
use policy::PolicyArguments;
pub(super) use text::list_text;
use text::{account_text, ledger_text};

/// What to do with an account.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Open an account, without credit.
    Create(PolicyArguments),
    /// Change what is to be done when an account is empty.
    Policy(PolicyArguments),
    /// Put credit into an account.
    Topup(TopUpArguments),
    /// A payment that was pending has come.
    Confirm(SettleArguments),
    /// A payment that was pending has failed.
    Fail(SettleArguments),
    /// Give credit back for use that was charged.
    Refund(RefundArguments),
    /// Put a balance right.
    Correct(CorrectArguments),
    /// Move credit to another account.
    Transfer(TransferArguments),
    /// Vouch for an account, where its policy asks for that before it may spend.
    Verify(VerifyArguments),
    /// Take credit back from an account; what nodes hold of it comes as they give it back.
    Revoke(RevokeArguments),
    /// One account.
    Show(ShowArguments),
    /// The accounts that you may see.
    List(Format),
    /// What was paid in and charged, newest first.
    Ledger(LedgerArguments),
    /// How far the nodes' journals went, as the authority keeps it: keep a copy elsewhere, for `meterctl verify --anchor`.
    Anchors(Format),
    /// How an authority's balances themselves stand: recovery after a restore, nodes that were copied, claims that nothing backs.
    Standing(Format),
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

pub(super) fn main(to: &Door, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::List(format) => show(to, "/v1/accounts", format, list_text),
        Command::Show(arguments) => show(to, &account_path(arguments.account.as_str(), ""), arguments.format, account_text),
        Command::Ledger(arguments) => {
            let path = account_path(arguments.account.as_str(), &format!("/ledger?limit={}", arguments.limit));
            show(to, &path, arguments.format, ledger_text)
        }
        Command::Anchors(format) => show(to, "/v1/anchors", format, anchor::text),
        Command::Standing(format) => show(to, "/v1/standing", format, super::authority::standing_text),
        Command::Create(arguments) => {
            let mut body = arguments.parts()?;
            body.insert("account".to_owned(), json!(arguments.account));
            let document = Client::new(to)?.write("/v1/accounts", &Value::Object(body))?;
            print(&account_text(&typed(document)?));
            Ok(Exit::Done)
        }
        Command::Policy(arguments) => {
            let path = account_path(arguments.account.as_str(), "/policy");
            let document = Client::new(to)?.write(&path, &Value::Object(arguments.parts()?))?;
            print(&account_text(&typed(document)?));
            Ok(Exit::Done)
        }
        Command::Revoke(arguments) => super::authority::revoke(to, &arguments),
        Command::Topup(arguments) => pay::top_up(to, arguments),
        Command::Confirm(arguments) => pay::settle(to, &arguments, "completed"),
        Command::Fail(arguments) => pay::settle(to, &arguments, "failed"),
        Command::Refund(arguments) => pay::refund(to, arguments),
        Command::Correct(arguments) => pay::correct(to, arguments),
        Command::Transfer(arguments) => pay::transfer(to, arguments),
        Command::Verify(arguments) => pay::verify(to, &arguments),
    }
}
