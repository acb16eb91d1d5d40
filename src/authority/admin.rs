//! What people and programs ask: accounts, credit, policies, ledger, audit log. Every change stands in the audit log before it is made.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::embedded::Embedded;
use super::identity::{Named, Role};
use super::reply::Reply;
use super::routes::RevokeBody;
use super::server::{Shared, blocking};
use super::store::{Done, Refusal};
use crate::domain::id::{AccountId, Epoch, PaymentId};
use crate::domain::ledger::AccountView;
use crate::domain::request::{CreateAccount, Pay};
use crate::node::clock;

/// Who asks, and from where.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) named: Named,
    pub(super) from: String,
}

impl Asker {
    /// May they do what takes at least this role?
    pub(super) fn needs(&self, least: Role) -> Result<(), Reply> {
        match &self.named {
            Named::Person { role, .. } if least <= *role => Ok(()),
            named => {
                let message = format!("{named} may not do this: it takes the role {}", least.name());
                Err(Reply::refuse("not_permitted", message, "another certificate or token"))
            }
        }
    }
}

fn document(view: &AccountView) -> Value {
    json!({ "account": view.account, "authority": view, "node": null })
}

fn made(done: Done, document: Value) -> Reply {
    match done {
        Done::Now => Reply::Created(document),
        Done::Before => Reply::Document(document),
    }
}

impl Shared {
    /// `GET /v1/anchors`.
    pub(super) async fn anchors(self: &Arc<Shared>) -> Result<Reply, Reply> {
        let anchors = self.look(Embedded::anchors).await?;
        Ok(Reply::Document(json!({ "anchors": anchors })))
    }

    /// `GET /v1/standing`.
    pub(super) async fn standing(self: &Arc<Shared>) -> Result<Reply, Reply> {
        Ok(Reply::Document(json!(self.look(Embedded::standing).await?)))
    }

    async fn look<T: Send + 'static>(
        self: &Arc<Shared>,
        look: impl FnOnce(&Embedded) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Reply> {
        let shared = Arc::clone(self);
        blocking(move || look(&shared.authority)).await?.map_err(Reply::from)
    }

