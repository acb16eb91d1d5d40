//! The adapters against an engine that speaks HTTP: what it is sent, and what is made of what it says.

use std::path::Path;
use std::time::{Duration, Instant};

use meterd::authority::config::Config;
use meterd::authority::engine::Failure;
use meterd::authority::engine::http::Http;
use meterd::authority::store::mirror::{Draft, Outcome, UsageEvent};
use meterd::domain::id::AccountId;
use meterd::domain::money::Credits;
use meterd::domain::time::{Nanos, Wall};

use crate::billing::{Billing, KEY, Whim};

const KINDS: [&str; 3] = ["openmeter", "lago", "flexprice"];

fn http(billing: &Billing, kind: &str, folder: &Path) -> Http {
    let config = Config::parse(&billing.lines(kind, folder), "authority.toml").unwrap();
    Http::open(config.engine.unwrap()).unwrap()
}

fn event(http: &Http, number: u32) -> UsageEvent {
    let draft = Draft {
        id: format!("s-1-{number}"),
        account: "lab".parse().unwrap(),
        amount: Credits::from_nano(1_500_000_001),
        at: Wall(1_760_000_000_000),
    };
    UsageEvent { body: http.config().kind.event(http.config(), &draft), draft }
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// An engine of each kind, spoken to.
fn with_each(test: impl Fn(&str, &Billing, &Http)) {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let billing = Billing::start(kind);
        billing.pay("lab", "100");
        let http = http(&billing, kind, folder.path());
        test(kind, &billing, &http);
    }
}

fn ask(http: &Http) -> Result<i128, Failure> {
    let lab: AccountId = "lab".parse().unwrap();
    block(http.ask(&lab)).map(|said| said.balance.nano())
}

#[test]
fn events_are_taken_once_and_shown_in_the_balance_to_the_last_digit() {
    with_each(|kind, billing, http| {
        let events = [event(http, 1), event(http, 2)];
        assert_eq!(ask(http), Ok(100_000_000_000), "{kind}");
        assert_eq!(block(http.tell(&events)), Ok(vec![Outcome::Taken; 2]), "{kind}");
        assert_eq!(ask(http), Ok(96_999_999_998), "{kind}");
        // The first one comes once more, among news.
        let words = block(http.tell(&[event(http, 1), event(http, 3)])).unwrap();
        assert_eq!(words[0], Outcome::Taken, "{kind}: it has it");
        if words[1] == Outcome::Again {
            assert_eq!(block(http.tell(&[event(http, 3)])), Ok(vec![Outcome::Taken]), "{kind}");
        }
        assert_eq!((billing.used("lab"), billing.state().doubled), (4_500_000_003, 1), "{kind}");
    });
}

#[test]
fn an_answer_that_is_lost_is_made_good_by_saying_the_same_again() {
    with_each(|kind, billing, http| {
        billing.state().whims.push_back(Whim::DoesAndSaysNothing);
        assert_eq!(block(http.tell(&[event(http, 1)])).unwrap_err().code, "cut_off", "{kind}");
        assert_eq!(block(http.tell(&[event(http, 1)])), Ok(vec![Outcome::Taken]), "{kind}");
        assert_eq!(billing.used("lab"), 1_500_000_001, "{kind}");
    });
}

#[test]
fn whatever_is_no_answer_has_a_name_and_is_no_balance() {
    let cases = [
        (Whim::Answers(401, "", ""), "refused_401"),
        (Whim::Answers(403, "", ""), "refused_403"),
        (Whim::Answers(429, "retry-after: 17\r\n", ""), "refused_429"),
        (Whim::Answers(500, "", ""), "failed_5xx"),
        (Whim::Answers(503, "", "<html>"), "failed_5xx"),
        (Whim::Answers(302, "location: http://127.0.0.1:1/\r\n", ""), "redirected"),
        (Whim::Answers(200, "", "<html>"), "malformed_balance"),
        (Whim::Answers(200, "", ""), "malformed_balance"),
        (Whim::Answers(404, "", ""), "unknown_customer"),
        (Whim::DoesAndSaysNothing, "cut_off"),
    ];
    with_each(|kind, billing, http| {
        for (whim, code) in &cases {
            billing.state().whims.push_back(whim.clone());
            let failure = ask(http).unwrap_err();
            assert_eq!(failure.code, *code, "{kind} {whim:?}");
            let wait = if *code == "refused_429" { Nanos::from_secs(17) } else { Nanos(0) };
            assert_eq!(failure.wait, wait, "{kind} {whim:?}");
            assert!(!failure.message.contains(KEY) && !failure.message.contains("lab"), "{}", failure.message);
        }
        assert_eq!(ask(http), Ok(100_000_000_000), "{kind}");
    });
}

#[test]
fn an_answer_that_never_ends_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let billing = Billing::start("lago");
    let http = http(&billing, "lago", folder.path());
    billing.state().whims.push_back(Whim::NeverEnds);
    let began = Instant::now();
    assert_eq!(ask(&http).unwrap_err().code, "timed_out");
    assert!(began.elapsed() < Duration::from_mins(1));
}

#[test]
fn a_key_that_others_may_read_is_not_used_and_none_is_ever_shown() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let billing = Billing::start("lago");
    let config = Config::parse(&billing.lines("lago", folder.path()), "authority.toml").unwrap().engine.unwrap();
    let key = folder.path().join("engine.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(Http::open(config.clone()).err().unwrap().to_string().contains("others may read it"));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&key, "two words").unwrap();
    let why = Http::open(config).err().unwrap().to_string();
    assert!(why.contains("no key in it") && !why.contains("two words"), "{why}");
}
