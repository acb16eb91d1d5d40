//! An account's policy and terms: the same keys in a body, in the configuration and in a policy file.

use serde_json::{Value, json};

use super::{BODY_BYTES_MAX, DAY_S, TOP_UP_MAX, put, whole_seconds};
use crate::domain::enforcement::Enforcement;
use crate::domain::form::{Fault, Field, Mistake, Presence, Table, read_json, read_toml};
use crate::domain::id::AccountId;
use crate::domain::ladder::{THRESHOLDS_MAX, Then, Thresholds, Victims};
use crate::domain::ledger::{
    ALERTS_MAX, Alerts, Allowance, Commitment, CommitmentPeriod, DetachedStorage, Ratio, RefillTerms, StorageAtZero, Terms, Unit, UnitName,
    Verification,
};
use crate::domain::money::Credits;
use crate::domain::receipt::rfc3339;
use crate::domain::time::Nanos;
use crate::domain::wire::{AccountPolicy, OnExhaustion, StartPredicted, Unreachable};

/// Longest time for which a pending refill is waited for at zero: a month.
const WAIT_S_MAX: u64 = 31 * DAY_S;

/// Open an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateAccount {
    /// Its name.
    pub account: AccountId,
    /// What its owner wants its nodes to do.
    pub policy: AccountPolicy,
    /// What the authority does for it.
    pub terms: Terms,
}

/// Reads a policy file: what stands there, and the defaults for the rest.
///
/// # Errors
/// Every mistake, in the order of the file.
pub fn parse_policy(text: &str, file_name: &str) -> Result<(AccountPolicy, Terms), Vec<Mistake>> {
    read_toml(text, file_name, BODY_BYTES_MAX, |table| {
        let policy = read_policy(table, &AccountPolicy::default());
        let terms = read_terms(table);
        Some((policy?, terms?))
    })
}

impl CreateAccount {
    /// Reads a body, with the defaults of [`AccountPolicy`] where it says nothing.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(text: &str) -> Result<CreateAccount, Vec<Mistake>> {
        CreateAccount::parse_with(text, &AccountPolicy::default())
    }

    /// Reads a body: the account's name, those parts of its policy that differ from the defaults, and its terms.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse_with(text: &str, defaults: &AccountPolicy) -> Result<CreateAccount, Vec<Mistake>> {
        read_json(text, BODY_BYTES_MAX, |table| {
            let account = table.field("account").name().required();
            let policy = read_policy(table, defaults);
            let terms = read_terms(table);
            Some(CreateAccount { account: account?, policy: policy?, terms: terms? })
        })
    }

    /// The body as JSON, for whoever sends it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let CreateAccount { account, policy, terms } = self;
        let mut body = json!({
            "account": account,
            "on_exhaustion": policy.on_exhaustion,
            "grace_s": whole_seconds(policy.grace),
            "warn_before_s": policy.warn_before.iter().map(whole_seconds).collect::<Vec<u64>>(),
            "start_threshold": policy.start_threshold,
            "start_predicted": policy.start_predicted,
            "start_funded_s": policy.start_funded.map_or(0, whole_seconds),
            "unreachable": policy.unreachable,
            "enforcement": policy.enforcement,
            "freeze_ttl_s": policy.freeze_ttl.map_or(0, whole_seconds),
            "then": policy.then,
            "victims": policy.victims,
            "victims_before_s": whole_seconds(policy.victims_before),
            "topup_min": terms.topup_min,
            "credit_lasts_days": terms.credit_lasts.map_or(0, |lasts| whole_seconds(lasts) / DAY_S),
            "verification": terms.verification,
            "storage_at_zero": terms.storage,
            "detached_storage": terms.detached_storage,
        });
        put(&mut body, "unit", terms.unit.as_ref().map(|unit| &unit.name));
        put(&mut body, "credits_per_unit", terms.unit.as_ref().map(|unit| unit.credits_per_unit));
        let Alerts { percents, below, reference } = &terms.alerts;
        if terms.alerts != Alerts::default() {
            body["alerts"] = json!({ "percents": percents, "below": below });
            put(&mut body["alerts"], "reference", *reference);
        }
        let refill = |refill: RefillTerms| json!({ "below": refill.below, "amount": refill.amount, "wait_s": whole_seconds(refill.wait) });
        put(&mut body, "refill", terms.refill.map(refill));
        put(&mut body, "allowance", terms.allowance);
        if let Some(Commitment { amount, period, day, starts, ends }) = terms.commitment {
            body["commitment"] = json!({ "amount": amount, "period": period, "day": day });
            put(&mut body["commitment"], "starts", starts.map(rfc3339));
            put(&mut body["commitment"], "ends", ends.map(rfc3339));
        }
        body
    }
}

