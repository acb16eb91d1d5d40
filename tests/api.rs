//! The local API over real sockets, in front of a loop that only notes what reaches it.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use meterd::authority::embedded::Embedded;
use meterd::authority::store::Store;
use meterd::domain::act::Target;
use meterd::domain::agent::start::{Novelty, Refusal, Reply};
use meterd::domain::bucket::Bucket;
use meterd::domain::enforcement::Enforcement;
use meterd::domain::id::{AccountId, Attempt, Uid};
use meterd::domain::job::Phase;
use meterd::domain::ledger::{ClosePolicy, Terms};
use meterd::domain::meter::{Host, Reading};
use meterd::domain::money::Credits;
use meterd::domain::time::{Nanos, Wall};
use meterd::domain::view::{AccountState, AccountView, JobView, Timestamp, View};
use meterd::domain::wire::AccountPolicy;
use meterd::node::access::Access;
use meterd::node::clock;
use meterd::node::handle::{Board, Handle, Inbox, Picture, Stats};
use meterd::node::local_api::{Api, bind};
use meterd::node::upstream::Authority;
use serde_json::{Value, json};

/// However busy the machine, a step that takes longer than this does not come.
const PATIENCE: Duration = Duration::from_mins(1);
/// `nobody`.
const OTHER_UID: u32 = 65_534;

/// The API of a fake agent, on a Unix socket and on TCP.
struct Served {
    folder: tempfile::TempDir,
    tcp: std::net::SocketAddr,
    /// What reached the loop.
    seen: Arc<Mutex<Vec<String>>>,
    board: Arc<Board>,
    _runtime: tokio::runtime::Runtime,
}

fn served() -> Served {
    served_every(Nanos::from_secs(3_600))
}

fn served_every(interval: Nanos) -> Served {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (sender, inbox) = crossbeam_channel::bounded(64);
    let board = Arc::new(Board::default());
    drop(board.hang(picture()));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&seen);
    std::thread::spawn(move || inbox.iter().for_each(|message| answer(message, &notes)));
    let store = Store::open(&folder.path().join("authority.db"), ClosePolicy::OnSuccessor, clock::mono()).unwrap();
    let authority = Arc::new(Authority::Embedded(Embedded::start(store, clock::now, |_| ()).unwrap()));
    let lab: AccountId = "lab".parse().unwrap();
    authority.create_account(lab.clone(), AccountPolicy::default(), Terms::default()).unwrap();
    authority.top_up(lab.clone(), Bucket::Paid, "10".parse().unwrap(), "p-1".parse().unwrap()).unwrap();
    authority.create_account("secret".parse().unwrap(), AccountPolicy::default(), Terms::default()).unwrap();
    let access = Access {
        agent: Uid(rustix::process::geteuid().as_raw()),
        operators_gid: None,
        hooks: BTreeSet::new(),
        accounts: BTreeMap::from([(Uid(OTHER_UID), BTreeSet::from([lab]))]),
    };
    let api = Api::new(Handle::new(sender, Arc::clone(&board)), authority, folder.path().join("state"), access, interval);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _inside = runtime.enter();
    let unix = tokio::net::UnixListener::from_std(bind(&folder.path().join("sock")).unwrap()).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    tcp.set_nonblocking(true).unwrap();
    let address = tcp.local_addr().unwrap();
    runtime.spawn(api.clone().serve_unix(unix));
    runtime.spawn(api.serve_tcp(tokio::net::TcpListener::from_std(tcp).unwrap()));
    Served { folder, tcp: address, seen, board, _runtime: runtime }
}

