//! `meterd.toml`: read once at start, and again on reload. Every mistake is named at once, with its line and a hint.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::notice::Terminals;
use crate::authority::engine::config::{EngineConfig, read_engine};
use crate::domain::budget::Budget;
use crate::domain::enforcement::Enforcement;
use crate::domain::form::{Fault, Field, Mistake, Table, quoted, read_toml};
use crate::domain::id::{AccountId, LineId, NodeId, Uid};
use crate::domain::ladder::{Blast, Exempt, Ladder, WarnSignal};
use crate::domain::rates::CardKey;
use crate::domain::rates::signature::KeyError;
use crate::domain::request::read_policy;
use crate::domain::time::Nanos;
use crate::domain::wire::AccountPolicy;
use authority::read_authority;
pub use authority::{AuthorityConfig, CardSource, NetworkConfig, OwnIdentity};

/// Where the file is, if nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/meterd/meterd.toml";
/// Largest file, in bytes.
const TEXT_BYTES_MAX: usize = 256 << 10;
const NAME_BYTES_MAX: usize = 255;
/// Most users in `access.accounts`, most accounts of one, and most hook uids.
const USERS_MAX: usize = 10_000;
const ACCOUNTS_MAX: usize = 256;
const HOOK_UIDS_MAX: usize = 64;
const EXEMPT_MAX: usize = 4_096;
const WORDS_MAX: usize = 64;
const WORD_BYTES_MAX: usize = 4_096;