/// What nodes do.
pub(crate) fn read_policy(table: &Table<'_>, defaults: &AccountPolicy) -> Option<AccountPolicy> {
    const ON_EXHAUSTION: [(&str, OnExhaustion); 6] = [
        ("freeze", OnExhaustion::Freeze),
        ("stop", OnExhaustion::Stop),
        ("terminate", OnExhaustion::Terminate),
        ("kill", OnExhaustion::Kill),
        ("refuse_new", OnExhaustion::RefuseNew),
        ("allow_negative", OnExhaustion::AllowNegative),
    ];
    const VICTIMS: [(&str, Victims); 4] = [
        ("together", Victims::Together),
        ("newest_first", Victims::NewestFirst),
        ("oldest_first", Victims::OldestFirst),
        ("dearest_first", Victims::DearestFirst),
    ];
    const START_PREDICTED: [(&str, StartPredicted); 2] = [("check", StartPredicted::Check), ("ignore", StartPredicted::Ignore)];
    const UNREACHABLE: [(&str, Unreachable); 2] = [("freeze", Unreachable::Freeze), ("run_on", Unreachable::RunOn)];
    let none_if_zero = |length: Nanos| Ok(Some(length).filter(|length| *length != Nanos(0)));
    let on_exhaustion = table.field("on_exhaustion").word(&ON_EXHAUSTION).or(defaults.on_exhaustion);
    let grace = table.field("grace_s").seconds(0..=DAY_S).or(defaults.grace);
    let warn_before = read_thresholds(table.field("warn_before_s"), defaults.warn_before);
    let start_threshold = table.field("start_threshold").amount(TOP_UP_MAX).or(defaults.start_threshold);
    let start_predicted = table.field("start_predicted").word(&START_PREDICTED).or(defaults.start_predicted);
    let start_funded = table.field("start_funded_s").seconds(0..=365 * DAY_S).check(none_if_zero).or(defaults.start_funded);
    // The same in one table.
    let before = StartRule {
        threshold: start_threshold.unwrap_or_default(),
        predicted: start_predicted.unwrap_or(defaults.start_predicted),
        funded: start_funded.flatten(),
    };
    let rule = table.field("start_rule").table(|table| {
        let threshold = table.field("threshold").amount(TOP_UP_MAX).or(before.threshold);
        let predicted = table.field("predicted").word(&START_PREDICTED).or(before.predicted);
        let minutes = table.field("funded_minutes").integer(0..=365 * DAY_S / 60);
        let funded = minutes.check(|minutes| none_if_zero(Nanos::from_secs(minutes * 60))).or(before.funded);
        Some(StartRule { threshold: threshold?, predicted: predicted?, funded: funded? })
    });
    let rule = rule.or(before).filter(|_| start_threshold.is_some() && start_predicted.is_some() && start_funded.is_some());
    let unreachable = by_either(table, "unreachable", "unreachable_rule").word(&UNREACHABLE).or(defaults.unreachable);
    let modes = Enforcement::ALL.map(|mode| (mode.name(), mode));
    let enforcement = table.field("enforcement").word(&modes).or(defaults.enforcement);
    let freeze_ttl = table.field("freeze_ttl_s").seconds(0..=365 * DAY_S).check(none_if_zero).or(defaults.freeze_ttl);
    let then = table.field("then").word(&[("terminate", Then::Terminate), ("kill", Then::Kill)]).or(defaults.then);
    let victims = table.field("victims").word(&VICTIMS).or(defaults.victims);
    let victims_before = table.field("victims_before_s").seconds(1..=7 * DAY_S).or(defaults.victims_before);
    Some(AccountPolicy {
        enforcement: enforcement?,
        freeze_ttl: freeze_ttl?,
        then: then?,
        victims: victims?,
        victims_before: victims_before?,
        on_exhaustion: on_exhaustion?,
        grace: grace?,
        warn_before: warn_before?,
        start_threshold: rule?.threshold,
        start_predicted: rule?.predicted,
        start_funded: rule?.funded,
        unreachable: unreachable?,
    })
}

