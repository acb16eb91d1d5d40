//! What is fuzzed: everything that reads what others wrote. Each target takes any bytes at all, and must neither panic nor hang.
//! What was read is used as the agent uses it, so that a value which is only just accepted shows itself.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use axum::http::Method;
use meterd::ctl::quantity;
use meterd::domain::act::{ProcessRoot, Target};
use meterd::domain::agent::Agent;
use meterd::domain::audit::Audit;
use meterd::domain::chain::Head;
use meterd::domain::fact::Fact;
use meterd::domain::hearing::hear;
use meterd::domain::id::{AccountId, Attempt, BootId, Digest, Epoch, GpuId, GpuModel, JobName, NodeId, PaymentId};
use meterd::domain::ledger::AMOUNT_MAX;
use meterd::domain::log::LogReader;
use meterd::domain::money::{Credits, Decimal};
use meterd::domain::rates::charge::{Shape, burn, lines, total};
use meterd::domain::rates::{Card, Stated, Unit};
use meterd::domain::receipt::{Receipt, verify};
use meterd::domain::replay::{Comparison, Followed, Replay};
use meterd::domain::request::{
    ChangeRequest, CreateAccount, Pay, SetEnforcement, SettlePayment, StartRequest, StopRequest, Vouch, parse_policy, read_report,
    report_to_json,
};
use meterd::domain::time::{Mono, Nanos, Wall};
use meterd::domain::usage::{HeldGpu, Usage};
use meterd::domain::wire::{AccountPolicy, Answer, AnswerEntry, PROTOCOL, Push, Request, RequestEntry, UNIT};
use meterd::node::btf::Btf;
use meterd::node::cgroup::{AnonRead, Sampler, Which};
use meterd::node::cgroup_dir::{field, inode_of, number, parse_events, pids_in};
use meterd::node::config::Config;
use meterd::node::freezer::parse_state;
use meterd::node::gpu::{GpuConfig, GpuName, GpuReader};
use meterd::node::gpu_owner::{CgroupTree, OwnerTable};
use meterd::node::layout::Layout;
use meterd::node::local_api::operation::Operation;
use meterd::node::process_tree::ProcessTrees;
use meterd::node::spool;
use tempfile::TempDir;

/// Takes any bytes at all.
pub(crate) type Parse = fn(&[u8]);

/// All targets, by name.
pub(crate) const ALL: [(&str, Parse); 15] = [
    ("requests", requests),
    ("spool", spooled),
    ("http", http),
    ("config", config),
    ("card", card),
    ("journal", journal),
    ("log", log),
    ("wire", wire),
    ("receipt", receipt),
    ("quantity", quantities),
    ("cgroup", cgroup),
    ("detail", detail),
    ("proc", proc),
    ("nvml", nvml),
    ("btf", btf),
];

/// The target of that name.
pub(crate) fn named(name: &str) -> Option<Parse> {
    ALL.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}

fn requests(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // What was read is written and read again: a hook that spools its call must not change it.
    if let Ok(start) = StartRequest::parse(text) {
        assert_eq!(StartRequest::parse(&start.to_json().to_string()).as_ref(), Ok(&start));
    }
    if let Ok(stop) = StopRequest::parse(text) {
        assert_eq!(StopRequest::parse(&stop.to_json().to_string()), Ok(stop));
    }
    if let Ok(change) = ChangeRequest::parse(text) {
        assert_eq!(ChangeRequest::parse(&change.to_json().to_string()).as_ref(), Ok(&change));
    }
    if let Ok(report) = read_report(text) {
        assert_eq!(read_report(&report_to_json(&report).to_string()).as_ref(), Ok(&report));
    }
    if let Ok(create) = CreateAccount::parse(text) {
        assert_eq!(CreateAccount::parse(&create.to_json().to_string()).as_ref(), Ok(&create));
    }
    if let Ok(pay) = Pay::parse_deposit(text) {
        assert_eq!(Pay::parse_deposit(&pay.to_json().to_string()).as_ref(), Ok(&pay));
    }
    if let Ok(pay) = Pay::parse(text) {
        assert_eq!(Pay::parse(&pay.to_json().to_string()).as_ref(), Ok(&pay));
    }
    let _ = (SettlePayment::parse(text), Vouch::parse(text));
    if let Ok((policy, terms)) = parse_policy(text, "policy.toml") {
        let create = CreateAccount { account: "a".parse().expect("a name"), policy, terms };
        assert_eq!(CreateAccount::parse(&create.to_json().to_string()).as_ref(), Ok(&create));
    }
    if let Ok(set) = SetEnforcement::parse(text) {
        assert_eq!(SetEnforcement::parse(&set.to_json().to_string()), Ok(set));
    }
}

