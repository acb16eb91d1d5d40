use proptest::prelude::*;

use super::*;
use crate::domain::bucket::Bucket;
use crate::domain::ladder::{THRESHOLDS_MAX, Then, Thresholds, Victims};
use crate::domain::ledger::{
    Alerts, Allowance, Commitment, CommitmentPeriod, DetachedStorage, Direction, Expiry, PaymentState, Priority, Purpose, RefillTerms,
    StorageAtZero, Terms, Unit, Verification,
};
use crate::domain::time::Wall;
use crate::domain::wire::{AccountPolicy, StartPredicted, Unreachable};

fn printed<T: std::fmt::Debug>(result: Result<T, Vec<Mistake>>) -> String {
    let lines: Vec<String> = result.unwrap_err().iter().map(|mistake| format!("[{}] {mistake}", mistake.code)).collect();
    lines.join("\n")
}

#[test]
fn ten_mistakes_in_one_start_request_are_all_named_with_pointer_and_hint() {
    let body = r#"{"job":"a b","acount":"physics","uid":4294967295,"cgroups":["sys/fs/cgroup/a","/a/../b","/c","/c"],"own":false,
        "gpus":["GPU-1","GPU-1",-1,"0",1.5],"time_limit_s":"1h","cpus":-1,"memory_bytes":1e30}"#;
    let result = StartRequest::parse(body);
    let mistakes = result.as_ref().unwrap_err();
    assert!(10 <= mistakes.len() && mistakes.iter().all(|mistake| mistake.hint.is_some()), "{mistakes:?}");
    insta::assert_snapshot!(printed(result));
}

