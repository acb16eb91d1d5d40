//! What the messages of each billing engine look like: a table of small differences, each as its makers document it.
//!
//! | engine | events | balance | key |
//! |---|---|---|---|
//! | `OpenMeter` | `CloudEvents` in a batch, known by `source` and `id` | `live` credit of a customer, by currency | bearer |
//! | Lago | up to 100, known by `transaction_id` (with some stores also by their time) | `credits_ongoing_balance` of the active wallets | bearer |
//! | Flexprice | up to 1,000, known by `event_id` | `real_time_credit_balance` of the active wallets, unless it is a cached one | `x-api-key` |

use reqwest::Url;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::config::{Customer, EngineConfig};
use super::exact::{Places, credits, units};
use super::{Failure, FaultOf};
use crate::authority::store::mirror::{Draft, Outcome, UsageEvent};
use crate::domain::money::Credits;
use crate::domain::receipt::rfc3339;
use crate::domain::time::Wall;

/// Longest part of an engine's own words that is passed on.
const WORDS_CHARS_MAX: usize = 160;

/// A billing engine that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `OpenMeter`.
    OpenMeter,
    /// Lago.
    Lago,
    /// Flexprice.
    Flexprice,
}

/// A message to an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Where.
    pub url: String,
    /// What; none to ask.
    pub body: Option<(&'static str, String)>,
}

/// A balance, as an engine says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// How much.
    pub balance: Credits,
    /// As of when, where it says so.
    pub as_of: Option<Wall>,
}

impl Kind {
    /// All.
    pub const ALL: [Kind; 3] = [Kind::OpenMeter, Kind::Lago, Kind::Flexprice];

    /// Its name in configurations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::OpenMeter => "openmeter",
            Kind::Lago => "lago",
            Kind::Flexprice => "flexprice",
        }
    }

    /// The header that holds the key of its API, and what stands before the key there.
    #[must_use]
    pub const fn key_header(self) -> (&'static str, &'static str) {
        match self {
            Kind::OpenMeter | Kind::Lago => ("authorization", "Bearer "),
            Kind::Flexprice => ("x-api-key", ""),
        }
    }

    /// Most events in one message.
    #[must_use]
    pub const fn events_max(self) -> usize {
        match self {
            Kind::OpenMeter | Kind::Lago => 100,
            Kind::Flexprice => 1_000,
        }
    }

    /// An event in its words. Kept, and sent each time as it is here.
    #[must_use]
    pub fn event(self, config: &EngineConfig, draft: &Draft) -> String {
        let Customer { key, subscription } = config.customer(&draft.account);
        let Draft { id, account, amount, at } = draft;
        let amount = units(*amount, config.places);
        let event = match self {
            Kind::OpenMeter => json!({
                "specversion": "1.0", "id": id, "source": "meterd", "type": config.event, "subject": key, "time": rfc3339(*at),
                "datacontenttype": "application/json", "data": { "amount": amount, "account": account },
            }),
            Kind::Lago => json!({
                "transaction_id": id, "external_subscription_id": subscription, "code": config.event,
                "timestamp": format!("{}.{:03}", at.0 / 1_000, at.0 % 1_000), "properties": { "amount": amount, "account": account },
            }),
            Kind::Flexprice => json!({
                "event_id": id, "event_name": config.event, "external_customer_id": key, "timestamp": rfc3339(*at), "source": "meterd",
                "properties": { "amount": amount, "account": account },
            }),
        };
        event.to_string()
    }

    /// The message that tells it of events.
    #[must_use]
    pub fn batch(self, config: &EngineConfig, events: &[UsageEvent]) -> Call {
        let all = events.iter().map(|event| event.body.as_str()).collect::<Vec<_>>().join(",");
        let (path, media_type, body) = match self {
            Kind::OpenMeter => ("/api/v1/events", "application/cloudevents-batch+json", format!("[{all}]")),
            Kind::Lago => ("/api/v1/events/batch", "application/json", format!("{{\"events\":[{all}]}}")),
            Kind::Flexprice => ("/v1/events/bulk", "application/json", format!("{{\"events\":[{all}]}}")),
        };
        Call { url: format!("{}{path}", config.url), body: Some((media_type, body)) }
    }

    /// What became of so many events.
    ///
    /// # Errors
    /// The engine says nothing of each.
    pub fn told(self, status: u16, body: &[u8], count: usize) -> Result<Vec<Outcome>, Failure> {
        let code = match status {
            200..=299 => return Ok(vec![Outcome::Taken; count]),
            400 => "refused_400",
            409 => "refused_409",
            413 => "refused_413",
            422 => "refused_422",
            _ => return Err(no_answer(status, body)),
        };
        if let Some(outcomes) = (self == Kind::Lago && status == 422).then(|| lago_outcomes(body, count)).flatten() {
            return Ok(outcomes);
        }
        match (count, status) {
            (1, 409) => Ok(vec![Outcome::Taken]), // it has one of that name
            (1, _) => Ok(vec![Outcome::Refused { code, why: words(body) }]),
            _ => Err(Failure { of: FaultOf::Part, ..Failure::new(code, format!("one of {count} events is refused: {}", words(body))) }),
        }
    }

    /// The message that asks for a balance.
    #[must_use]
    pub fn question(self, config: &EngineConfig, customer: &Customer) -> Option<Call> {
        let mut url = Url::parse(&config.url).ok()?;
        let path = match self {
            Kind::OpenMeter => vec!["api", "v3", "openmeter", "customers", &customer.key, "credits", "balance"],
            Kind::Lago => vec!["api", "v1", "wallets"],
            Kind::Flexprice => vec!["v1", "customers", "wallets"],
        };
        url.path_segments_mut().ok()?.pop_if_empty().extend(path);
        match self {
            Kind::OpenMeter => {}
            Kind::Lago => drop(url.query_pairs_mut().append_pair("external_customer_id", &customer.key).append_pair("per_page", "100")),
            Kind::Flexprice => {
                let mut query = url.query_pairs_mut();
                query.append_pair("lookup_key", &customer.key).append_pair("include_real_time_balance", "true");
            }
        }
        Some(Call { url: url.to_string(), body: None })
    }

    /// The balance in an answer.
    ///
    /// # Errors
    /// There is none, or not one that can be believed.
    pub fn balance(self, config: &EngineConfig, status: u16, body: &[u8]) -> Result<Said, Failure> {
        match status {
            200 => {}
            404 => return Err(Failure::of_account("unknown_customer", format!("the engine knows no such customer: {}", words(body)))),
            400 | 422 => return Err(Failure::of_account("refused_question", format!("the engine answered {status}: {}", words(body)))),
            _ => return Err(no_answer(status, body)),
        }
        let parts = match self {
            Kind::OpenMeter => openmeter_parts(body)?,
            Kind::Lago => lago_parts(body)?,
            Kind::Flexprice => flexprice_parts(body)?,
        };
        added(config.unit.as_deref(), config.places, parts)
    }
}

