use super::*;
use crate::domain::form::Place;
use crate::domain::ladder::{Then, Thresholds, Victims};
use crate::domain::wire::{OnExhaustion, StartPredicted, Unreachable};
use proptest::prelude::*;

fn codes(text: &str) -> Vec<&'static str> {
    Config::parse(text, "meterd.toml").unwrap_err().iter().map(|mistake| mistake.code).collect()
}

#[test]
fn the_default_file_and_an_empty_one_read_as_the_defaults() {
    assert_eq!(Config::parse(Config::default_text(), "meterd.toml"), Ok(Config::default()));
    assert_eq!(Config::parse("", "meterd.toml"), Ok(Config::default()));
    let packaged = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/meterd.toml");
    assert_eq!(std::fs::read_to_string(packaged).unwrap(), Config::default_text(), "the package ships what the agent prints");
}

#[test]
fn the_default_file_names_every_key() {
    let uncommented: String = Config::default_text()
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| (rest.contains(" = ") || rest.starts_with('[')) && !rest.starts_with(' '))
                .unwrap_or(line)
                .to_owned()
                + "\n"
        })
        .collect();
    let config = Config::parse(&uncommented, "meterd.toml").unwrap();
    assert_eq!(config.node, Some("gpu-07".parse().unwrap()));
    assert!(matches!(config.authority, AuthorityConfig::Network(_)));
    let users: Vec<&str> = config.access.accounts.iter().map(|entry| entry.user.as_str()).collect();
    assert_eq!(users, ["alice", "1001"]);
}

#[test]
#[expect(clippy::too_many_lines, reason = "every key there is")]
fn every_key_is_read() {
    let text = r#"
node = "n1"
state_dir = "/s"
runtime_dir = "/r"
rate_card = "/c.toml"
rate_card_key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
provider = "north-campus"
enforcement = "enforce"
interval_ms = 100
[cgroup]
parent = "meterd.slice/jobs"
walk = "off"
[access]
operators_group = "ops"
hook_uids = [0, 64030]
accounts = { alice = ["a", "b"] }
[status]
listen = "[::1]:80"
[gpu]
nvml = "off"
library = "/opt/libnvidia-ml.so"
[log]
level = "debug"
format = "json"
[journal]
keep_days = 1
keep_mib = 64

[budget]
cpu_percent = 2
memory_mib = 64
[policy]
on_exhaustion = "kill"
grace_s = 1
warn_before_s = [2, 60]
start_threshold = "5"
start_predicted = "check"
enforcement = "notify"
freeze_ttl_s = 3600
then = "kill"
victims = "dearest_first"
victims_before_s = 9
start_funded_s = 600
unreachable = "run_on"
[warn]
terminals = "off"
command = ["/bin/tell", "-v"]
user = "daemon"
signal = "USR2"
[exempt]
accounts = ["ops"]
uids = [0]
[blast_radius]
freeze_accounts = 5
end_accounts = 0
window_s = 60
"#;
    let account = |name: &str| name.parse::<AccountId>().unwrap();
    let expected = Config {
        authority: AuthorityConfig::Embedded,
        engine: None,
        node: Some("n1".parse().unwrap()),
        state_dir: PathBuf::from("/s"),
        runtime_dir: PathBuf::from("/r"),
        rate_card: PathBuf::from("/c.toml"),
        rate_card_key: Some("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a".parse().unwrap()),
        provider: Some("north-campus".parse().unwrap()),
        enforcement: Enforcement::Enforce,
        interval: Nanos::from_millis(100),
        cgroup: CgroupConfig { parent: "meterd.slice/jobs".to_owned(), walk: CgroupWalk::Off },
        access: Access {
            operators_group: "ops".to_owned(),
            hook_uids: vec![Uid(0), Uid(64_030)],
            accounts: vec![UserAccounts { user: "alice".to_owned(), accounts: vec![account("a"), account("b")] }],
        },
        status: StatusListen::On("[::1]:80".parse().unwrap()),
        gpu: GpuConfig { nvml: Nvml::Off, library: "/opt/libnvidia-ml.so".to_owned() },
        log: LogConfig { level: LogLevel::Debug, format: LogFormat::Json },
        journal: JournalConfig { keep_days: 1, keep_mib: 64 },
        budget: Budget { cpu_percent: 2, memory_bytes: 64 << 20 },
        policy: AccountPolicy {
            on_exhaustion: OnExhaustion::Kill,
            grace: Nanos::from_secs(1),
            warn_before: Thresholds::try_from(vec![Nanos::from_secs(60), Nanos::from_secs(2)]).unwrap(),
            start_threshold: "5".parse().unwrap(),
            start_predicted: StartPredicted::Check,
            enforcement: Enforcement::Notify,
            freeze_ttl: Some(Nanos::from_secs(3_600)),
            then: Then::Kill,
            victims: Victims::DearestFirst,
            victims_before: Nanos::from_secs(9),
            start_funded: Some(Nanos::from_secs(600)),
            unreachable: Unreachable::RunOn,
        },
        ladder: Ladder {
            exempt: Exempt { accounts: [account("ops")].into(), uids: [Uid::ROOT].into() },
            blast: Blast { freeze_accounts: Some(5), end_accounts: None, window: Nanos::from_secs(60) },
            warn_signal: Some(WarnSignal::Usr2),
        },
        warn: WarnConfig { terminals: Terminals::Off, command: vec!["/bin/tell".to_owned(), "-v".to_owned()], user: "daemon".to_owned() },
    };
    assert_eq!(Config::parse(text, "meterd.toml"), Ok(expected));
}