/// When a start is refused.
#[derive(Clone, Copy)]
struct StartRule {
    threshold: Credits,
    predicted: StartPredicted,
    funded: Option<Nanos>,
}

/// A field that has two names: the second one where only that stands there.
fn by_either<'t>(table: &Table<'t>, name: &'static str, other: &'static str) -> Field<'t> {
    let present = |key| table.holds(key) == Presence::Given;
    table.field(if present(other) && !present(name) { other } else { name })
}

/// One length in seconds, or a list of them.
fn read_thresholds(field: Field<'_>, defaults: Thresholds) -> Option<Thresholds> {
    let range = 0..=7 * DAY_S;
    if field.is_integer() {
        return field.seconds(range).check(|threshold| Ok(Thresholds::one(threshold))).or(defaults);
    }
    let list = field.list(THRESHOLDS_MAX, |threshold| threshold.seconds(range.clone()).required());
    list.check(|list| Thresholds::try_from(list).map_err(|error| Fault::new("too_many", error.to_string()))).or(defaults)
}

/// What the authority does.
fn read_terms(table: &Table<'_>) -> Option<Terms> {
    const VERIFICATION: [(&str, Verification); 2] = [("not_needed", Verification::NotNeeded), ("required", Verification::Required)];
    const STORAGE: [(&str, StorageAtZero); 2] = [("keep", StorageAtZero::Keep), ("detach", StorageAtZero::Detach)];
    const DETACHED: [(&str, DetachedStorage); 2] = [("costs", DetachedStorage::Costs), ("free", DetachedStorage::Free)];
    let unit = read_unit(table);
    let topup_min = table.field("topup_min").amount(TOP_UP_MAX).or(Credits::ZERO);
    let days = table.field("credit_lasts_days").integer(0..=3_650_u64);
    let credit_lasts = days.check(|days| Ok(Some(Nanos::from_secs(days * DAY_S)).filter(|lasts| *lasts != Nanos(0)))).or(None);
    let verification = table.field("verification").word(&VERIFICATION).or(Verification::NotNeeded);
    let alerts = by_either(table, "alerts", "alert_thresholds").table(read_alerts).or(Alerts::default());
    let refill = table.field("refill").table(read_refill).optional();
    let allowance = table.field("allowance").table(read_allowance).optional();
    let commitment = table.field("commitment").table(read_commitment).optional();
    let storage = table.field("storage_at_zero").word(&STORAGE).or(StorageAtZero::Keep);
    let detached_storage = table.field("detached_storage").word(&DETACHED).or(DetachedStorage::Costs);
    // The same as a list of what goes on costing.
    let residual = table.field("residual_meters").set(1, |meter| meter.word(&[("storage", ())]).required());
    let residual = residual.check(|meters| Ok(if meters.is_empty() { DetachedStorage::Free } else { DetachedStorage::Costs }));
    let detached_storage = residual.or(detached_storage.unwrap_or_default()).filter(|_| detached_storage.is_some());
    let unit = match unit? {
        Counts::In(unit) => Some(unit),
        Counts::InCredits => None,
    };
    Some(Terms {
        unit,
        topup_min: topup_min?,
        credit_lasts: credit_lasts?,
        verification: verification?,
        alerts: alerts?,
        refill: refill?,
        allowance: allowance?,
        storage: storage?,
        detached_storage: detached_storage?,
        commitment: commitment?,
    })
}

