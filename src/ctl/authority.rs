//! The way to an authority for a fleet, for whoever keeps its accounts.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::client::{Client, Failure, Reach, account_path};
use super::exit::Exit;
use super::{account, print};
use crate::authority::store::standing::{ForkedEpoch, StandingView, UnbackedClaim};
use crate::domain::id::{AccountId, PaymentId};
use crate::domain::money::Credits;
use crate::domain::receipt::rfc3339;
use crate::node::upstream::token;
use crate::tls;

/// Longer than the authority may take over any answer.
const WITHIN: Duration = Duration::from_secs(12);

/// An authority over the network, instead of the agent on this machine.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "An authority over the network")]
pub(super) struct Remote {
    /// Speak to this authority, such as `https://authority.example.org:8443`, and not to the agent here.
    #[arg(long, global = true, value_name = "URL", env = "METER_AUTHORITY", requires = "ca")]
    authority: Option<String>,
    /// Whose certificates are believed to be the authority's.
    #[arg(long, global = true, value_name = "FILE", env = "METER_AUTHORITY_CA")]
    ca: Option<PathBuf>,
    /// Your certificate, which names your role.
    #[arg(long, global = true, value_name = "FILE", env = "METER_AUTHORITY_CERT", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, global = true, value_name = "FILE", env = "METER_AUTHORITY_KEY", requires = "cert")]
    key: Option<PathBuf>,
    /// A file with your token, instead of a certificate.
    #[arg(long, global = true, value_name = "FILE", env = "METER_AUTHORITY_TOKEN_FILE", conflicts_with = "cert")]
    token_file: Option<PathBuf>,
}

/// `meterctl account`, and whose accounts are meant.
#[derive(Debug, Args)]
pub(super) struct AccountArguments {
    #[command(flatten)]
    pub(super) remote: Remote,
    #[command(subcommand)]
    pub(super) command: account::Command,
}

/// Who keeps the accounts that are meant.
#[derive(Clone, Debug)]
pub(super) enum Door {
    /// The agent behind this socket.
    Agent(PathBuf),
    /// An authority over the network.
    Authority(Remote),
}

impl Reach for Door {
    fn client(&self) -> Result<Client, Failure> {
        match self {
            Door::Agent(socket) => socket.client(),
            Door::Authority(remote) => remote.open(),
        }
    }
}

/// A revocation.
#[derive(Debug, Args)]
pub(super) struct RevokeArguments {
    /// The account.
    account: AccountId,
    /// How much, as a decimal number; left out: all that there is.
    amount: Option<Credits>,
    /// The revocation's name: a repeated one is made once. Without it a name is made and printed.
    #[arg(long)]
    revocation: Option<PaymentId>,
}

/// Takes credit back.
pub(super) fn revoke(to: &Door, arguments: &RevokeArguments) -> Result<Exit, Failure> {
    let made = || account::made_payment().ok_or_else(|| Failure::other("no name can be made: give one with --revocation"));
    let name = arguments.revocation.clone().map_or_else(made, Ok)?;
    let mut body = json!({ "revocation": name });
    if let Some(amount) = arguments.amount {
        body["amount"] = json!(amount);
    }
    let answer = Client::new(to)?.write(&account_path(arguments.account.as_str(), "/revoke"), &body)?;
    let kept = &answer["authority"];
    let amount = |key: &str| kept[key].as_str().unwrap_or("?").to_owned();
    let (revoked, pending) = (amount("revoked"), amount("revoke_pending"));
    print(&format!("revocation {name}: {revoked} revoked of account {} in all, {pending} to come from nodes\n", arguments.account));
    Ok(Exit::Done)
}

/// How the balances stand, for people.
pub(super) fn standing_text(standing: &StandingView) -> String {
    let mut text = match standing.recovers_for_s {
        Some(left) => format!("recovers: put back from a copy, nothing is granted for {left} s yet\n"),
        None => "grants: nothing is recovering\n".to_owned(),
    };
    let _ = writeln!(text, "generation {}", standing.generation);
    for ForkedEpoch { node, epoch, since } in &standing.forked {
        let _ = writeln!(text, "forked: several speak as node {node} under epoch {epoch}, seen {}", rfc3339(*since));
    }
    for UnbackedClaim { account, node, epoch, amount } in &standing.unbacked {
        let _ = writeln!(text, "unbacked: node {node} holds {amount} credits of account {account} under epoch {epoch} that were forgotten");
    }
    text
}

impl Remote {
    /// The authority, where one is named; else the agent.
    pub(super) fn door(&self, socket: PathBuf) -> Door {
        if self.authority.is_some() { Door::Authority(self.clone()) } else { Door::Agent(socket) }
    }

    fn open(&self) -> Result<Client, Failure> {
        let (Some(url), Some(ca)) = (&self.authority, &self.ca) else {
            return Err(Failure::other("--authority needs --ca"));
        };
        if !url.starts_with("https://") {
            return Err(Failure::Other(format!("--authority: {url:?} does not begin with https://")));
        }
        let own = self.cert.as_deref().zip(self.key.as_deref());
        let mut headers = reqwest::header::HeaderMap::new();
        if let Some(path) = &self.token_file {
            headers.insert(reqwest::header::AUTHORIZATION, token(path).map_err(Failure::other)?);
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client(ca, own).map_err(Failure::other)?)
            .https_only(true)
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .default_headers(headers)
            .timeout(WITHIN)
            .build()
            .map_err(Failure::other)?;
        Client::over(url.trim_end_matches('/'), http)
    }
}
