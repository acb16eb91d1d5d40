//! `[engine]`: which billing engine keeps balances, and of which accounts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::exact::Places;
use super::kinds::Kind;
use crate::authority::store::mirror::Mirroring;
use crate::authority::store::{Store, StoreError};
use crate::domain::form::{Fault, Field, Table, quoted};
use crate::domain::id::AccountId;
use crate::domain::mirror::Drawn;
use crate::domain::time::{Nanos, Now};

const TEXT_BYTES_MAX: usize = 255;
const ACCOUNTS_MAX: usize = 16_384;
const DAY_S: u64 = 86_400;
/// Where most systems keep the certificates that everybody trusts.
const CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A billing engine, and how to get on with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Which one.
    pub kind: Kind,
    /// Where it is, without a slash at the end.
    pub url: String,
    /// Whose certificates are believed to be the engine's: a PEM file.
    pub ca: PathBuf,
    /// The file that holds the key of its API.
    pub token: PathBuf,
    /// What it calls an event of use: type, code or name.
    pub event: String,
    /// The unit or currency that its balances must be in.
    pub unit: Option<String>,
    /// Credits in one of its units.
    pub places: Places,
    /// Between two questions for one balance.
    pub poll: Nanos,
    /// When use is told, and when a balance is believed.
    pub mirroring: Mirroring,
    /// Accounts that it keeps; none: every account, by its own name.
    pub accounts: Option<BTreeMap<AccountId, Customer>>,
}

/// How an account is called at the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Customer {
    /// The customer.
    pub key: String,
    /// The subscription that use is booked on, where the engine has such.
    pub subscription: String,
}

impl EngineConfig {
    /// Is this account's balance kept there?
    #[must_use]
    pub fn keeps(&self, account: &AccountId) -> bool {
        self.accounts.as_ref().is_none_or(|accounts| accounts.contains_key(account))
    }

    /// How it is called there.
    #[must_use]
    pub fn customer(&self, account: &AccountId) -> Customer {
        let named = self.accounts.as_ref().and_then(|accounts| accounts.get(account)).cloned();
        named.unwrap_or_else(|| Customer { key: account.to_string(), subscription: account.to_string() })
    }
}

/// Which accounts follow it, before anybody asks the store anything.
pub(crate) fn enrol(store: &mut Store, engine: Option<&EngineConfig>, now: Now) -> Result<(), StoreError> {
    store.enrol(engine.map(|engine| engine.mirroring), |id| engine.is_some_and(|engine| engine.keeps(id)), now).map(drop)
}

/// Reads the table.
pub(crate) fn read_engine(table: &Table<'_>) -> Option<EngineConfig> {
    let kind = table.field("kind").word(&Kind::ALL.map(|kind| (kind.name(), kind))).required();
    let url = table.field("url").text(TEXT_BYTES_MAX).check(|url| engine_url(&url)).required();
    let ca = table.field("ca").absolute_path().check(|path| Ok(PathBuf::from(path))).or(PathBuf::from(CA));
    let token = table.field("token_file").absolute_path().check(|path| Ok(PathBuf::from(path))).required();
    let event = table.field("event").text(TEXT_BYTES_MAX).check(plain).or("meterd".to_owned());
    let unit = table.field("unit").text(TEXT_BYTES_MAX).check(plain).optional();
    let places = table.field("credits_per_unit").text(TEXT_BYTES_MAX).check(|text| {
        let wrong = || Fault::new("not_a_power_of_ten", format!("{} is no power of ten from 0.000001 to 1000000", quoted(&text)));
        Places::of(&text).ok_or_else(|| wrong().hint("as text, such as \"100\"; other prices are the engine's to set"))
    });
    let places = places.or(Places(0));
    let poll = table.field("poll_s").seconds(1..=3_600).or(Nanos::from_secs(10));
    let settles_within = table.field("settles_within_s").seconds(1..=DAY_S).or(Nanos::from_secs(300));
    let stale_after = table.field("stale_after_s").seconds(5..=DAY_S).or(Nanos::from_secs(600));
    let event_every = table.field("event_every_s").seconds(1..=3_600).or(Nanos::from_secs(10));
    let event_age_max = table.field("event_age_max_s").seconds(600..=34 * DAY_S).or(Nanos::from_secs(DAY_S));
    let others = table.field("drawn_by_others").boolean().or(true);
    let mut names = BTreeSet::new();
    let read = |field: Field<'_>| field.table(|table| read_account(table, &mut names)).required();
    let accounts = table.field("account").list(ACCOUNTS_MAX, read).optional();
    if let (Some(poll), Some(stale_after)) = (poll, stale_after)
        && stale_after.0 <= 2 * poll.0
    {
        let fault = Fault::new("out_of_range", "stale_after_s: a balance would be too old before it is asked for again");
        table.note(fault.hint("more than twice poll_s"));
        return None;
    }
    let drawn = if others? { Drawn::ByOthersToo } else { Drawn::HereAlone };
    Some(EngineConfig {
        kind: kind?,
        url: url?,
        ca: ca?,
        token: token?,
        event: event?,
        unit: unit?,
        places: places?,
        poll: poll?,
        mirroring: Mirroring {
            settles_within: settles_within?,
            stale_after: stale_after?,
            drawn,
            event_every: event_every?,
            event_age_max: event_age_max?,
        },
        accounts: accounts?.map(|listed| listed.into_iter().collect()),
    })
}

