use super::super::agent::Agent;
use super::super::fact::Fact;
use super::super::wire::Verdict;
use super::*;

/// An answer about two accounts, as the agent wrote it before policies had a second version.
const FACT_BEFORE: &str = "010d0c000201610b6e616e6f2d6372656469741280e0a596bb110108160301808cee891a0280e0a596bb1180b09dc2df0180c8afa02500010180c0e285e368010380c0f588fe0601620b6e616e6f2d6372656469741280e0a596bb11010816030080d88ee16f0180b09dc2df0100010200000080f092cbdd08010203";

/// A checkpoint of the same age: accounts a, with the policy below, and b, with the defaults.
const CHECKPOINT_BEFORE: &str = "02000000000000020161120000000000000000000000000001808cee891a0280e0a596bb1180b09dc2df0180c8afa02500010180c0e285e368010380c0f588fe0600000000000000000e0000016200000000000000000000000000000080d88ee16f0180b09dc2df0100010200000080f092cbdd080000000000000000100000000000000000000000000000";

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// What was written then.
fn written_before() -> AccountPolicy {
    AccountPolicy {
        on_exhaustion: OnExhaustion::Terminate,
        grace: Nanos::from_secs(7),
        warn_before: Thresholds::try_from(vec![Nanos::from_secs(600), Nanos::from_secs(60)]).unwrap(),
        start_threshold: Credits::from_nano(5_000_000_000),
        start_predicted: StartPredicted::Check,
        enforcement: Enforcement::Notify,
        freeze_ttl: Some(Nanos::from_secs(3_600)),
        then: Then::Kill,
        victims: Victims::DearestFirst,
        victims_before: Nanos::from_secs(240),
        ..AccountPolicy::default()
    }
}

#[test]
fn a_fact_from_before_the_second_version_reads_as_it_was_meant() {
    let Fact::Answered { request: 12, entries, .. } = Fact::decode(&bytes(FACT_BEFORE)).unwrap() else { panic!("another fact") };
    assert_eq!(entries.iter().map(|entry| entry.policy).collect::<Vec<_>>(), [written_before(), AccountPolicy::default()]);
    assert!(entries.iter().all(|entry| entry.verdict == Verdict::Final && entry.version == 3), "what comes before and after it too");
}

#[test]
fn a_checkpoint_from_before_the_second_version_reads_as_it_was_meant() {
    let agent = Agent::decode(&bytes(CHECKPOINT_BEFORE)).unwrap();
    let of = |name: &str| &agent.accounts[&name.parse().unwrap()];
    assert_eq!((of("a").grant.policy, of("a").charged), (written_before(), Credits::from_nano(7)));
    assert_eq!((of("b").grant.policy, of("b").charged), (AccountPolicy::default(), Credits::from_nano(8)));
}

#[test]
fn a_policy_comes_back_from_the_journal_and_from_the_store() {
    for on_exhaustion in [OnExhaustion::Freeze, OnExhaustion::Kill, OnExhaustion::Stop, OnExhaustion::RefuseNew] {
        let policy =
            AccountPolicy { on_exhaustion, start_funded: Some(Nanos::from_secs(600)), unreachable: Unreachable::RunOn, ..written_before() };
        assert_eq!(postcard::from_bytes::<AccountPolicy>(&postcard::to_stdvec(&policy).unwrap()).unwrap(), policy);
        assert_eq!(serde_json::from_str::<AccountPolicy>(&serde_json::to_string(&policy).unwrap()).unwrap(), policy);
    }
}

#[test]
fn a_stored_text_without_the_new_parts_has_their_defaults() {
    let mut text = serde_json::to_value(written_before()).unwrap();
    let object = text.as_object_mut().unwrap();
    assert!(object.remove("start_funded_ns").is_some() && object.remove("unreachable").is_some());
    assert_eq!(serde_json::from_value::<AccountPolicy>(text).unwrap(), written_before());
}