/// The fake loop: everything succeeds, except what is named `poor…`.
fn answer(message: Inbox, seen: &Mutex<Vec<String>>) {
    let note = |text: String| seen.lock().unwrap().push(text);
    match message {
        Inbox::Start { request, caller, reply } => {
            note(format!("start {} for {:?} by {} in {:?}", request.job, request.owner.map(|uid| uid.0), caller.uid.0, request.place));
            assert!(caller.pidfd.is_some() && 0 < caller.pid);
            let poor = Reply::Refused(Refusal::new("no_credit", "account lab has 0 credits left", "top up the account"));
            let good = Reply::Started { attempt: Attempt(9), target: Target::OwnCgroups(Vec::new()), novelty: Novelty::New };
            let _ = reply.send(if request.job.as_str().contains("poor") { poor } else { good });
        }
        Inbox::Stop { name, ending, reply } => {
            note(format!("stop {name} {} {:?}", ending.outcome, ending.exit_code));
            let _ = reply.send(Reply::StopNoted { attempt: Attempt(9), phase: Phase::Ended });
        }
        Inbox::Enforcement { mode, by, reply } => {
            note(format!("enforcement {mode} by {}", by.0));
            let _ = reply.send(Reply::Done);
        }
        Inbox::Receipt { reply, .. } => {
            let _ = reply.send(None);
        }
        _ => note("something else".to_owned()),
    }
}

fn picture() -> Picture {
    let view = View {
        node: "gpu-07".parse().unwrap(),
        at: "2026-03-01T12:00:00.000Z".to_owned(),
        enforcement: Enforcement::Observe,
        card: None,
        card_refused: Some("secret-file.toml:1:1: no".to_owned()),
        seq: 5,
        durable_seq: 5,
        authority_asked: 1,
        authority_unanswered: None,
        corrections: meterd::domain::correction::Corrections::default(),
        unmetered: Vec::new(),
        accounts: vec![AccountView {
            account: "secret".parse().unwrap(),
            state: AccountState::Funded,
            in_hand: "3".parse().unwrap(),
            free: Credits::ZERO,
            spent: Credits::ZERO,
            unfunded: Credits::ZERO,
            owed: Credits::ZERO,
            burn_per_hour: Credits::ZERO,
            lasts_s: None,
            verdict: None,
            policy: AccountPolicy::default(),
            armed: false,
            balance: None,
        }],
        jobs: vec![job("slurm:1", 1, 1000), job("u65534-mine", 2, OTHER_UID)],
    };
    Picture {
        view: Some(view),
        taken_at_ns: clock::mono().0,
        gpus: Some(Reading::Seen(Vec::new())),
        host: Host { cpu_count: 2, memory_bytes: 1 << 30 },
        stats: Stats::default(),
    }
}

fn job(name: &str, attempt: u64, uid: u32) -> JobView {
    JobView {
        attempt: Attempt(attempt),
        job: name.parse().unwrap(),
        account: "secret".parse().unwrap(),
        owner_uid: Uid(uid),
        phase: Phase::Running,
        frozen_by: None,
        opened: Timestamp(Wall(1_772_359_200_000)),
        ended: None,
        cpu_ns: 1,
        memory_bytes: Some(1),
        gpus: Vec::new(),
        running_ms: 1,
        frozen_ms: 0,
        charge: Credits::ZERO,
        drawn: Credits::ZERO,
        unfunded: Credits::ZERO,
        missing: Vec::new(),
        gang: None,
        outbid: None,
        waived: None,
        refunded: None,
    }
}

/// An answer: status, head, body.
struct Heard {
    status: u16,
    head: String,
    body: String,
}