fn spooled(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = spool::parse(text);
    }
}

/// The first byte chooses the method; a path, a query and a body follow, each behind a line feed.
fn http(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let method = [Method::GET, Method::POST, Method::HEAD, Method::DELETE][usize::from(kind % 4)].clone();
    let mut parts = rest.splitn(3, |byte| *byte == b'\n');
    let path = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let query = parts.next().map(|query| String::from_utf8_lossy(query).into_owned());
    let body = parts.next().unwrap_or_default();
    let _ = Operation::read(&method, &path, query.as_deref(), body, &AccountPolicy::default());
}

fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, "meterd.toml") {
        Ok(config) => drop(config.access.by_uid(|_| None)),
        Err(mistakes) => mistakes.iter().for_each(|mistake| drop(mistake.to_string())),
    }
    drop(meterd::authority::config::Config::parse(text, "authority.toml"));
    drop(meterd::authority::config::Revoked::parse(text, "revoked"));
}

/// A card that is accepted must price any usage, or say that it cannot.
fn card(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let card = match Card::parse(text, "card.toml") {
        Ok(card) => card,
        Err(mistakes) => return mistakes.iter().for_each(|mistake| drop(mistake.to_string())),
    };
    let held = [HeldGpu { gpu: GpuId::try_from("GPU-1".to_owned()).unwrap(), model: GpuModel::new("NVIDIA H100") }];
    for size in [0_u64, 1, u64::MAX] {
        let usage = Usage { cpu_ns: size.into(), memory_byte_ns: u128::from(size) << 40, ..Usage::default() };
        let _ = (total(&card, &usage, &held), lines(&card, &usage, &held), card.cover(&held, &Stated::NOTHING));
    }
    let shape = Shape { cpu_milli: u64::MAX, memory_bytes: u64::MAX, gpus: &held };
    let _ = burn(&card, &shape);
}

/// A journal row, and a checkpoint. A row is taken in only if its hash is right: what it may hold is what the agent wrote.
fn journal(data: &[u8]) {
    if let Ok(fact) = Fact::decode(data) {
        // Numbers have more than one form in bytes; what is written is read as the same.
        assert_eq!(Fact::decode(&fact.encode()).as_ref(), Ok(&fact));
    }
    if let Some(agent) = Agent::decode(data) {
        assert!(Agent::decode(&agent.encode()).is_some());
    }
}

