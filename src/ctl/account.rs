//! `meterctl account` and `meterctl accounts`.

mod pay;
mod policy;
mod text;

use std::path::Path;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, Failure, account_path, typed};
use super::exit::Exit;
use super::{Format, print, show};
use crate::domain::id::AccountId;
use crate::domain::ledger::{self, LedgerEntry};
use crate::domain::view::AccountView;
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
    /// One account.
    Show(ShowArguments),
    /// The accounts that you may see.
    List(Format),
    /// What was paid in and charged, newest first.
    Ledger(LedgerArguments),
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

pub(super) fn main(socket: &Path, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::List(format) => show(socket, "/v1/accounts", format, list_text),
        Command::Show(arguments) => show(socket, &account_path(arguments.account.as_str(), ""), arguments.format, account_text),
        Command::Ledger(arguments) => {
            let path = account_path(arguments.account.as_str(), &format!("/ledger?limit={}", arguments.limit));
            show(socket, &path, arguments.format, ledger_text)
        }
        Command::Create(arguments) => {
            let mut body = arguments.parts()?;
            body.insert("account".to_owned(), json!(arguments.account));
            let document = Client::new(socket)?.write("/v1/accounts", &Value::Object(body))?;
            print(&account_text(&typed(document)?));
            Ok(Exit::Done)
        }
        Command::Policy(arguments) => {
            let path = account_path(arguments.account.as_str(), "/policy");
            let document = Client::new(socket)?.write(&path, &Value::Object(arguments.parts()?))?;
            print(&account_text(&typed(document)?));
            Ok(Exit::Done)
        }
        Command::Topup(arguments) => pay::top_up(socket, arguments),
        Command::Confirm(arguments) => pay::settle(socket, &arguments, "completed"),
        Command::Fail(arguments) => pay::settle(socket, &arguments, "failed"),
        Command::Refund(arguments) => pay::refund(socket, arguments),
        Command::Correct(arguments) => pay::correct(socket, arguments),
        Command::Transfer(arguments) => pay::transfer(socket, arguments),
        Command::Verify(arguments) => pay::verify(socket, &arguments),
    }
}