impl Heard {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

fn call(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> Heard {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    // An answer may come, and the connection close, before all is sent.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{method} {path}: no answer, but {text:?}"));
    Heard { status: head.split(' ').nth(1).unwrap().parse().unwrap(), head: head.to_lowercase(), body: body.to_owned() }
}

impl Served {
    fn socket(&self) -> PathBuf {
        self.folder.path().join("sock")
    }

    fn unix_stream(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn tcp_stream(&self) -> TcpStream {
        let stream = TcpStream::connect(self.tcp).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn unix(&self, method: &str, path: &str, body: &str) -> Heard {
        call(self.unix_stream(), method, path, body)
    }

    fn tcp(&self, method: &str, path: &str, body: &str) -> Heard {
        call(self.tcp_stream(), method, path, body)
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn start(job: &str) -> String {
    json!({ "job": job, "account": "lab", "own": true }).to_string()
}

#[test]
fn an_operator_reaches_every_route() {
    let served = served();
    let table: &[(&str, &str, &str, u16)] = &[
        ("GET", "/", "", 200),
        ("GET", "/healthz", "", 200),
        ("GET", "/readyz", "", 503),
        ("GET", "/metrics", "", 200),
        ("GET", "/v1/status", "", 200),
        ("GET", "/v1/jobs", "", 200),
        ("GET", "/v1/jobs/slurm:1", "", 200),
        ("GET", "/v1/jobs/slurm%3A1", "", 200),
        ("GET", "/v1/jobs/other", "", 404),
        ("GET", "/v1/accounts", "", 200),
        ("GET", "/v1/accounts/lab", "", 200),
        ("GET", "/v1/accounts/nobody", "", 404),
        ("GET", "/v1/accounts/lab/ledger?limit=5", "", 200),
        ("GET", "/v1/accounts/lab/ledger?limit=0", "", 400),
        ("POST", "/v1/jobs", &start("a"), 201),
        ("POST", "/v1/jobs", &start("poor"), 402),
        ("POST", "/v1/jobs/a/stop", r#"{"outcome": "failed", "exit_code": 3}"#, 200),
        ("POST", "/v1/accounts", r#"{"account": "new"}"#, 201),
        ("POST", "/v1/accounts", r#"{"account": "new"}"#, 200),
        ("POST", "/v1/accounts", r#"{"account": "new", "grace_s": 5}"#, 409),
        ("POST", "/v1/accounts/new/policy", r#"{"grace_s": 5}"#, 200),
        ("POST", "/v1/accounts/new/topup", r#"{"amount": "2.5", "bucket": "paid", "payment": "x"}"#, 201),
        ("POST", "/v1/accounts/new/topup", r#"{"amount": "2.5", "bucket": "paid", "payment": "x"}"#, 200),
        ("POST", "/v1/accounts/new/topup", r#"{"amount": "3", "bucket": "paid", "payment": "x"}"#, 409),
        ("POST", "/v1/accounts/new/topup", r#"{"amount": "3", "bucket": "paid", "payment": "refill/new/1"}"#, 422),
        ("POST", "/v1/accounts/new/topup", r#"{"amount": "3", "bucket": "paid", "unit": "USD"}"#, 409),
        ("POST", "/v1/accounts/new/topup", r#"{"amount": "3", "bucket": "paid", "payment": "a/b", "state": "pending"}"#, 201),
        ("POST", "/v1/accounts/new/payments/a%2Fb", r#"{"state": "pending"}"#, 422),
        ("POST", "/v1/accounts/new/payments/a%2Fb", r#"{"state": "completed"}"#, 200),
        ("POST", "/v1/accounts/new/payments/a%2Fb", r#"{"state": "completed"}"#, 200),
        ("POST", "/v1/accounts/new/payments/a%2Fb", r#"{"state": "failed"}"#, 409),
        ("POST", "/v1/accounts/lab/payments/a%2Fb", r#"{"state": "completed"}"#, 404),
        ("POST", "/v1/accounts/new/payments", r#"{"purpose": "refund", "amount": "1", "bucket": "paid", "payment": "r"}"#, 201),
        ("POST", "/v1/accounts/new/payments", r#"{"purpose": "correction", "direction": "takes", "amount": "100", "bucket": "paid"}"#, 409),
        ("POST", "/v1/accounts/new/payments", r#"{"purpose": "transfer", "to": "new", "amount": "1", "bucket": "paid"}"#, 422),
        ("POST", "/v1/accounts/new/payments", r#"{"purpose": "transfer", "to": "lab", "amount": "1", "bucket": "paid"}"#, 201),
        ("POST", "/v1/accounts/new/payments", r#"{"purpose": "gift", "amount": "1", "bucket": "paid"}"#, 422),
        ("POST", "/v1/accounts/new/verification", r#"{"vouched": "yes"}"#, 200),
        ("POST", "/v1/accounts/new/verification", r#"{"vouched": true}"#, 422),
        ("GET", "/v1/accounts/new/payments", "", 405),
        ("POST", "/v1/enforcement", r#"{"mode": "notify"}"#, 200),
        ("POST", "/v1/enforcement", r#"{"mode": "maybe"}"#, 422),
        ("POST", "/v1/enforcement", "{", 400),
        ("DELETE", "/v1/jobs/a", "", 405),
        ("GET", "/v2", "", 404),
    ];
    for (method, path, body, status) in table {
        let heard = served.unix(method, path, body);
        assert_eq!(heard.status, *status, "{method} {path} {body}: {}", heard.body);
    }
    let seen = served.seen();
    assert_eq!(
        seen,
        ["start a for Some(0) by 0 in Own", "start poor for Some(0) by 0 in Own", "stop a failed Some(3)", "enforcement notify by 0"].map(
            |line| line
                .replace("(0)", &format!("({})", rustix::process::geteuid().as_raw()))
                .replace("by 0", &format!("by {}", rustix::process::geteuid().as_raw()))
        )
    );
}

#[test]
fn a_policy_change_leaves_the_other_parts_as_they_were() {
    let served = served();
    served.unix("POST", "/v1/accounts", r#"{"account": "new", "on_exhaustion": "terminate", "grace_s": 7}"#);
    let changed = served.unix("POST", "/v1/accounts/new/policy", r#"{"warn_before_s": 11}"#).json();
    let policy = &changed["authority"]["policy"];
    assert_eq!(
        (&policy["on_exhaustion"], &policy["grace_ns"], &policy["warn_before_ns"]),
        (&json!("terminate"), &json!(7_000_000_000_u64), &json!([11_000_000_000_u64]))
    );
    let wrong = served.unix("POST", "/v1/accounts/new/policy", r#"{"warn": 11, "grace_s": -1}"#);
    assert_eq!((wrong.status, wrong.json()["errors"].as_array().unwrap().len()), (422, 2), "{}", wrong.body);
}

#[test]
fn ten_mistakes_in_one_start_are_all_named_and_nothing_reaches_the_loop() {
    let served = served();
    let body = json!({
        "job": "-bad", "account": "a b", "uid": -1, "cgroups": ["relative"], "own": false, "gpus": ["card0"],
        "time_limit_s": 0, "cpus": -1, "memory_bytes": "4GiB", "memroy": 1,
    });
    let heard = served.unix("POST", "/v1/jobs", &body.to_string());
    assert_eq!(heard.status, 422);
    let document = heard.json();
    let errors = document["errors"].as_array().unwrap();
    let places: BTreeSet<&str> = errors.iter().filter_map(|error| error["place"].as_str()).collect();
    for place in ["/job", "/account", "/uid", "/cgroups/0", "/own", "/gpus/0", "/time_limit_s", "/cpus", "/memory_bytes", "/memroy"] {
        assert!(places.contains(place), "{place} is not named: {errors:#?}");
    }
    assert!(errors.iter().all(|error| error["code"].is_string() && error["message"].is_string()));
    assert_eq!(served.seen(), Vec::<String>::new());
}

#[test]
fn a_stranger_sees_the_aggregates_and_nothing_of_anybody() {
    let served = served();
    for (method, path) in [
        ("GET", "/v1/jobs"),
        ("GET", "/v1/jobs/slurm:1"),
        ("GET", "/v1/jobs/slurm:1/receipt"),
        ("GET", "/v1/jobs/slurm:1/why"),
        ("GET", "/v1/accounts"),
        ("GET", "/v1/accounts/secret"),
        ("GET", "/v1/accounts/secret/ledger"),
        ("POST", "/v1/jobs"),
        ("POST", "/v1/jobs/slurm:1/stop"),
        ("POST", "/v1/accounts"),
        ("POST", "/v1/accounts/secret/topup"),
        ("POST", "/v1/accounts/secret/payments"),
        ("POST", "/v1/accounts/secret/payments/p"),
        ("POST", "/v1/accounts/secret/verification"),
        ("POST", "/v1/enforcement"),
        ("POST", "/v1/status"),
    ] {
        let heard = served.tcp(method, path, "{}");
        assert_eq!((heard.status, heard.code().as_str()), (403, "socket_only"), "{method} {path}: {}", heard.body);
    }
    for (path, status) in [("/", 200), ("/healthz", 200), ("/readyz", 503), ("/metrics", 200), ("/v1/status", 200), ("/nothing", 404)] {
        let heard = served.tcp("GET", path, "");
        assert_eq!(heard.status, status, "{path}");
        for word in ["secret", "slurm:1", "u65534", "lab"] {
            assert!(!heard.body.contains(word), "{path} tells a stranger of {word}: {}", heard.body);
        }
    }
    assert_eq!(served.tcp("GET", "/v1/status", "").json()["jobs"]["running"], 2);
    assert_eq!(served.seen(), Vec::<String>::new());
}

#[test]
fn what_is_served_says_what_it_is() {
    let served = served();
    let metrics = served.unix("GET", "/metrics", "");
    assert!(metrics.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{}", metrics.head);
    assert!(metrics.body.contains("meterd_account_in_hand_credits{account=\"secret\"} 3\n"));
    let page = served.tcp("GET", "/", "");
    assert!(page.head.contains("content-security-policy: default-src 'none'") && page.head.contains("text/html"));
    assert!(!page.body.contains("http://") && !page.body.contains("https://"), "the page loads nothing from elsewhere");
    assert!(served.unix("DELETE", "/v1/jobs", "").head.contains("allow: get, head, post"));
    assert_eq!(served.unix("HEAD", "/healthz", "").body, "");
}

#[test]
fn a_loop_that_stands_still_is_not_alive() {
    let served = served_every(Nanos(1));
    let heard = served.unix("GET", "/healthz", "");
    assert_eq!((heard.status, &heard.json()["alive"]), (503, &json!("no")));
    assert!(heard.head.contains("retry-after") && heard.body.contains("stale_picture"), "{} {}", heard.head, heard.body);
    drop(served.board.hang(Picture::default()));
    assert!(served.unix("GET", "/healthz", "").body.contains("no_picture"));
}

#[test]
fn a_body_that_is_too_long_is_refused_before_it_is_read() {
    let served = served();
    let heard = served.unix("POST", "/v1/jobs", &"x".repeat(70_000));
    assert_eq!((heard.status, heard.code().as_str()), (413, "body_too_large"), "{}", heard.body);
    let mut stream = served.unix_stream();
    let huge = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "y".repeat(1 << 20));
    let _ = stream.write_all(huge.as_bytes());
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
    assert_eq!(served.seen(), Vec::<String>::new());
    assert_eq!(served.unix("GET", "/healthz", "").status, 200, "others are served as before");
}

#[test]
fn garbage_is_turned_away_and_others_are_served() {
    let served = served();
    for garbage in [
        &b"\x00\x01\x02\x03\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"\xff\xfe GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
    ] {
        let mut stream = served.unix_stream();
        stream.write_all(garbage).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(served.unix("GET", "/healthz", "").status, 200);
    assert_eq!(served.seen(), Vec::<String>::new());
}

#[test]
fn who_sends_a_byte_at_a_time_is_cut_off() {
    let served = served();
    let mut stream = served.unix_stream();
    stream.write_all(b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n").unwrap();
    let began = Instant::now();
    let cut_off = loop {
        if stream.write_all(b"x").is_err() {
            break true;
        }
        if PATIENCE < began.elapsed() {
            break false;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    println!("cut off after {:?}", began.elapsed());
    assert!(cut_off, "a caller may keep a connection open by trickling");
    assert_eq!(served.seen(), Vec::<String>::new());
}

#[test]
fn more_connections_than_the_bound_do_not_keep_an_operator_out() {
    let served = served();
    let strangers: Vec<TcpStream> = (0..300).filter_map(|_| TcpStream::connect(served.tcp).ok()).collect();
    assert_eq!(served.unix("GET", "/healthz", "").status, 200);
    drop(strangers);
}

#[test]
fn a_stranger_that_calls_too_often_is_told_to_wait() {
    let served = served();
    let mut stream = served.tcp_stream();
    // All in one go on one connection: more than the burst, faster than the rate allows, however slow the machine.
    let calls = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".repeat(20_000) + "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut reader = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || stream.write_all(calls.as_bytes()));
    let mut text = Vec::new();
    let _ = reader.read_to_end(&mut text);
    let _ = sender.join();
    let text = String::from_utf8_lossy(&text);
    let count = |status: &str| text.matches(&format!("HTTP/1.1 {status}")).count();
    println!("{} served, {} told to wait", count("200"), count("429"));
    assert!(0 < count("429") && 100 <= count("200"));
    assert_eq!(served.unix("GET", "/healthz", "").status, 200);
}

/// `meterctl` as another user, with a copy of the program where that user can reach it.
fn as_other(served: &Served, arguments: &[&str]) -> Result<Output, String> {
    let program = served.folder.path().join("meterctl");
    if !program.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_meterctl"), &program).map_err(|error| error.to_string())?;
    }
    let mut command = Command::new(&program);
    command.arg("--socket").arg(served.socket()).args(arguments).uid(OTHER_UID).gid(OTHER_UID).current_dir("/");
    command.output().map_err(|error| format!("cannot run a program as uid {OTHER_UID}: {error}"))
}

fn root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err("needs root, to become another user".to_owned()) }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn another_user_sees_and_starts_only_its_own() {
    let Some(()) = support::need("root", root()) else { return };
    let served = served();
    let table: &[(&[&str], i32, &str)] = &[
        (&["jobs", "--output", "json"], 0, "u65534-mine"),
        (&["receipt", "slurm:1"], 1, "unknown_job"),
        (&["why", "slurm:1"], 1, "unknown_job"),
        (&["accounts", "--output", "json"], 0, "lab"),
        (&["account", "show", "lab"], 0, "available"),
        (&["account", "ledger", "lab"], 0, "deposit"),
        (&["account", "show", "secret"], 1, "unknown_account"),
        (&["account", "ledger", "secret"], 1, "unknown_account"),
        (&["account", "create", "mine"], 1, "not_permitted"),
        (&["account", "topup", "lab", "5"], 1, "not_permitted"),
        (&["account", "refund", "lab", "5"], 1, "not_permitted"),
        (&["account", "correct", "lab", "add", "5"], 1, "not_permitted"),
        (&["account", "transfer", "secret", "lab", "5"], 1, "not_permitted"),
        (&["account", "confirm", "lab", "p-1"], 1, "not_permitted"),
        (&["account", "verify", "lab"], 1, "not_permitted"),
        (&["account", "policy", "lab", "--on-exhaustion", "allow_negative"], 1, "not_permitted"),
        (&["enforcement", "off"], 1, "not_permitted"),
        (&["job", "start", "--job", "u65534-x", "--account", "lab", "--pid", "1"], 1, "not_permitted"),
        (&["job", "start", "--job", "u65534-x", "--account", "lab", "--cgroup", "/sys/fs/cgroup/a"], 1, "not_permitted"),
        (&["job", "stop", "slurm:1"], 1, "unknown_job"),
        (&["job", "stop", "u65534-mine", "--exit-code", "0"], 0, "noted"),
        (&["run", "--account", "secret", "--", "true"], 1, "account_not_mapped"),
        (&["run", "--account", "lab", "--job", "x", "--", "true"], 1, "not_permitted"),
        (&["run", "--account", "lab", "--gpus", "0", "--", "true"], 1, "not_permitted"),
        (&["run", "--account", "lab", "--job", "u65534-poor", "--", "touch", "ran"], 1, "top up the account"),
        (&["run", "--account", "lab", "--job", "u65534-good", "--", "sh", "-c", "exit 7"], 7, ""),
    ];
    for (arguments, code, word) in table {
        let output = as_other(&served, arguments).unwrap();
        let text = text(&output);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {text}");
        assert!(text.contains(word), "{arguments:?} does not say {word}: {text}");
        let unnamed = !arguments.contains(&"slurm:1") && !arguments.contains(&"secret");
        assert!(!unnamed || (!text.contains("slurm:1") && !text.contains("\"secret\": {")), "{arguments:?} tells of another's: {text}");
    }
    let seen = served.seen();
    let expected = [
        "stop u65534-mine completed Some(0)",
        "start u65534-poor for Some(65534) by 65534 in Own",
        "start u65534-good for Some(65534) by 65534 in Own",
        "stop u65534-good failed Some(7)",
    ];
    assert_eq!(seen, expected);
}

#[test]
fn a_socket_that_is_answered_is_not_taken_over_and_a_dead_one_is() {
    let served = served();
    assert_eq!(bind(&served.socket()).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    let dead = served.folder.path().join("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert!(bind(&dead).is_ok());
    let mode = std::fs::metadata(&dead).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    assert!(Path::new(&dead).exists());
}