#[test]
fn ten_mistakes_in_one_config_are_all_named_with_line_and_hint() {
    let text = r#"node = "my node"
state_dir = "var/lib/meterd"
rate-card = "/etc/meterd/ratecard.toml"
enforcement = "enforced"
interval_ms = 0

[cgroup]
parent = "/sys/fs/cgroup/meterd"

[access]
hook_uids = [0, "slurm", 0]

[access.accounts]
"alice smith" = ["a"]
bob = []
99999999999 = ["a"]

[status]
listen = "0.0.0.0:9464"

[gpu]
nvml = true
library = "./libnvidia-ml.so.1"

[log]
level = "verbose"

[journal]
keep_days = "7d"

[policy]
start_threshold = 5.0
grace = 30

[polcy]
"#;
    let mistakes = Config::parse(text, "meterd.toml").unwrap_err();
    assert!(10 <= mistakes.len());
    assert!(mistakes.iter().all(|mistake| mistake.hint.is_some() && matches!(mistake.place, Place::File { .. })), "{mistakes:?}");
    insta::assert_snapshot!(ConfigFailure::Mistakes(mistakes).to_string());
}

#[test]
fn the_status_page_is_for_this_machine_alone() {
    let listen = |address: &str| Config::parse(&format!("[status]\nlisten = {address:?}\n"), "meterd.toml").map(|config| config.status);
    assert_eq!(listen("off"), Ok(StatusListen::Off));
    assert_eq!(listen("127.1.2.3:1"), Ok(StatusListen::On(SocketAddr::from(([127, 1, 2, 3], 1)))));
    for (address, code) in [
        ("0.0.0.0:9464", "not_loopback"),
        ("[::]:9464", "not_loopback"),
        ("10.0.0.1:9464", "not_loopback"),
        ("localhost:9464", "malformed"),
        ("9464", "malformed"),
    ] {
        assert_eq!(listen(address).unwrap_err()[0].code, code, "{address}");
    }
}

#[test]
fn a_section_must_be_a_table_and_the_cgroup_parent_stays_below_the_root() {
    assert_eq!(codes("gpu = \"auto\"\n"), ["wrong_type"]);
    for parent in ["/a", "a/../b", "..", "a//b", ""] {
        assert_eq!(codes(&format!("[cgroup]\nparent = {parent:?}\n")).len(), 1, "{parent}");
    }
}

#[test]
fn users_become_uids_and_all_unknown_ones_are_named() {
    let text = "[access.accounts]\nalice = [\"a\"]\n1000 = [\"b\", \"a\"]\n";
    let access = Config::parse(text, "meterd.toml").unwrap().access;
    let names: Vec<AccountId> = ["a", "b"].map(|name| name.parse().unwrap()).to_vec();
    let known = |user: &str| (user == "alice").then_some(Uid(1_000));
    assert_eq!(access.by_uid(known), Ok(BTreeMap::from([(Uid(1_000), names)])));
    assert_eq!(access.by_uid(|_| None), Err(vec![UnknownUser("alice".to_owned())]));
}

#[test]
fn a_file_that_cannot_be_read_is_told_apart_from_one_with_mistakes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meterd.toml");
    assert!(matches!(Config::load(&path), Err(ConfigFailure::Unreadable { .. })));
    std::fs::write(&path, b"node = \"\xff\"").unwrap();
    assert!(matches!(Config::load(&path), Err(ConfigFailure::Unreadable { .. })), "not UTF-8");
    std::fs::write(&path, "interval_ms = 0\n").unwrap();
    let failure = Config::load(&path).unwrap_err().to_string();
    assert_eq!(
        failure,
        format!("{}:1:15: interval_ms: 0 is out of range 100..=10000 (hint: an integer from 100 to 10000, without quotes)", path.display())
    );
    std::fs::write(&path, Config::default_text()).unwrap();
    assert_eq!(Config::load(&path).unwrap(), Config::default());
}

proptest! {
    #[test]
    fn no_text_makes_the_config_reader_panic(at: prop::sample::Index, insert in "[\"\\[\\]=.a-z0-9{}\n-]{0,6}") {
        let mut text = Config::default_text().to_owned();
        text.insert_str(at.index(text.len()), &insert);
        if let Err(mistakes) = Config::parse(&text, "meterd.toml") {
            prop_assert!(!mistakes.is_empty());
        }
    }
}