/// What is in an answer that is none.
fn no_answer(status: u16, body: &[u8]) -> Failure {
    let code = match status {
        401 => "refused_401",
        403 => "refused_403",
        404 => "refused_404",
        429 => "refused_429",
        300..=399 => "redirected",
        400..=499 => "refused_4xx",
        500..=599 => "failed_5xx",
        _ => "other_status",
    };
    Failure::new(code, format!("the engine answered {status}: {}", words(body)))
}

/// An engine's own words, harmless.
fn words(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().filter(|c| !c.is_control()).take(WORDS_CHARS_MAX).collect()
}

/// A part of a balance: its unit, its text, as of when.
type Part = (String, Box<RawValue>, Option<String>);

fn malformed(error: impl std::fmt::Display) -> Failure {
    Failure::of_account("malformed_balance", format!("the engine's answer holds no balance: {error}"))
}

/// A value's text: of a JSON string what it holds, of a number its digits.
fn text(raw: &RawValue) -> Option<String> {
    let raw = raw.get();
    if raw.starts_with('"') { serde_json::from_str(raw).ok() } else { Some(raw.to_owned()) }
}

fn openmeter_parts(body: &[u8]) -> Result<Vec<Part>, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        balances: Vec<Balance>,
        updated_at: Option<String>,
    }
    #[derive(Deserialize)]
    struct Balance {
        currency: String,
        live: Box<RawValue>,
    }
    let Answer { balances, updated_at } = serde_json::from_slice(body).map_err(malformed)?;
    Ok(balances.into_iter().map(|Balance { currency, live }| (currency, live, updated_at.clone())).collect())
}

fn lago_parts(body: &[u8]) -> Result<Vec<Part>, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        wallets: Vec<Wallet>,
        meta: Option<Meta>,
    }
    #[derive(Deserialize)]
    struct Meta {
        next_page: Option<u64>,
    }
    #[derive(Deserialize)]
    struct Wallet {
        status: String,
        currency: String,
        credits_ongoing_balance: Box<RawValue>,
    }
    let Answer { wallets, meta } = serde_json::from_slice(body).map_err(malformed)?;
    if meta.is_some_and(|meta| meta.next_page.is_some()) {
        return Err(malformed("there are more wallets than one answer holds"));
    }
    let active = wallets.into_iter().filter(|wallet| wallet.status == "active");
    Ok(active.map(|wallet| (wallet.currency, wallet.credits_ongoing_balance, None)).collect())
}