    /// Does it, with a line in the audit log before and one after.
    async fn change<T: Send + 'static>(
        self: &Arc<Shared>,
        asker: &Asker,
        what: &'static str,
        body: Value,
        act: impl FnOnce(&Embedded) -> Result<(T, Done), Refusal> + Send + 'static,
    ) -> Result<(T, Done), Reply> {
        let (shared, by, from) = (Arc::clone(self), asker.named.to_string(), asker.from.clone());
        let done = blocking(move || {
            let wish = shared.audit.wish(clock::now().wall, &by, &from, what, &body).map_err(|error| {
                tracing::error!(event = "no_audit", %error);
                Reply::refuse("no_audit", "the audit log cannot be written, so nothing is changed", "see the log of meter-authority")
            })?;
            let done = act(&shared.authority);
            let outcome = match &done {
                Ok((_, Done::Now)) => "done",
                Ok((_, Done::Before)) => "before",
                Err(refusal) => refusal.code(),
            };
            if let Err(error) = shared.audit.outcome(&wish, clock::now().wall, outcome) {
                tracing::error!(event = "no_audit", %error, "what was done is done, and the ledger shows it");
            }
            tracing::info!(event = "change", what, %by, %from, outcome);
            done.map_err(Reply::from)
        });
        done.await?
    }

    pub(super) async fn accounts(self: &Arc<Shared>) -> Result<Reply, Reply> {
        let all = self.look(Embedded::list).await?;
        Ok(Reply::Document(json!({ "accounts": all.iter().map(document).collect::<Vec<Value>>() })))
    }

    pub(super) async fn account(self: &Arc<Shared>, account: AccountId) -> Result<Reply, Reply> {
        let view = self.look(move |authority| authority.show(account)).await?;
        Ok(Reply::Document(document(&view)))
    }

    pub(super) async fn ledger(self: &Arc<Shared>, account: AccountId, limit: u32) -> Result<Reply, Reply> {
        let wanted = account.clone();
        let entries = self.look(move |authority| authority.ledger(wanted, limit)).await?;
        Ok(Reply::Document(json!({ "account": account, "entries": entries })))
    }

    pub(super) async fn create_account(self: &Arc<Shared>, asker: &Asker, body: &str) -> Result<Reply, Reply> {
        let create = CreateAccount::parse(body)?;
        let act = move |authority: &Embedded| authority.create_account(create.account, create.policy, create.terms);
        let (view, done) = self.change(asker, "create_account", said(body), act).await?;
        Ok(made(done, document(&view)))
    }

    /// Changes those parts of the policy that the body names.
    pub(super) async fn set_policy(self: &Arc<Shared>, asker: &Asker, account: AccountId, body: &str) -> Result<Reply, Reply> {
        let changes: Map<String, Value> = serde_json::from_str(body)
            .map_err(|error| Reply::refuse("malformed_body", format!("not an object: {error}"), "send JSON such as {\"grace_s\": 30}"))?;
        let wanted = account.clone();
        let before = self.look(move |authority| authority.show(wanted)).await?;
        let mut whole = CreateAccount { account: account.clone(), policy: before.policy, terms: before.terms }.to_json();
        changes.into_iter().for_each(|(key, value)| whole[key] = value);
        whole["account"] = json!(account);
        let CreateAccount { policy, terms, .. } = CreateAccount::parse(&whole.to_string())?;
        let act = move |authority: &Embedded| authority.set_policy(account, policy, terms);
        let (view, _) = self.change(asker, "policy", whole, act).await?;
        Ok(Reply::Document(document(&view)))
    }

    pub(super) async fn top_up(self: &Arc<Shared>, asker: &Asker, account: AccountId, body: &str) -> Result<Reply, Reply> {
        let pay = Pay::parse_deposit(body)?;
        let payment = pay.payment.clone().map_or_else(fresh_payment, Ok)?;
        let mut written = said(body);
        written["account"] = json!(account);
        written["payment"] = json!(payment);
        let named = payment.clone();
        let act = move |authority: &Embedded| authority.pay(account, pay, named);
        let (view, done) = self.change(asker, "topup", written, act).await?;
        let mut document = document(&view);
        document["payment"] = json!(payment);
        Ok(made(done, document))
    }

    pub(super) async fn revoke(self: &Arc<Shared>, asker: &Asker, account: AccountId, body: &str) -> Result<Reply, Reply> {
        let RevokeBody { amount, revocation } = RevokeBody::parse(body)?;
        let revocation = revocation.map_or_else(fresh_payment, Ok)?;
        let written = json!({ "account": account, "amount": amount, "revocation": revocation });
        let named = revocation.clone();
        let act = move |authority: &Embedded| authority.revoke(account, amount, named);
        let (view, done) = self.change(asker, "revoke", written, act).await?;
        let mut document = document(&view);
        document["revocation"] = json!(revocation);
        Ok(made(done, document))
    }

    pub(super) async fn audit_log(self: &Arc<Shared>, limit: u32) -> Result<Reply, Reply> {
        let shared = Arc::clone(self);
        let lines = blocking(move || shared.audit.last(usize::try_from(limit).unwrap_or(usize::MAX))).await?;
        let lines = lines.map_err(|error| Reply::refuse("no_audit", error.to_string(), "see the log of meter-authority"))?;
        Ok(Reply::Document(json!({ "lines": lines })))
    }
}

/// A body that has been read already, as it was sent.
fn said(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or(Value::Null)
}

/// A payment that its maker has not named: booked once, but not told apart if it is repeated.
fn fresh_payment() -> Result<PaymentId, Reply> {
    let mut bytes = [0_u8; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    let named = (filled == Ok(bytes.len())).then(|| format!("authority-{}", Epoch(bytes)).parse().ok()).flatten();
    named.ok_or_else(|| Reply::refuse("busy", "the kernel gave no random number", "name the payment"))
}