/// The agent's configuration, checked. The defaults are in [`Config::default_text`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This machine's name towards the authority; `None` is its host name.
    pub node: Option<NodeId>,
    /// What must outlive a reboot: the journal.
    pub state_dir: PathBuf,
    /// What need not: the socket.
    pub runtime_dir: PathBuf,
    /// The rate card's file.
    pub rate_card: PathBuf,
    /// Whose signature a rate card needs; none if it needs none.
    pub rate_card_key: Option<CardKey>,
    /// Whose machine it is, for receipts: who earns.
    pub provider: Option<LineId>,
    /// How far the agent goes.
    pub enforcement: Enforcement,
    /// Between two looks at the jobs (`interval_ms`): 100 ms to 10 s.
    pub interval: Nanos,
    /// `[cgroup]`
    pub cgroup: CgroupConfig,
    /// `[access]`
    pub access: Access,
    /// `[status]`
    pub status: StatusListen,
    /// `[gpu]`
    pub gpu: GpuConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[journal]`
    pub journal: JournalConfig,
    /// `[budget]`: what the agent itself may cost.
    pub budget: Budget,
    /// `[exempt]`, `[blast_radius]` and the signal of `[warn]`.
    pub ladder: Ladder,
    /// `[warn]`: how people are told.
    pub warn: WarnConfig,
    /// `[policy]`: what holds for an account whose creator says nothing else.
    pub policy: AccountPolicy,
    /// `[authority]`: who keeps the balances.
    pub authority: AuthorityConfig,
    /// `[engine]`: a billing engine that keeps balances, where there is no other authority.
    pub engine: Option<EngineConfig>,
}

/// Where the agent makes cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupConfig {
    /// The directory below the hierarchy's root, such as `meterd` or `meterd.slice/jobs`.
    pub parent: String,
    /// Whether a program in the kernel may read them (`walk`).
    pub walk: CgroupWalk,
}

/// Who may do what on the local socket. Root may do everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The group whose members may deposit, open accounts, reload and thaw.
    pub operators_group: String,
    /// Which uids may name cgroups, GPUs and accounts besides root.
    pub hook_uids: Vec<Uid>,
    /// On which accounts a user may run jobs: a user's name or uid, as written.
    pub accounts: Vec<UserAccounts>,
}

/// One user's accounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserAccounts {
    /// A name, or a uid in digits.
    pub user: String,
    /// At least one, the default first.
    pub accounts: Vec<AccountId>,
}

/// Where the status page, the metrics and the read-only API listen on TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusListen {
    /// Only on the local socket.
    Off,
    /// On this loopback address too.
    On(SocketAddr),
}

/// How GPUs are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuConfig {
    /// Whether.
    pub nvml: Nvml,
    /// The library's name or absolute path, for `dlopen`.
    pub library: String,
}

/// Whether cgroups may be read by a program in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupWalk {
    /// Where the kernel lets the agent, and many stand side by side.
    Auto,
    /// Never: by their files alone.
    Off,
}

/// Whether NVML is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nvml {
    /// Where its library is installed.
    Auto,
    /// Never.
    Off,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// From this level on.
    pub level: LogLevel,
    /// In this form.
    pub format: LogFormat,
}

/// The least level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What failed.
    Error,
    /// What may fail soon.
    Warn,
    /// What happened.
    Info,
    /// What was seen.
    Debug,
    /// All of it.
    Trace,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text; without times where the system's journal takes the lines.
    Auto,
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// How long per-second facts are kept; never less than to the authority's acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalConfig {
    /// Days.
    pub keep_days: u32,
    /// MiB.
    pub keep_mib: u32,
}

/// How people are told that a job's credit is short, and that it was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarnConfig {
    /// On their terminals.
    pub terminals: Terminals,
    /// By the site's own command: the program and its arguments; none if empty.
    pub command: Vec<String>,
    /// As whom that runs.
    pub user: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFailure {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It can, and holds mistakes.
    #[error("{}", Listed(.0))]
    Mistakes(Vec<Mistake>),
}

/// A user in `access.accounts` that this machine does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("access.accounts: there is no user {0:?} on this machine")]
pub struct UnknownUser(pub String);

/// Mistakes, one a line.
struct Listed<'m>(&'m [Mistake]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{mistake}")?;
        }
        Ok(())
    }
}

impl LogLevel {
    const ALL: [(&'static str, LogLevel); 5] = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];

    /// Its name in the file and in a filter.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            node: None,
            state_dir: PathBuf::from("/var/lib/meterd"),
            runtime_dir: PathBuf::from("/run/meterd"),
            rate_card: PathBuf::from("/etc/meterd/ratecard.toml"),
            rate_card_key: None,
            provider: None,
            enforcement: Enforcement::Observe,
            interval: Nanos::from_millis(1_000),
            cgroup: CgroupConfig { parent: "meterd".to_owned(), walk: CgroupWalk::Auto },
            access: Access { operators_group: "meterd".to_owned(), hook_uids: Vec::new(), accounts: Vec::new() },
            status: StatusListen::On(SocketAddr::from(([127, 0, 0, 1], 9_464))),
            gpu: GpuConfig { nvml: Nvml::Auto, library: "libnvidia-ml.so.1".to_owned() },
            log: LogConfig { level: LogLevel::Info, format: LogFormat::Auto },
            journal: JournalConfig { keep_days: 7, keep_mib: 2_048 },
            budget: Budget { cpu_percent: 5, memory_bytes: 256 << 20 },
            ladder: Ladder::default(),
            warn: WarnConfig { terminals: Terminals::Owner, command: Vec::new(), user: "nobody".to_owned() },
            policy: AccountPolicy::default(),
            authority: AuthorityConfig::Embedded,
            engine: None,
        }
    }
}

impl Config {
    /// The default file with its comments. It reads as [`Config::default`].
    #[must_use]
    pub const fn default_text() -> &'static str {
        include_str!("../../packaging/meterd.toml")
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read as text, or it holds mistakes: all of them.
    pub fn load(path: &Path) -> Result<Config, ConfigFailure> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigFailure::Unreadable { path: path.to_owned(), error })?;
        Config::parse(&text, &path.display().to_string()).map_err(ConfigFailure::Mistakes)
    }

    /// Reads a file's text; `file_name` is for the mistakes. What it leaves out has its default.
    ///
    /// # Errors
    /// Every mistake, in the order of the file.
    pub fn parse(text: &str, file_name: &str) -> Result<Config, Vec<Mistake>> {
        read_toml(text, file_name, TEXT_BYTES_MAX, |table| {
            let defaults = Config::default();
            let node = table.field("node").name().optional();
            let state_dir = path(table.field("state_dir"), defaults.state_dir);
            let runtime_dir = path(table.field("runtime_dir"), defaults.runtime_dir);
            let rate_card = path(table.field("rate_card"), defaults.rate_card);
            let rate_card_key = table.field("rate_card_key").text(NAME_BYTES_MAX).check(|text| card_key(&text)).optional();
            let provider = table.field("provider").name().optional();
            let modes = Enforcement::ALL.map(|mode| (mode.name(), mode));
            let enforcement = table.field("enforcement").word(&modes).or(defaults.enforcement);
            let interval = table.field("interval_ms").millis(100..=10_000).or(defaults.interval);
            let cgroup = table.field("cgroup").table_or_defaults(|table| read_cgroup(table, defaults.cgroup));
            let access = table.field("access").table_or_defaults(|table| read_access(table, defaults.access));
            let status = table.field("status").table_or_defaults(|table| read_status(table, defaults.status));
            let gpu = table.field("gpu").table_or_defaults(|table| read_gpu(table, defaults.gpu));
            let log = table.field("log").table_or_defaults(|table| read_log(table, defaults.log));
            let journal = table.field("journal").table_or_defaults(|table| read_journal(table, defaults.journal));
            let budget = table.field("budget").table_or_defaults(|table| read_budget(table, defaults.budget));
            let exempt = table.field("exempt").table_or_defaults(|table| read_exempt(table, defaults.ladder.exempt));
            let blast = table.field("blast_radius").table_or_defaults(|table| read_blast(table, defaults.ladder.blast));
            let warn = table.field("warn").table_or_defaults(|table| read_warn(table, defaults.warn, defaults.ladder.warn_signal));
            let authority = table.field("authority").table(read_authority).or(defaults.authority);
            let engine = table.field("engine").table(read_engine).optional();
            let engine = authority::engine_fits(table, authority.as_ref()).and(engine);
            let policy = table.field("policy").table_or_defaults(|table| read_policy(table, &defaults.policy));
            let (warn, warn_signal) = warn?;
            Some(Config {
                ladder: Ladder { exempt: exempt?, blast: blast?, warn_signal },
                warn,
                node: node?,
                state_dir: state_dir?,
                runtime_dir: runtime_dir?,
                rate_card: rate_card?,
                rate_card_key: rate_card_key?,
                provider: provider?,
                enforcement: enforcement?,
                interval: interval?,
                cgroup: cgroup?,
                access: access?,
                status: status?,
                gpu: gpu?,
                log: log?,
                journal: journal?,
                budget: budget?,
                policy: policy?,
                authority: authority?,
                engine: engine?,
            })
        })
    }
}

impl Access {
    /// The accounts by uid. `uid_of` looks up a user's name; digits are a uid already.
    /// A user written twice (as a name and as its uid) has the accounts of both.
    ///
    /// # Errors
    /// Every user that `uid_of` does not know.
    pub fn by_uid(&self, uid_of: impl Fn(&str) -> Option<Uid>) -> Result<BTreeMap<Uid, Vec<AccountId>>, Vec<UnknownUser>> {
        let mut accounts: BTreeMap<Uid, Vec<AccountId>> = BTreeMap::new();
        let mut unknown = Vec::new();
        for entry in &self.accounts {
            match entry.user.parse().map(Uid).ok().or_else(|| uid_of(&entry.user)) {
                Some(uid) => {
                    let of_uid = accounts.entry(uid).or_default();
                    let added: Vec<_> = entry.accounts.iter().filter(|account| !of_uid.contains(account)).cloned().collect();
                    of_uid.extend(added);
                }
                None => unknown.push(UnknownUser(entry.user.clone())),
            }
        }
        if unknown.is_empty() { Ok(accounts) } else { Err(unknown) }
    }
}

fn card_key(text: &str) -> Result<CardKey, Fault> {
    text.parse().map_err(|error: KeyError| Fault::new("malformed", error.to_string()).hint("what meterctl rate key FILE printed"))
}

fn path(field: Field<'_>, default: PathBuf) -> Option<PathBuf> {
    field.absolute_path().check(|path| Ok(PathBuf::from(path))).or(default)
}

fn read_cgroup(table: &Table<'_>, defaults: CgroupConfig) -> Option<CgroupConfig> {
    let parent = table.field("parent").text(NAME_BYTES_MAX).check(|parent| {
        let plain = |step: &str| !step.is_empty() && step != "." && step != "..";
        if parent.split('/').all(plain) {
            return Ok(parent);
        }
        let message = format!("{} is not a directory below the cgroup root", quoted(&parent));
        Err(Fault::new("malformed", message).hint("a relative path, such as \"meterd\" or \"meterd.slice/jobs\""))
    });
    let walk = table.field("walk").word(&[("auto", CgroupWalk::Auto), ("off", CgroupWalk::Off)]).or(defaults.walk);
    Some(CgroupConfig { parent: parent.or(defaults.parent)?, walk: walk? })
}

fn read_access(table: &Table<'_>, defaults: Access) -> Option<Access> {
    let operators_group = table.field("operators_group").text(NAME_BYTES_MAX).or(defaults.operators_group);
    let uid = |field: Field<'_>| field.integer(0..=u32::MAX - 1).check(|uid| Ok(Uid(uid))).required();
    let hook_uids = table.field("hook_uids").set(HOOK_UIDS_MAX, uid).or(defaults.hook_uids);
    let accounts = table.field("accounts").map(USERS_MAX, read_user).or(defaults.accounts);
    Some(Access { operators_group: operators_group?, hook_uids: hook_uids?, accounts: accounts? })
}

fn read_user(user: &str, field: Field<'_>) -> Option<UserAccounts> {
    let digits = !user.is_empty() && user.bytes().all(|byte| byte.is_ascii_digit());
    if user.is_empty() || user.chars().any(|c| c.is_whitespace() || c.is_control()) || digits && user.parse::<u32>().is_err() {
        field.note(Fault::new("not_a_user", "not the name or uid of a user").hint("such as alice or 1001"));
    }
    let accounts = field.set(ACCOUNTS_MAX, |account| account.name().required()).check(|accounts| {
        let none = || Fault::new("out_of_range", "an empty list names no account").hint("leave the user out");
        if accounts.is_empty() { Err(none()) } else { Ok(accounts) }
    });
    Some(UserAccounts { user: user.to_owned(), accounts: accounts.required()? })
}

fn read_status(table: &Table<'_>, default: StatusListen) -> Option<StatusListen> {
    const HINT: &str = "\"127.0.0.1:9464\", \"[::1]:9464\" or \"off\"; put a proxy in front for others";
    let listen = table.field("listen").text(NAME_BYTES_MAX).check(|listen| {
        if listen == "off" {
            return Ok(StatusListen::Off);
        }
        let malformed = || Fault::new("malformed", format!("{} is not an address with a port", quoted(&listen))).hint(HINT);
        let address: SocketAddr = listen.parse().map_err(|_| malformed())?;
        if !address.ip().is_loopback() {
            return Err(Fault::new("not_loopback", format!("{address} can be reached from other machines")).hint(HINT));
        }
        Ok(StatusListen::On(address))
    });
    listen.or(default)
}

fn read_gpu(table: &Table<'_>, defaults: GpuConfig) -> Option<GpuConfig> {
    let nvml = table.field("nvml").word(&[("auto", Nvml::Auto), ("off", Nvml::Off)]).or(defaults.nvml);
    let library = table.field("library").text(NAME_BYTES_MAX).check(|library| {
        // A name goes through the loader's own search; a relative path would depend on the working directory.
        if library.starts_with('/') || !library.contains('/') {
            return Ok(library);
        }
        Err(Fault::new("not_absolute", format!("{} is a relative path", quoted(&library))).hint("a name without /, or an absolute path"))
    });
    Some(GpuConfig { nvml: nvml?, library: library.or(defaults.library)? })
}

pub(crate) fn read_log(table: &Table<'_>, defaults: LogConfig) -> Option<LogConfig> {
    const FORMATS: [(&str, LogFormat); 3] = [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
    let level = table.field("level").word(&LogLevel::ALL).or(defaults.level);
    let format = table.field("format").word(&FORMATS).or(defaults.format);
    Some(LogConfig { level: level?, format: format? })
}

fn read_journal(table: &Table<'_>, defaults: JournalConfig) -> Option<JournalConfig> {
    let keep_days = table.field("keep_days").integer(1..=3_650).or(defaults.keep_days);
    let keep_mib = table.field("keep_mib").integer(64..=1 << 20).or(defaults.keep_mib);
    Some(JournalConfig { keep_days: keep_days?, keep_mib: keep_mib? })
}

fn read_budget(table: &Table<'_>, defaults: Budget) -> Option<Budget> {
    let cpu_percent = table.field("cpu_percent").integer(1..=1_000).or(defaults.cpu_percent);
    let memory_mib = table.field("memory_mib").integer(1_u64..=1 << 20).or(defaults.memory_bytes >> 20);
    Some(Budget { cpu_percent: cpu_percent?, memory_bytes: memory_mib? << 20 })
}

fn read_exempt(table: &Table<'_>, defaults: Exempt) -> Option<Exempt> {
    let accounts = table.field("accounts").set(EXEMPT_MAX, |account| account.name().required());
    let uid = |field: Field<'_>| field.integer(0..=u32::MAX - 1).check(|uid| Ok(Uid(uid))).required();
    let uids = table.field("uids").set(EXEMPT_MAX, uid);
    let accounts = accounts.check(|accounts| Ok(accounts.into_iter().collect())).or(defaults.accounts);
    let uids = uids.check(|uids| Ok(uids.into_iter().collect())).or(defaults.uids);
    Some(Exempt { accounts: accounts?, uids: uids? })
}

fn read_blast(table: &Table<'_>, defaults: Blast) -> Option<Blast> {
    let no_limit = |count: u32| Ok(Some(count).filter(|count| *count != 0));
    let freeze_accounts = table.field("freeze_accounts").integer(0..=100_000).check(no_limit).or(defaults.freeze_accounts);
    let end_accounts = table.field("end_accounts").integer(0..=100_000).check(no_limit).or(defaults.end_accounts);
    let window = table.field("window_s").seconds(1..=86_400).or(defaults.window);
    Some(Blast { freeze_accounts: freeze_accounts?, end_accounts: end_accounts?, window: window? })
}

fn read_warn(table: &Table<'_>, defaults: WarnConfig, signal: Option<WarnSignal>) -> Option<(WarnConfig, Option<WarnSignal>)> {
    let mut signals = vec![("none", None)];
    signals.extend(WarnSignal::ALL.map(|(name, signal)| (name, Some(signal))));
    let signal = table.field("signal").word(&signals).or(signal);
    let terminals = table.field("terminals").word(&[("owner", Terminals::Owner), ("off", Terminals::Off)]).or(defaults.terminals);
    let command = table.field("command").list(WORDS_MAX, |word| word.text(WORD_BYTES_MAX).required()).check(|words| {
        let absolute = words.first().is_none_or(|program| program.starts_with('/'));
        let fault =
            || Fault::new("not_absolute", "the program is named by a relative path").hint("[\"/usr/local/sbin/tell-owner\", \"--mail\"]");
        if absolute { Ok(words) } else { Err(fault()) }
    });
    let user = table.field("user").text(NAME_BYTES_MAX).check(|user| {
        let root = || Fault::new("runs_as_root", "a command for people needs no root").hint("a user of its own, such as \"nobody\"");
        if user == "root" { Err(root()) } else { Ok(user) }
    });
    let user = user.or(defaults.user);
    Some((WarnConfig { terminals: terminals?, command: command.or(defaults.command)?, user: user? }, signal?))
}

mod authority;
#[cfg(test)]
mod tests;
