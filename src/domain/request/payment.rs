//! Bodies about credit that comes or goes otherwise than by use.

use serde_json::{Value, json};

use super::account::above_zero;
use super::{BODY_BYTES_MAX, TOP_UP_MAX, put};
use crate::domain::bucket::Bucket;
use crate::domain::form::{Fault, Mistake, Presence, Table, read_json};
use crate::domain::id::{AccountId, PaymentId};
use crate::domain::ledger::{Direction, Expiry, Payment, PaymentState, Priority, Purpose, Unit, UnitName, UnitRefusal, in_credits};
use crate::domain::money::{Credits, Decimal};
use crate::domain::receipt::rfc3339;
use crate::domain::time::Wall;

/// How much: in credits, or in the account's own unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Amount {
    /// In credits: positive, at most [`TOP_UP_MAX`].
    Credits(Credits),
    /// In a unit, which must be the account's.
    InUnit {
        /// How much of it.
        amount: Decimal,
        /// Which.
        unit: UnitName,
    },
}

/// Something to be booked on an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pay {
    /// What it is.
    pub purpose: Purpose,
    /// How much.
    pub amount: Amount,
    /// To or from which part of the balance.
    pub bucket: Bucket,
    /// By which name, so that a repeated one is booked once.
    pub payment: Option<PaymentId>,
    /// When it is spent.
    pub priority: Priority,
    /// Until when it may be spent.
    pub expires: Expiry,
    /// Is it there already? Pending or completed.
    pub state: PaymentState,
}

/// What became of a payment that was pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettlePayment {
    /// Completed or failed.
    pub state: PaymentState,
}

/// Does somebody vouch for the account?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vouch {
    /// Yes.
    Yes,
    /// Not any more.
    No,
}

impl Amount {
    /// In credits, for an account that counts in `own`.
    ///
    /// # Errors
    /// Another unit is refused, and so is what is not exact.
    pub fn in_credits(&self, own: Option<&Unit>) -> Result<Credits, UnitRefusal> {
        match self {
            Amount::Credits(credits) => Ok(*credits),
            Amount::InUnit { amount, unit } => in_credits(*amount, unit, own),
        }
    }
}

impl Pay {
    /// A deposit of credits, as plain as it can be.
    #[must_use]
    pub fn deposit(amount: Credits, bucket: Bucket, payment: Option<PaymentId>) -> Pay {
        let (priority, expires, state) = (Priority::default(), Expiry::Never, PaymentState::Completed);
        Pay { purpose: Purpose::Deposit, amount: Amount::Credits(amount), bucket, payment, priority, expires, state }
    }

    /// Reads the body of a deposit: `{"amount": "12.50", "bucket": "paid", "payment": "inv-7"}`, and if need be `unit`, `priority`, `expires`
    /// and `state`.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse_deposit(text: &str) -> Result<Pay, Vec<Mistake>> {
        read_json(text, BODY_BYTES_MAX, |table| {
            const STATES: [(&str, PaymentState); 2] = [("pending", PaymentState::Pending), ("completed", PaymentState::Completed)];
            let priority = table.field("priority").integer(0..=u8::MAX).check(|priority| Ok(Priority(priority))).or(Priority::default());
            let expires = table.field("expires").instant().check(|at| Ok(Expiry::At(at))).or(Expiry::Never);
            let state = table.field("state").word(&STATES).or(PaymentState::Completed);
            let pay = read_pay(table, Some(Purpose::Deposit));
            Some(Pay { priority: priority?, expires: expires?, state: state?, ..pay? })
        })
    }

    /// Reads the body of anything else: `{"purpose": "refund" | "correction" | "transfer", "amount": "1", "bucket": "paid"}`, with `direction` for a
    /// correction and `to` for a transfer.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(text: &str) -> Result<Pay, Vec<Mistake>> {
        read_json(text, BODY_BYTES_MAX, |table| {
            let purpose = read_purpose(table);
            read_pay(table, purpose)
        })
    }

    /// The body as JSON, for whoever sends it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut body = json!({ "bucket": self.bucket });
        match &self.amount {
            Amount::Credits(credits) => body["amount"] = json!(credits),
            Amount::InUnit { amount, unit } => (body["amount"], body["unit"]) = (json!(amount), json!(unit)),
        }
        put(&mut body, "payment", self.payment.as_ref());
        match &self.purpose {
            Purpose::Deposit | Purpose::Refill => {
                body["priority"] = json!(self.priority);
                body["state"] = json!(self.state);
                let expires: Option<Wall> = self.expires.into();
                put(&mut body, "expires", expires.map(rfc3339));
            }
            Purpose::Refund => body["purpose"] = json!("refund"),
            Purpose::Correction(direction) => (body["purpose"], body["direction"]) = (json!("correction"), json!(direction)),
            Purpose::Transfer(to) => (body["purpose"], body["to"]) = (json!("transfer"), json!(to)),
        }
        body
    }

    /// As it is booked, by this name and as so many credits.
    #[must_use]
    pub fn payment(&self, id: PaymentId, amount: Credits) -> Payment {
        Payment { id, purpose: self.purpose.clone(), bucket: self.bucket, amount, priority: self.priority, expires: self.expires }
    }
}