/// A sealed log and its verifier; what it holds is then tried under another card.
fn log(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut reader = LogReader::new(None);
    let right = text.split_inclusive('\n').all(|line| reader.line(line).is_ok());
    let _ = reader.finish().is_ok_and(|_| right);
    // The facts as they are, whatever the chain says of them.
    let mut replay = Replay::default();
    let (mut audit, mut head) = (Audit::behind(Head::START, None), Head::START);
    let card = Card::parse(CARD, "card.toml").expect("a card");
    for bytes in text.lines().filter_map(|line| unhex(line.split("\"bytes\":\"").nth(1)?.split('"').next()?)) {
        let Ok(fact) = Fact::decode(&bytes) else { continue };
        head = head.after(&bytes);
        let _ = audit.row(head.seq, &bytes, head.link);
        let closed: Option<Followed> = replay.take(&fact);
        let _ = Comparison::of(closed.iter().chain(replay.jobs()), &card);
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    text.as_bytes().chunks(2).map(pair).collect()
}

/// What node and authority say to each other.
fn wire(data: &[u8]) {
    let _ = postcard::from_bytes::<Request>(data);
    let _ = postcard::from_bytes::<Answer>(data);
    let _ = postcard::from_bytes::<Push>(data);
    let _ = serde_json::from_slice::<Request>(data);
    if let Ok(answer) = serde_json::from_slice::<Answer>(data) {
        believed(answer);
    }
}

/// The answer as one to a question that asked about its accounts: what is believed of it was asked about, once, in bounds.
fn believed(mut answer: Answer) {
    let nothing = Credits::ZERO;
    let entry = |entry: &AnswerEntry| RequestEntry {
        account: entry.account.clone(),
        unit: UNIT.to_owned(),
        granted_seen: nothing,
        returned: nothing,
        spent: AMOUNT_MAX,
        unfunded: nothing,
        owed: nothing,
        burn_per_s: nothing,
        at_least: nothing,
        validity: None,
        proof: None,
    };
    let request = Request {
        protocol: PROTOCOL,
        node: "n".parse().unwrap(),
        epoch: answer.epoch,
        boot: BootId([0; 16]),
        request: answer.request,
        previous: Vec::new(),
        refunds: Vec::new(),
        entries: answer.entries.iter().map(entry).collect(),
        generation_seen: 0,
        history: None,
        gangs: Vec::new(),
    };
    (answer.protocol, answer.digest) = (PROTOCOL, request.digest());
    let (left, doubts) = hear(&request, answer);
    for doubt in doubts {
        drop(doubt.to_string());
    }
    for entry in left.iter().flat_map(|answer| &answer.entries) {
        assert!(entry.unit == UNIT && nothing <= entry.granted && entry.granted <= AMOUNT_MAX && entry.settled <= AMOUNT_MAX);
    }
}

const CARD: &str = "card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"0.02\"\nunit = \"core-hour\"\n\
    [[line]]\nid = \"memory\"\nmeter = \"memory_charged\"\nprice = \"0.01\"\nunit = \"GiB-hour\"\n\
    [[line]]\nid = \"gpu\"\nmeter = \"gpu_held\"\nprice = \"4\"\nunit = \"gpu-hour\"\n";

/// A receipt and the offline verifier. Its card's digest is put in where the text says `@`.
fn receipt(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let card = Card::parse(CARD, "card.toml").unwrap();
    let text = text.replace('@', &card.digest.to_string());
    let Ok(receipt) = serde_json::from_str::<Receipt>(&text) else { return };
    let cards = BTreeMap::from([(card.digest, card)]);
    match verify(&receipt, &cards) {
        Ok(_) => {}
        Err(discrepancies) => discrepancies.iter().for_each(|discrepancy| drop(discrepancy.to_string())),
    }
    let written = receipt.to_json();
    assert!(serde_json::from_str::<Receipt>(&written).is_ok(), "{written}");
}

/// The kernel's description of its types; it is the kernel's, and as little trusted as anything.
fn btf(data: &[u8]) {
    if let Ok(btf) = Btf::parse(data) {
        let _ = (btf.offset("cgroup", &["bstat", "cputime"]), btf.word("cgroup_subsys_id", "memory_cgrp_id"), btf.function("call"));
    }
}

fn quantities(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = (quantity::length(text), quantity::bytes(text));
    if let Ok(credits) = text.parse::<Credits>() {
        assert_eq!(credits.to_string().parse(), Ok(credits));
        let _ = (credits.plus(credits), credits.minus(credits).checked_add(credits));
    }
    let _ = (text.parse::<Decimal>(), text.parse::<Unit>(), text.parse::<GpuName>());
    let _ = (text.parse::<JobName>(), text.parse::<AccountId>(), text.parse::<PaymentId>(), text.parse::<NodeId>(), text.parse::<GpuId>());
    let _ = (text.parse::<Digest>(), text.parse::<Epoch>(), text.parse::<BootId>(), GpuModel::new(text));
    let _ = meterd::domain::receipt::rfc3339(Wall(number(data).unwrap_or(0)));
    let mut table = OwnerTable::default();
    let _ = (table.cgroup(CgroupTree::V2, text, Attempt(1)), table.owner_of_path(CgroupTree::V2, text));
}

/// Files in memory that an edge reads as the kernel's.
struct Files {
    folder: TempDir,
}

impl Files {
    fn make(subfolders: &[&str]) -> Files {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
        for name in subfolders {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        Files { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, text: &[u8]) {
        std::fs::write(self.path(name), text).unwrap();
    }
}

thread_local! {
    static CGROUPS: RefCell<Option<(Files, Sampler)>> = const { RefCell::new(None) };
    static DETAIL: RefCell<Option<(Files, Sampler)>> = const { RefCell::new(None) };
    static PROC: RefCell<Option<(Files, ProcessTrees)>> = const { RefCell::new(None) };
    static NVML: RefCell<Option<(Files, GpuReader)>> = const { RefCell::new(None) };
}

const CGROUP_FILES: [&str; 4] = ["v2/jobs/a/cpu.stat", "v2/jobs/a/cgroup.events", "v2/jobs/a/memory.current", "v2/jobs/cpu.stat"];

fn cgroups() -> (Files, Sampler) {
    let files = Files::make(&["v2/jobs/a"]);
    for name in CGROUP_FILES.iter().chain(&["v2/jobs/a/cgroup.procs", "v2/jobs/cgroup.procs"]) {
        files.put(name, b"");
    }
    let layout = Arc::new(Layout { v2: Some(files.path("v2")), ..Layout::default() });
    let mut sampler = Sampler::new(Some(Arc::clone(&layout)), ProcessTrees::default(), || Mono(7));
    let dir = inode_of(&layout, &files.path("v2/jobs/a")).unwrap();
    sampler.attach(Attempt(1), &Target::Cgroups(vec![dir])).unwrap();
    (files, sampler)
}

/// The kernel's files of one cgroup, parted by a NUL each, through the reader with its kept descriptors; then mountinfo.
fn cgroup(data: &[u8]) {
    let _ = (parse_events(data), field(data, b"usage_usec"), number(data));
    let _ = Layout::from_mountinfo(data);
    CGROUPS.with_borrow_mut(|kept| {
        let (files, sampler) = kept.get_or_insert_with(cgroups);
        let mut parts = data.split(|byte| *byte == 0);
        for name in CGROUP_FILES {
            files.put(name, parts.next().unwrap_or_default());
        }
        files.put("procs", parts.next().unwrap_or_default());
        let _ = pids_in(std::fs::File::open(files.path("procs")).unwrap());
        sampler.changed(&[Attempt(1)]);
        assert_eq!(sampler.sample(Which::All).len(), 1);
    });
}

/// What is read of a cgroup every ten seconds, and the v1 freezer's word; parted by a NUL each.
fn detail(data: &[u8]) {
    const FILES: [&str; 9] = [
        "memory.peak",
        "memory.stat",
        "memory.events",
        "io.stat",
        "pids.current",
        "cpu.pressure",
        "memory.pressure",
        "io.pressure",
        "memory.current",
    ];
    let _ = parse_state(data);
    DETAIL.with_borrow_mut(|kept| {
        let (files, sampler) = kept.get_or_insert_with(|| {
            let (files, mut sampler) = cgroups();
            sampler.set_anon(AnonRead::EachLook);
            (files, sampler)
        });
        let mut parts = data.split(|byte| *byte == 0);
        for name in FILES {
            files.put(&format!("v2/jobs/a/{name}"), parts.next().unwrap_or_default());
        }
        assert_eq!(sampler.sample_closely(&[Attempt(1)]).len(), 1);
    });
}

/// `/proc/1/stat`, `/proc/1/status` and a task's stat, parted by a NUL each.
fn proc(data: &[u8]) {
    PROC.with_borrow_mut(|kept| {
        let (files, trees) = kept.get_or_insert_with(|| {
            let files = Files::make(&["1/task/1"]);
            let trees = ProcessTrees::in_proc(files.folder.path());
            (files, trees)
        });
        let mut parts = data.split(|byte| *byte == 0);
        for name in ["1/stat", "1/status", "1/task/1/stat"] {
            files.put(name, parts.next().unwrap_or_default());
        }
        let root = trees.identify(1).unwrap_or(ProcessRoot { pid: 1, start_ticks: 0 });
        assert_eq!(trees.read(&[root]).len(), 1);
        trees.forget(root);
    });
}

/// A library in the place of NVML's, which answers whatever the bytes say: any value, length, error and unterminated text.
fn any_nvml() -> (Files, GpuReader) {
    let files = Files::make(&["gpus"]);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(if env!("CARGO_PKG_NAME") == "meterd-fuzz" {
        "any_nvml.c"
    } else {
        "tests/fuzz/any_nvml.c"
    });
    let library = files.path("libnvidia-ml.so.1");
    let compiler = std::env::var_os("CC").unwrap_or("cc".into());
    let mut command = Command::new(compiler);
    command.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&library).arg(source).arg("-ldl");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let interval = Nanos::from_secs(1);
    let config = GpuConfig { library, interval, deadline: interval, driver_gpus: files.path("gpus") };
    let reader = GpuReader::new(config, Arc::new(|pid| Some(Attempt(pid.into()))));
    (files, reader)
}

fn nvml(data: &[u8]) {
    thread_local! { static NOW: RefCell<u64> = const { RefCell::new(0) } }
    let now = NOW.with_borrow_mut(|now| {
        // Far enough on that the library is opened anew where that is due.
        *now += 120_000_000_000;
        Mono(*now)
    });
    NVML.with_borrow_mut(|kept| {
        let (files, reader) = kept.get_or_insert_with(any_nvml);
        let answers = files.path("libnvidia-ml.so.1.bytes");
        let file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).open(answers).unwrap();
        file.write_all_at(data, 0).unwrap();
        for _ in 0..2 {
            let look = reader.look(now);
            let _ = serde_json::to_string(&look).unwrap();
            let _ = (look.resolve(&GpuName::Index(0)), look.resolve(&GpuName::Index(u32::MAX)));
        }
    });
}