#[test]
fn s5_what_only_stores_may_state_that_it_is_given_no_cpu_and_no_memory() {
    let body = r#"{"job":"volume","account":"a","cgroups":["/sys/fs/cgroup/volume"],"cpus":0,"memory_bytes":0,"storage_bytes":1}"#;
    let start = StartRequest::parse(body).unwrap();
    assert_eq!((start.cpus, start.memory_bytes, start.storage_bytes), (Some(0), Some(0), Some(1)));
    let change = ChangeRequest::parse(r#"{"cpus":0,"memory_bytes":0}"#).unwrap();
    assert_eq!((change.cpus, change.memory_bytes), (Some(0), Some(0)));
}

#[test]
fn a_place_is_given_exactly_once() {
    let body = |place: &str| format!(r#"{{"job":"j","account":"a"{place}}}"#);
    let code = |place: &str| StartRequest::parse(&body(place)).unwrap_err()[0].code;
    assert_eq!(code(""), "one_place");
    assert_eq!(code(r#","own":true,"process":{"pid":1}"#), "one_place");
    assert_eq!(code(r#","own":false"#), "out_of_range");
    assert_eq!(code(r#","cgroups":[]"#), "out_of_range");
    assert_eq!(code(r#","process":{"pid":0}"#), "out_of_range");
    assert_eq!(code(r#","slurm":{"job_id":1,"sluid":"../x"}"#), "malformed");
    let place = |place: &str| StartRequest::parse(&body(place)).unwrap().place;
    assert_eq!(place(r#","own":true"#), Place::Own);
    assert_eq!(place(r#","own":null,"process":{"pid":1}"#), Place::Process(1));
    let sluid = Some("sA1B2".to_owned());
    assert_eq!(place(r#","slurm":{"job_id":7,"sluid":"sA1B2"}"#), Place::Slurm(SlurmJob { job_id: 7, sluid }));
}

#[test]
fn a_caller_cannot_state_an_outcome_that_only_the_agent_finds_out() {
    for outcome in Outcome::STATED {
        assert!(StopRequest::parse(&format!(r#"{{"outcome":"{outcome}"}}"#)).is_ok());
    }
    for outcome in [Outcome::NodeRebooted, Outcome::Vanished, Outcome::OutOfCredit] {
        assert_eq!(StopRequest::parse(&format!(r#"{{"outcome":"{outcome}"}}"#)).unwrap_err()[0].code, "unknown_word");
    }
}

#[test]
fn a_top_up_is_positive_bounded_and_in_quotes() {
    let code = |amount: &str| Pay::parse_deposit(&format!(r#"{{"amount":{amount},"bucket":"paid"}}"#)).unwrap_err()[0].code;
    assert_eq!(code("\"0\""), "out_of_range");
    assert_eq!(code("\"-1\""), "out_of_range");
    assert_eq!(code("\"1000000000000000.000000001\""), "out_of_range");
    assert_eq!(code("\"0.0000000001\""), "too_fine");
    assert_eq!(code("12.5"), "wrong_type");
    let most = Pay::parse_deposit(r#"{"amount":"1000000000000000","bucket":"free"}"#).unwrap();
    assert_eq!(most, Pay::deposit(TOP_UP_MAX, Bucket::Free, None));
}

#[test]
fn an_account_without_a_policy_has_the_defaults() {
    let created = CreateAccount::parse(r#"{"account":"physics"}"#).unwrap();
    assert_eq!(created.policy, AccountPolicy::default());
    let mistakes = printed(CreateAccount::parse(r#"{"account":"physics","on_exhaustion":"freze","grace_s":-1,"start_threshold":5}"#));
    insta::assert_snapshot!(mistakes, @r#"
    [unknown_word] /on_exhaustion: "freze" is not known here (hint: did you mean freeze? Allowed: freeze, stop, terminate, kill, refuse_new, allow_negative)
    [out_of_range] /grace_s: -1 is out of range 0..=86400 (hint: an integer from 0 to 86400, without quotes)
    [wrong_type] /start_threshold: expected a decimal in quotes, found an integer (hint: write "5")
    "#);
}

#[test]
fn a_body_above_64_kib_is_refused() {
    let body = format!(r#"{{"mode":"observe"{}}}"#, " ".repeat(BODY_BYTES_MAX));
    assert_eq!(SetEnforcement::parse(&body).unwrap_err()[0].code, "too_large");
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9][a-zA-Z0-9._:@/+-]{0,20}"
}

fn place() -> impl Strategy<Value = Place> {
    let paths = prop::collection::btree_set("/[a-z]{1,8}(/[a-z0-9_é ]{1,8}){0,3}", 1..4);
    prop_oneof![
        paths.prop_map(|paths| Place::Cgroups(paths.into_iter().collect())),
        (1..=u64::from(u32::MAX), prop::option::of("[A-Za-z0-9]{1,32}"))
            .prop_map(|(job_id, sluid)| Place::Slurm(SlurmJob { job_id, sluid })),
        (1..=PID_MAX).prop_map(Place::Process),
        Just(Place::Own),
    ]
}

fn gpus() -> impl Strategy<Value = Vec<GpuWanted>> {
    let uuid = "(GPU|MIG)-[a-f0-9-]{4,36}".prop_map(|id| GpuWanted::Id(id.parse().unwrap()));
    let index = (0..=GPU_INDEX_MAX).prop_map(GpuWanted::Index);
    prop::collection::btree_set(prop_oneof![uuid, index], 0..9).prop_map(|gpus| gpus.into_iter().collect())
}

fn start() -> impl Strategy<Value = StartRequest> {
    let limits = (
        prop::option::of(0..=UID_MAX),
        prop::option::of(1..=TIME_LIMIT_S_MAX),
        prop::option::of(1..=CPUS_MAX),
        prop::option::of(1..=MEMORY_BYTES_MAX),
        job_policy(),
    );
    (name(), name(), place(), gpus(), limits).prop_map(|(job, account, place, gpus, (uid, limit, cpus, memory_bytes, policy))| {
        StartRequest {
            traits: Traits::new(),
            job: job.parse().unwrap(),
            account: account.parse().unwrap(),
            owner: uid.map(Uid),
            place,
            gpus,
            time_limit: limit.map(Nanos::from_secs),
            cpus,
            memory_bytes,
            policy,
            bid: None,
            storage_bytes: None,
            gang: None,
        }
    })
}

fn job_policy() -> impl Strategy<Value = JobPolicy> {
    let stop = prop::sample::select(vec![OnExhaustion::Terminate, OnExhaustion::Kill]);
    let signal = prop::sample::select(WarnSignal::ALL.map(|(_, signal)| signal).to_vec());
    (prop::option::of(stop), prop::option::of(signal)).prop_map(|(on_exhaustion, warn_signal)| JobPolicy { on_exhaustion, warn_signal })
}

fn policy() -> impl Strategy<Value = AccountPolicy> {
    let on_exhaustion = prop::sample::select(vec![
        OnExhaustion::Freeze,
        OnExhaustion::Stop,
        OnExhaustion::Terminate,
        OnExhaustion::Kill,
        OnExhaustion::RefuseNew,
        OnExhaustion::AllowNegative,
    ]);
    let start_predicted = prop::sample::select(vec![StartPredicted::Check, StartPredicted::Ignore]);
    let warnings = prop::collection::vec(0..=7 * DAY_S, 0..=THRESHOLDS_MAX);
    let victims = vec![Victims::Together, Victims::NewestFirst, Victims::OldestFirst, Victims::DearestFirst];
    let ladder = (
        prop::sample::select(Enforcement::ALL.to_vec()),
        prop::option::of(1..=DAY_S),
        prop::sample::select(vec![Then::Terminate, Then::Kill]),
        prop::sample::select(victims),
        1..=DAY_S,
    );
    (on_exhaustion, 0..=DAY_S, warnings, 0..=TOP_UP_MAX.nano(), start_predicted, ladder).prop_map(
        |(on_exhaustion, grace, warnings, threshold, start_predicted, (enforcement, ttl, then, victims, before))| AccountPolicy {
            on_exhaustion,
            grace: Nanos::from_secs(grace),
            warn_before: Thresholds::try_from(warnings.into_iter().map(Nanos::from_secs).collect::<Vec<_>>()).unwrap(),
            start_threshold: Credits::from_nano(threshold),
            start_predicted,
            enforcement,
            freeze_ttl: ttl.map(Nanos::from_secs),
            then,
            victims,
            victims_before: Nanos::from_secs(before),
            start_funded: ttl.map(Nanos::from_secs),
            unreachable: if threshold % 2 == 0 { Unreachable::Freeze } else { Unreachable::RunOn },
        },
    )
}

fn amount() -> impl Strategy<Value = Credits> {
    (1..=TOP_UP_MAX.nano()).prop_map(Credits::from_nano)
}

fn terms() -> impl Strategy<Value = Terms> {
    let unit = prop::option::of(("[A-Z]{3}", 1..1_000_u64, 1..1_000_u64)).prop_map(|unit| {
        unit.map(|(name, over, under)| Unit { name: name.parse().unwrap(), credits_per_unit: format!("{over}/{under}").parse().unwrap() })
    });
    let percents = prop::collection::btree_set(1..=99_u8, 0..4);
    let alerts =
        (percents, prop::collection::btree_set(amount(), 0..3), prop::option::of(amount())).prop_map(|(percents, below, reference)| {
            Alerts { percents: percents.into_iter().collect(), below: below.into_iter().collect(), reference }
        });
    let refill =
        (amount(), amount(), 0..DAY_S).prop_map(|(below, amount, wait)| RefillTerms { below, amount, wait: Nanos::from_secs(wait) });
    let allowance = (amount(), 1..=28_u8).prop_map(|(amount, day)| Allowance { amount, day });
    let commitment = (amount(), any::<bool>(), 1..=28_u8, prop::option::of(0..1_u64 << 40), 1..1_u64 << 40).prop_map(
        |(amount, monthly, day, starts, length)| Commitment {
            amount,
            period: if monthly { CommitmentPeriod::Monthly } else { CommitmentPeriod::Once },
            day,
            starts: starts.map(Wall),
            ends: (!monthly || day < 20).then(|| Wall(starts.unwrap_or(0) + length)),
        },
    );
    let choices = (any::<bool>(), any::<bool>(), any::<bool>(), 0..=TOP_UP_MAX.nano());
    (unit, alerts, prop::option::of(refill), prop::option::of(allowance), prop::option::of(commitment), choices).prop_map(
        |(unit, alerts, refill, allowance, commitment, (required, detach, free, topup_min))| Terms {
            unit,
            topup_min: Credits::from_nano(topup_min),
            credit_lasts: required.then(|| Nanos::from_secs(DAY_S * (1 + u64::try_from(topup_min % 3_650).unwrap()))),
            verification: if required { Verification::Required } else { Verification::NotNeeded },
            alerts,
            refill,
            allowance,
            storage: if detach { StorageAtZero::Detach } else { StorageAtZero::Keep },
            detached_storage: if free { DetachedStorage::Free } else { DetachedStorage::Costs },
            commitment,
        },
    )
}

fn pay() -> impl Strategy<Value = Pay> {
    let purpose = prop_oneof![
        Just(Purpose::Refund),
        Just(Purpose::Correction(Direction::Adds)),
        Just(Purpose::Correction(Direction::Takes)),
        name().prop_map(|to| Purpose::Transfer(to.parse().unwrap())),
    ];
    let in_unit = ("[0-9]{1,9}\\.[1-9]", "[A-Za-z0-9]{1,16}")
        .prop_map(|(amount, unit)| Amount::InUnit { amount: amount.parse().unwrap(), unit: unit.parse().unwrap() });
    let amount = prop_oneof![amount().prop_map(Amount::Credits), in_unit];
    (purpose, amount, any::<bool>(), prop::option::of(name())).prop_map(|(purpose, amount, paid, payment)| Pay {
        purpose,
        amount,
        bucket: if paid { Bucket::Paid } else { Bucket::Free },
        payment: payment.map(|name| name.parse().unwrap()),
        ..Pay::deposit(Credits::ZERO, Bucket::Paid, None)
    })
}

proptest! {
    #[test]
    fn a_start_request_reads_back_from_its_json(request in start()) {
        prop_assert_eq!(StartRequest::parse(&request.to_json().to_string()), Ok(request));
    }

    #[test]
    fn an_account_reads_back_from_its_json(account in name(), policy in policy(), terms in terms()) {
        let request = CreateAccount { account: account.parse().unwrap(), policy, terms };
        prop_assert_eq!(CreateAccount::parse(&request.to_json().to_string()), Ok(request));
    }

    #[test]
    fn a_top_up_reads_back_from_its_json(nano in 1..=TOP_UP_MAX.nano(), paid: bool, payment in prop::option::of(name())) {
        let bucket = if paid { Bucket::Paid } else { Bucket::Free };
        let request = Pay::deposit(Credits::from_nano(nano), bucket, payment.map(|name| name.parse().unwrap()));
        prop_assert_eq!(Pay::parse_deposit(&request.to_json().to_string()), Ok(request));
    }

    #[test]
    fn any_other_payment_reads_back_from_its_json(request in pay()) {
        prop_assert_eq!(Pay::parse(&request.to_json().to_string()), Ok(request));
    }

    #[test]
    fn a_deposit_with_all_it_can_say_reads_back_from_its_json(request in pay(), priority: u8, expires in 0..4_000_000_000_u64, pending: bool) {
        let state = if pending { PaymentState::Pending } else { PaymentState::Completed };
        let request = Pay { purpose: Purpose::Deposit, priority: Priority(priority), expires: Expiry::At(Wall(expires * 1_000)), state, ..request };
        prop_assert_eq!(Pay::parse_deposit(&request.to_json().to_string()), Ok(request));
    }

    #[test]
    fn a_stop_and_a_mode_read_back_from_their_json(exit_code: Option<i32>, outcome in 0..6_usize, mode in 0..3_usize) {
        let stop = StopRequest { outcome: Outcome::STATED[outcome], exit_code };
        prop_assert_eq!(StopRequest::parse(&stop.to_json().to_string()), Ok(stop));
        let mode = SetEnforcement { mode: Enforcement::ALL[mode] };
        prop_assert_eq!(SetEnforcement::parse(&mode.to_json().to_string()), Ok(mode));
    }
}

#[test]
fn a_policy_file_may_say_start_rule_unreachable_rule_alert_thresholds_and_residual_meters() {
    let text = "start_rule = { threshold = \"10\", predicted = \"check\", funded_minutes = 5 }\nunreachable_rule = \"run_on\"\n\
        residual_meters = []\nalert_thresholds = { percents = [70, 40, 10] }\n";
    let plain = "start_threshold = \"10\"\nstart_predicted = \"check\"\nstart_funded_s = 300\nunreachable = \"run_on\"\n\
        detached_storage = \"free\"\nalerts = { percents = [70, 40, 10] }\n";
    let read = |text: &str| super::parse_policy(text, "p.toml").unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    assert_eq!(read(text), read(plain));
    let costs = |text: &str| read(text).1.detached_storage;
    assert_eq!(costs("residual_meters = [\"storage\"]"), crate::domain::ledger::DetachedStorage::Costs);
    let both = super::parse_policy("unreachable = \"freeze\"\nunreachable_rule = \"run_on\"", "p.toml").unwrap_err();
    assert_eq!((both.len(), both[0].code), (1, "unknown_key"), "which of both is meant nobody knows");
    let wrong =
        super::parse_policy("start_rule = { threshold = \"ten\", funded_minutes = -1 }\nunreachable_rule = \"no\"", "p.toml").unwrap_err();
    assert_eq!(wrong.len(), 3, "{wrong:?}");
}