/// Whether an account has a unit of its own.
enum Counts {
    InCredits,
    In(Unit),
}

/// Both parts of a unit, or none.
fn read_unit(table: &Table<'_>) -> Option<Counts> {
    let name = table
        .field("unit")
        .text(16)
        .check(|text| text.parse::<UnitName>().map_err(|error| Fault::new("not_a_name", error.to_string()).hint("such as \"USD\"")));
    let name = name.optional();
    let ratio = table.field("credits_per_unit").text(64).check(|text| {
        text.parse::<Ratio>()
            .map_err(|error| Fault::new("malformed", error.to_string()).hint("how many credits one unit is: \"100\", \"1/3\""))
    });
    let ratio = ratio.optional();
    match (name?, ratio?) {
        (Some(name), Some(credits_per_unit)) => Some(Counts::In(Unit { name, credits_per_unit })),
        (None, None) => Some(Counts::InCredits),
        (Some(_), None) => {
            table.note(Fault::new("missing", "unit stands here without credits_per_unit").hint("how many credits one unit is: \"100\""));
            None
        }
        (None, Some(_)) => {
            table.note(Fault::new("missing", "credits_per_unit stands here without unit").hint("what the unit is called: \"USD\""));
            None
        }
    }
}

fn read_alerts(table: &Table<'_>) -> Option<Alerts> {
    let percents = table.field("percents").set(ALERTS_MAX, |percent| percent.integer(1..=99_u8).required()).or(Vec::new());
    let below = table.field("below").set(ALERTS_MAX, |below| positive(below)).or(Vec::new());
    let reference = table.field("reference").amount(TOP_UP_MAX).check(above_zero).optional();
    Some(Alerts { percents: percents?, below: below?, reference: reference? })
}

fn read_refill(table: &Table<'_>) -> Option<RefillTerms> {
    let below = positive(table.field("below"));
    let amount = positive(table.field("amount"));
    let wait = table.field("wait_s").seconds(0..=WAIT_S_MAX).or(Nanos(0));
    Some(RefillTerms { below: below?, amount: amount?, wait: wait? })
}

fn read_allowance(table: &Table<'_>) -> Option<Allowance> {
    let amount = positive(table.field("amount"));
    let day = table.field("day").integer(1..=28_u8).or(1);
    Some(Allowance { amount: amount?, day: day? })
}

fn read_commitment(table: &Table<'_>) -> Option<Commitment> {
    const PERIOD: [(&str, CommitmentPeriod); 2] = [("monthly", CommitmentPeriod::Monthly), ("once", CommitmentPeriod::Once)];
    let amount = positive(table.field("amount"));
    let period = table.field("period").word(&PERIOD).or(CommitmentPeriod::Monthly);
    let day = table.field("day").integer(1..=28_u8).or(1);
    let starts = table.field("starts").instant().optional();
    let ends = table.field("ends").instant().optional();
    let (period, starts, ends) = (period?, starts?, ends?);
    if ends.is_some_and(|ends| starts.is_some_and(|starts| ends <= starts)) {
        table.note(Fault::new("out_of_range", "it ends before it begins").hint("an end after the start"));
        return None;
    }
    if period == CommitmentPeriod::Once && ends.is_none() {
        table.note(
            Fault::new("missing", "what is given once needs an end, at which the rest of it lapses")
                .hint("ends = \"2027-01-01T00:00:00Z\""),
        );
        return None;
    }
    Some(Commitment { amount: amount?, period, day: day?, starts, ends })
}

fn positive(field: Field<'_>) -> Option<Credits> {
    field.amount(TOP_UP_MAX).check(above_zero).required()
}

pub(super) fn above_zero(amount: Credits) -> Result<Credits, Fault> {
    if amount.is_positive() {
        Ok(amount)
    } else {
        Err(Fault::new("out_of_range", "an amount above zero is needed").hint("a positive amount"))
    }
}