fn read_account(table: &Table<'_>, names: &mut BTreeSet<AccountId>) -> Option<(AccountId, Customer)> {
    let name = table.field("name").name::<AccountId>().check(|name| {
        let doubled = || Fault::new("duplicate", format!("account {name} stands here twice")).hint("leave one out");
        if names.insert(name.clone()) { Ok(name) } else { Err(doubled()) }
    });
    let name = name.required();
    let customer = table.field("customer").text(TEXT_BYTES_MAX).check(plain).optional();
    let subscription = table.field("subscription").text(TEXT_BYTES_MAX).check(plain).optional();
    let (name, customer, subscription) = (name?, customer?, subscription?);
    let key = customer.unwrap_or_else(|| name.to_string());
    let subscription = subscription.unwrap_or_else(|| key.clone());
    Some((name, Customer { key, subscription }))
}

fn plain(text: String) -> Result<String, Fault> {
    let good = !text.is_empty() && text.chars().all(|c| !c.is_control());
    if good { Ok(text) } else { Err(Fault::new("malformed", "printable text is needed")) }
}

fn engine_url(text: &str) -> Result<String, Fault> {
    let here = |url: &reqwest::Url| match url.host_str().unwrap_or_default().trim_matches(['[', ']']) {
        "localhost" => true,
        host => host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()),
    };
    let plain = reqwest::Url::parse(text).ok().filter(|url| {
        (url.scheme() == "https" || (url.scheme() == "http" && here(url)))
            && url.host().is_some()
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
    });
    let fault = || Fault::new("malformed", format!("{} is not the address of an engine", quoted(text)));
    plain
        .map(|url| url.as_str().trim_end_matches('/').to_owned())
        .ok_or_else(|| fault().hint("such as \"https://billing.example.org\"; http only to this machine itself"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::form::read_toml;

    fn read(lines: &str) -> Result<EngineConfig, String> {
        let read = read_toml(&format!("[engine]\n{lines}"), "a.toml", 1 << 20, |table| table.field("engine").table(read_engine).required());
        read.map_err(|mistakes| mistakes.iter().map(|mistake| format!("[{}] {mistake}", mistake.code)).collect::<Vec<_>>().join("\n"))
    }

    const LEAST: &str = "kind = \"lago\"\nurl = \"https://billing.example.org/\"\ntoken_file = \"/e/token\"\n";

    #[test]
    fn little_is_needed_and_every_account_is_kept_then() {
        let config = read(LEAST).unwrap();
        assert_eq!((config.url.as_str(), config.poll, config.places), ("https://billing.example.org", Nanos::from_secs(10), Places(0)));
        assert_eq!((config.mirroring.drawn, config.mirroring.stale_after), (Drawn::ByOthersToo, Nanos::from_secs(600)));
        let lab: AccountId = "lab".parse().unwrap();
        assert!(config.keeps(&lab));
        assert_eq!(config.customer(&lab), Customer { key: "lab".to_owned(), subscription: "lab".to_owned() });
    }

    #[test]
    fn accounts_that_are_listed_have_names_of_their_own_and_no_other_is_kept() {
        let config = read(&format!(
            "{LEAST}credits_per_unit = \"100\"\ndrawn_by_others = false\n[[engine.account]]\nname = \"lab\"\ncustomer = \"c-1\"\n\
             [[engine.account]]\nname = \"chem\"\nsubscription = \"s-2\"\n"
        ));
        let config = config.unwrap();
        let id = |name: &str| name.parse::<AccountId>().unwrap();
        assert_eq!(["lab", "chem", "bio"].map(|name| config.keeps(&id(name))), [true, true, false]);
        assert_eq!(config.customer(&id("lab")), Customer { key: "c-1".to_owned(), subscription: "c-1".to_owned() });
        assert_eq!(config.customer(&id("chem")), Customer { key: "chem".to_owned(), subscription: "s-2".to_owned() });
        assert_eq!((config.places, config.mirroring.drawn), (Places(2), Drawn::HereAlone));
    }

    #[test]
    fn every_mistake_is_named_at_once_with_line_and_hint() {
        insta::assert_snapshot!(
            read("kind = \"largo\"\nurl = \"http://billing.example.org\"\ntoken_file = \"t\"\ncredits_per_unit = \"3\"\npol_s = 3\n")
                .unwrap_err()
        );
        let stale = read(&format!("{LEAST}poll_s = 60\nstale_after_s = 120\n")).unwrap_err();
        assert!(stale.starts_with("[out_of_range] a.toml:1:1"), "{stale}");
        let twice = read(&format!("{LEAST}[[engine.account]]\nname = \"lab\"\n[[engine.account]]\nname = \"lab\"\n")).unwrap_err();
        assert!(twice.starts_with("[duplicate] a.toml:8:8"), "{twice}");
    }

    #[test]
    fn without_tls_it_is_spoken_to_on_this_machine_alone() {
        for good in ["https://a.example/base", "http://127.0.0.1:80", "http://[::1]:8", "http://localhost:8888"] {
            assert!(engine_url(good).is_ok(), "{good}");
        }
        for bad in ["http://10.0.0.1", "http://a.example", "https://u:p@a", "https://a/?q", "ftp://a", "a:1"] {
            assert!(engine_url(bad).is_err(), "{bad}");
        }
    }
}