/// What all of them have.
fn read_pay(table: &Table<'_>, purpose: Option<Purpose>) -> Option<Pay> {
    let unit = table.field("unit").text(16);
    let unit = unit.check(|text| text.parse::<UnitName>().map_err(|error| Fault::new("not_a_name", error.to_string()))).optional();
    let amount = table.field("amount");
    let amount = match table.holds("unit") {
        Presence::Absent => amount.amount(TOP_UP_MAX).check(above_zero).required().map(Amount::Credits),
        Presence::Given => {
            let positive = |amount: Decimal| {
                if 0 < amount.mantissa { Ok(amount) } else { Err(Fault::new("out_of_range", "an amount above zero is needed")) }
            };
            let amount = amount.decimal().check(positive).required();
            amount.zip(unit.clone().flatten()).map(|(amount, unit)| Amount::InUnit { amount, unit })
        }
    };
    let bucket = table.field("bucket").word(&Bucket::PAYABLE.map(|bucket| (bucket.name(), bucket))).required();
    let payment = table.field("payment").name().optional();
    unit?;
    Some(Pay {
        purpose: purpose?,
        amount: amount?,
        bucket: bucket?,
        payment: payment?,
        priority: Priority::default(),
        expires: Expiry::Never,
        state: PaymentState::Completed,
    })
}

fn read_purpose(table: &Table<'_>) -> Option<Purpose> {
    #[derive(Clone, Copy)]
    enum Word {
        Refund,
        Correction,
        Transfer,
    }
    const WORDS: [(&str, Word); 3] = [("refund", Word::Refund), ("correction", Word::Correction), ("transfer", Word::Transfer)];
    const DIRECTIONS: [(&str, Direction); 2] = [("adds", Direction::Adds), ("takes", Direction::Takes)];
    match table.field("purpose").word(&WORDS).required()? {
        Word::Refund => Some(Purpose::Refund),
        Word::Correction => table.field("direction").word(&DIRECTIONS).required().map(Purpose::Correction),
        Word::Transfer => table.field("to").name::<AccountId>().required().map(Purpose::Transfer),
    }
}

impl SettlePayment {
    /// Reads a body: `{"state": "completed"}` or `{"state": "failed"}`.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(text: &str) -> Result<SettlePayment, Vec<Mistake>> {
        const STATES: [(&str, PaymentState); 2] = [("completed", PaymentState::Completed), ("failed", PaymentState::Failed)];
        read_json(text, BODY_BYTES_MAX, |table| Some(SettlePayment { state: table.field("state").word(&STATES).required()? }))
    }
}

impl Vouch {
    /// Reads a body: `{"vouched": "yes"}` or `{"vouched": "no"}`.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(text: &str) -> Result<Vouch, Vec<Mistake>> {
        read_json(text, BODY_BYTES_MAX, |table| table.field("vouched").word(&[("yes", Vouch::Yes), ("no", Vouch::No)]).required())
    }
}