fn flexprice_parts(body: &[u8]) -> Result<Vec<Part>, Failure> {
    #[derive(Deserialize)]
    struct Wallet {
        #[serde(rename = "wallet_status")]
        status: String,
        currency: String,
        real_time_credit_balance: Box<RawValue>,
        is_cached_fallback: Option<bool>,
    }
    #[derive(Deserialize)]
    struct Items {
        items: Vec<Wallet>,
    }
    let listed = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let wallets = if listed {
        serde_json::from_slice::<Items>(body).map_err(malformed)?.items
    } else {
        serde_json::from_slice::<Vec<Wallet>>(body).map_err(malformed)?
    };
    let active: Vec<Wallet> = wallets.into_iter().filter(|wallet| wallet.status == "active").collect();
    // Where it does not say so it may be: then it is of nobody knows when.
    if active.iter().any(|wallet| wallet.is_cached_fallback != Some(false)) {
        return Err(Failure::of_account("cached_balance", "the engine says a balance that it had kept, of nobody knows when"));
    }
    Ok(active.into_iter().map(|wallet| (wallet.currency, wallet.real_time_credit_balance, None)).collect())
}

/// All parts in the one unit; as of the oldest.
fn added(unit: Option<&str>, places: Places, parts: Vec<Part>) -> Result<Said, Failure> {
    if parts.is_empty() {
        return Err(Failure::of_account("no_balance", "the engine keeps no balance of this customer"));
    }
    let unit = unit.map_or_else(|| parts[0].0.clone(), str::to_owned);
    let mut said = Said { balance: Credits::ZERO, as_of: None };
    for (of, amount, as_of) in parts {
        if of != unit {
            let message = format!("the engine counts in {}, not in {unit}: nothing is converted", words(of.as_bytes()));
            return Err(Failure::of_account("other_unit", message));
        }
        let amount = text(&amount).and_then(|text| credits(&text, places));
        let amount = amount.ok_or_else(|| malformed("an amount is no number, or too large"))?;
        said.balance = said.balance.plus(amount);
        let as_of = as_of.map(|text| instant(&text).ok_or_else(|| malformed("its instant cannot be read"))).transpose()?;
        said.as_of = match (said.as_of, as_of) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    Ok(said)
}

fn instant(text: &str) -> Option<Wall> {
    let instant: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(instant.as_millisecond()).ok().map(Wall)
}

/// What Lago says of each event of a batch: of those that it names by their place, what is wrong; of the others nothing, since it then takes none.
fn lago_outcomes(body: &[u8], count: usize) -> Option<Vec<Outcome>> {
    let said: serde_json::Value = serde_json::from_slice(body).ok()?;
    let details = said["error_details"].as_object()?;
    let mut outcomes = vec![Outcome::Again; count];
    let mut named = false;
    for (place, wrong) in details {
        let Some(outcome) = place.parse::<usize>().ok().and_then(|place| outcomes.get_mut(place)) else { continue };
        let known = wrong["transaction_id"].as_array().is_some_and(|words| words.iter().any(|word| word == "value_already_exist"));
        let why = words(wrong.to_string().as_bytes());
        *outcome = if known { Outcome::Taken } else { Outcome::Refused { code: "refused_422", why } };
        named = true;
    }
    named.then_some(outcomes)
}

#[cfg(test)]
mod tests {
    use super::super::config::read_engine;
    use super::*;
    use crate::domain::form::read_toml;

    fn config(kind: &str, more: &str) -> EngineConfig {
        let text = format!("[engine]\nkind = \"{kind}\"\nurl = \"https://e.example/base/\"\ntoken_file = \"/t\"\n{more}");
        read_toml(&text, "a.toml", 1 << 20, |table| table.field("engine").table(read_engine).required()).unwrap()
    }

    fn draft() -> Draft {
        let amount = Credits::from_nano(1_250_000_001);
        Draft { id: "s-1-7".to_owned(), account: "lab".parse().unwrap(), amount, at: Wall(1_760_000_000_005) }
    }

    #[test]
    fn an_event_and_its_batch_are_in_each_engines_words() {
        let mut shown = String::new();
        for kind in Kind::ALL {
            let config = config(kind.name(), "[[engine.account]]\nname = \"lab\"\ncustomer = \"c 1\"\nsubscription = \"s1\"\n");
            let event = UsageEvent { body: kind.event(&config, &draft()), draft: draft() };
            let batch = kind.batch(&config, &[event.clone(), event]);
            let question = kind.question(&config, &config.customer(&"lab".parse().unwrap())).unwrap();
            let (kind_of_body, body) = batch.body.unwrap();
            shown += &[batch.url, kind_of_body.to_owned(), body, question.url, "\n".to_owned()].join("\n");
        }
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn a_balance_is_read_from_strings_and_numbers_and_in_its_unit_alone() {
        let said = |kind: Kind, unit: &str, body: &str| {
            let more = if unit.is_empty() { String::new() } else { format!("unit = \"{unit}\"\n") };
            kind.balance(&config(kind.name(), &more), 200, body.as_bytes()).map(|said| said.balance.nano()).map_err(|failure| failure.code)
        };
        let openmeter = r#"{"balances":[{"currency":"USD","settled":"20","pending":"1","live":"12.345678901"}]}"#;
        assert_eq!(said(Kind::OpenMeter, "", openmeter), Ok(12_345_678_901));
        assert_eq!(said(Kind::OpenMeter, "EUR", openmeter), Err("other_unit"));
        assert_eq!(said(Kind::OpenMeter, "", r#"{"balances":[{"currency":"USD","live":0.1}]}"#), Ok(100_000_000));
        assert_eq!(said(Kind::OpenMeter, "", r#"{"balances":[]}"#), Err("no_balance"));
        let lago = r#"{"wallets":[{"status":"active","currency":"EUR","credits_ongoing_balance":"4.5","balance_cents":1},
            {"status":"terminated","currency":"EUR","credits_ongoing_balance":"100"},
            {"status":"active","currency":"EUR","credits_ongoing_balance":"-1.5"}],"meta":{"next_page":null}}"#;
        assert_eq!(said(Kind::Lago, "EUR", lago), Ok(3_000_000_000));
        assert_eq!(said(Kind::Lago, "", &lago.replace("null", "2")), Err("malformed_balance"));
        let flexprice = r#"[{"wallet_status":"active","currency":"usd","real_time_credit_balance":"7","is_cached_fallback":false}]"#;
        assert_eq!(said(Kind::Flexprice, "", flexprice), Ok(7_000_000_000));
        assert_eq!(said(Kind::Flexprice, "", &format!("{{\"items\":{flexprice}}}")), Ok(7_000_000_000));
        assert_eq!(said(Kind::Flexprice, "", &flexprice.replace("false", "true")), Err("cached_balance"));
        assert_eq!(said(Kind::Flexprice, "", &flexprice.replace(",\"is_cached_fallback\":false", "")), Err("cached_balance"));
        for garbage in
            ["", "null", "[]", "{", "<html>", r#"{"balances":[{"currency":"USD","live":"x"}]}"#, r#"{"balances":[{"live":"1"}]}"#]
        {
            assert!(said(Kind::OpenMeter, "", garbage).is_err(), "{garbage}");
        }
    }

    #[test]
    fn an_instant_of_the_engine_is_taken_and_one_that_cannot_be_read_is_a_fault() {
        let config = config("openmeter", "");
        let body = |at: &str| format!(r#"{{"balances":[{{"currency":"USD","live":"1"}}],"updated_at":"{at}"}}"#);
        let said = Kind::OpenMeter.balance(&config, 200, body("2026-01-01T00:00:00.250Z").as_bytes()).unwrap();
        assert_eq!(said.as_of, Some(Wall(1_767_225_600_250)));
        assert_eq!(Kind::OpenMeter.balance(&config, 200, body("yesterday").as_bytes()).unwrap_err().code, "malformed_balance");
    }

    #[test]
    fn what_an_engine_has_already_is_taken_and_what_it_does_not_want_is_told_apart() {
        use Outcome::{Again, Refused, Taken};
        for kind in Kind::ALL {
            assert_eq!(kind.told(204, b"", 3), Ok(vec![Taken; 3]));
            assert_eq!(kind.told(409, b"", 1), Ok(vec![Taken]));
            assert_eq!(kind.told(409, b"", 2).unwrap_err().of, FaultOf::Part);
            assert_eq!(kind.told(400, b"no \x07such", 1), Ok(vec![Refused { code: "refused_400", why: "no such".to_owned() }]));
            for (status, code) in
                [(401, "refused_401"), (429, "refused_429"), (503, "failed_5xx"), (302, "redirected"), (404, "refused_404")]
            {
                let failure = kind.told(status, b"", 2).unwrap_err();
                assert_eq!((failure.code, failure.of), (code, FaultOf::Engine), "the events are not to blame");
            }
        }
        let body = br#"{"status":422,"code":"validation_errors","error_details":{"0":{"transaction_id":["value_already_exist"]},
            "2":{"code":["metric_not_found"]}}}"#;
        let why = r#"{"code":["metric_not_found"]}"#.to_owned();
        assert_eq!(Kind::Lago.told(422, body, 3), Ok(vec![Taken, Again, Refused { code: "refused_422", why }]));
        assert_eq!(Kind::Lago.told(422, b"{}", 3).unwrap_err().of, FaultOf::Part);
    }
}
