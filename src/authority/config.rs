//! `authority.toml`, the file of tokens and the list of revoked certificates: each read whole, every mistake named with its line and a hint.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::engine::config::{EngineConfig, read_engine};
use super::identity::{Named, Role, Tokens};
use crate::domain::form::{Fault, Field, Mistake, Place, Table, quoted, read_toml};
use crate::domain::id::{AccountId, Digest, GpuModel, NodeId};
use crate::domain::ledger::{AMOUNT_MAX, VALID_FOR};
use crate::domain::money::Credits;
use crate::domain::rates::Card;
use crate::domain::rates::most::{Capacity, most};
use crate::domain::time::Nanos;
use crate::domain::wire;
use crate::node::config::{ConfigFailure, LogConfig, LogFormat, LogLevel, read_log};

/// Where the file is, if nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/meter-authority/authority.toml";
/// Ten thousand nodes fit.
const TEXT_BYTES_MAX: usize = 4 << 20;
/// Tokens and revoked certificates: one for each of ten thousand nodes fits.
const LIST_BYTES_MAX: usize = 4 << 20;
const TOKENS_MAX: usize = 20_000;
const ADDRESS_BYTES_MAX: usize = 255;
const NODES_MAX: usize = 20_000;
/// Accounts that one node admits by name.
const ACCOUNTS_MAX: usize = 4_096;
const GIB_MAX: u64 = 1 << 20;

/// The least silence after which an epoch's rest is taken back: a grant's validity, a clock that is 0.1 % wrong, stopping, and a minute.
pub const CLOSE_AFTER_MIN_S: u64 = 667;

/// The authority's configuration, checked. The defaults are in [`Config::default_text`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens, over TLS alone.
    pub listen: SocketAddr,
    /// What must outlive everything: the balances.
    pub state_dir: PathBuf,
    /// The card that nodes may follow; none if it is not written.
    pub rate_card: Option<PathBuf>,
    /// For how long a node is silent before what it holds, and has not reported as spent, is free again.
    pub close_after: Nanos,
    /// `[[node]]`: what is known of nodes.
    pub nodes: Vec<Registered>,
    /// Who is granted credit at all?
    pub grants: Grants,
    /// `[tls]`
    pub tls: TlsConfig,
    /// `[access]`
    pub access: AccessConfig,
    /// `[limits]`
    pub limits: Limits,
    /// `[log]`
    pub log: LogConfig,
    /// `[engine]`: a billing engine that keeps balances.
    pub engine: Option<EngineConfig>,
}

/// Who is granted credit?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grants {
    /// Every node that is known by its certificate or token.
    EveryNode,
    /// Only those with a `[[node]]`.
    RegisteredNodes,
}

/// A node, and what it may be granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Its name.
    pub name: NodeId,
    /// What it has.
    pub capacity: Capacity,
    /// What it may hold of an account at most, where that is not to be reckoned from the rate card.
    pub held_max: Option<Credits>,
    /// Accounts that may be used on it; none: every one.
    pub accounts: Option<Vec<AccountId>>,
}

impl Registered {
    /// What it may be granted under this card.
    #[must_use]
    pub fn limits(&self, card: Option<&Card>) -> wire::Limits {
        let reckoned = card.map(|card| most(card, &self.capacity, VALID_FOR));
        let admitted = self.accounts.as_ref().map(|accounts| accounts.iter().cloned().collect());
        wire::Limits { admitted, held_max: self.held_max.or(reckoned) }
    }
}

/// Certificates, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Whoever shows a certificate of this authority is who it says.
    pub ca: PathBuf,
    /// The server's own.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Who may come, besides those with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessConfig {
    /// Hashes of tokens, and whose they are.
    pub tokens: Option<PathBuf>,
    /// Certificates that are refused.
    pub revoked: Option<PathBuf>,
}

/// How much is taken from anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections: u32,
    /// Calls a second by each node or person, in the long run; four times as many at once.
    pub calls_per_s: u32,
    /// Largest body, in KiB.
    pub body_kib: u32,
}

impl Default for Config {
    fn default() -> Config {
        let at = |name: &str| PathBuf::from("/etc/meter-authority").join(name);
        Config {
            listen: SocketAddr::from(([0, 0, 0, 0], 8_443)),
            state_dir: PathBuf::from("/var/lib/meter-authority"),
            rate_card: None,
            close_after: Nanos::from_secs(3_600),
            nodes: Vec::new(),
            grants: Grants::EveryNode,
            tls: TlsConfig { ca: at("ca.pem"), cert: at("cert.pem"), key: at("key.pem") },
            access: AccessConfig { tokens: None, revoked: None },
            limits: Limits { connections: 4_096, calls_per_s: 50, body_kib: 1_024 },
            log: LogConfig { level: LogLevel::Info, format: LogFormat::Auto },
            engine: None,
        }
    }
}

impl Config {
    /// The default file with its comments. It reads as [`Config::default`].
    #[must_use]
    pub const fn default_text() -> &'static str {
        include_str!("../../packaging/authority.toml")
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read as text, or it holds mistakes: all of them.
    pub fn load(path: &Path) -> Result<Config, ConfigFailure> {
        Config::parse(&text(path)?, &path.display().to_string()).map_err(ConfigFailure::Mistakes)
    }

    /// Reads a file's text; `file_name` is for the mistakes. What it leaves out has its default.
    ///
    /// # Errors
    /// Every mistake, in the order of the file.
    pub fn parse(text: &str, file_name: &str) -> Result<Config, Vec<Mistake>> {
        read_toml(text, file_name, TEXT_BYTES_MAX, |table| {
            let defaults = Config::default();
            let listen = table.field("listen").text(ADDRESS_BYTES_MAX).check(|listen| {
                let malformed = || Fault::new("malformed", format!("{} is not an address with a port", quoted(&listen)));
                listen.parse().map_err(|_| malformed().hint("such as \"0.0.0.0:8443\" or \"[::]:8443\""))
            });
            let listen = listen.or(defaults.listen);
            let state_dir = path(table.field("state_dir"), defaults.state_dir);
            let rate_card = path_of(table.field("rate_card")).optional();
            let close_after = table.field("close_after_s").seconds(CLOSE_AFTER_MIN_S..=7 * 86_400).or(defaults.close_after);
            let nodes = read_nodes(table.field("node"));
            let only = table.field("registered_nodes_only").boolean().or(false);
            let tls = table.field("tls").table_or_defaults(|table| read_tls(table, defaults.tls));
            let access = table.field("access").table_or_defaults(read_access);
            let limits = table.field("limits").table_or_defaults(|table| read_limits(table, defaults.limits));
            let log = table.field("log").table_or_defaults(|table| read_log(table, defaults.log));
            let engine = table.field("engine").table(read_engine).optional();
            Some(Config {
                listen: listen?,
                state_dir: state_dir?,
                rate_card: rate_card?,
                close_after: close_after?,
                nodes: nodes?,
                grants: if only? { Grants::RegisteredNodes } else { Grants::EveryNode },
                tls: tls?,
                access: access?,
                limits: limits?,
                log: log?,
                engine: engine?,
            })
        })
    }

    /// The balances' file.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.state_dir.join("authority.db")
    }
}

fn text(path: &Path) -> Result<String, ConfigFailure> {
    std::fs::read_to_string(path).map_err(|error| ConfigFailure::Unreadable { path: path.to_owned(), error })
}

fn path(field: Field<'_>, default: PathBuf) -> Option<PathBuf> {
    path_of(field).or(default)
}

fn path_of(field: Field<'_>) -> crate::domain::form::Answer<'_, PathBuf> {
    field.absolute_path().check(|path| Ok(PathBuf::from(path)))
}

fn read_nodes(field: Field<'_>) -> Option<Vec<Registered>> {
    let mut names = BTreeSet::new();
    let read = |field: Field<'_>| field.table(|table| read_node(table, &mut names)).required();
    field.list(NODES_MAX, read).or(Vec::new())
}

fn read_node(table: &Table<'_>, names: &mut BTreeSet<NodeId>) -> Option<Registered> {
    let name = table.field("name").name::<NodeId>().check(|name| {
        let doubled = || Fault::new("duplicate", format!("node {name} stands here twice")).hint("leave one out");
        if names.insert(name.clone()) { Ok(name) } else { Err(doubled()) }
    });
    let name = name.required();
    let gib = |key: &'static str, least: u64| table.field(key).integer(least..=GIB_MAX);
    let cpus = table.field("cpus").integer(1..=65_536_u32).required();
    let memory_gib = gib("memory_gib", 1).required();
    let storage_gib = gib("storage_gib", 0).or(0);
    let gpus = table.field("gpus").integer(0..=1_024_u32).or(0);
    let gpu_model = table.field("gpu_model").text(96).check(|model| Ok(GpuModel::new(&model))).optional();
    let held_max = table.field("held_max").amount(AMOUNT_MAX).optional();
    let accounts = table.field("accounts").set(ACCOUNTS_MAX, |field| field.name::<AccountId>().required()).optional();
    let capacity =
        Capacity { cpus: cpus?, memory_bytes: memory_gib? << 30, storage_bytes: storage_gib? << 30, gpus: gpus?, gpu_model: gpu_model? };
    Some(Registered { name: name?, capacity, held_max: held_max?, accounts: accounts? })
}

fn read_tls(table: &Table<'_>, defaults: TlsConfig) -> Option<TlsConfig> {
    let ca = path(table.field("ca"), defaults.ca);
    let cert = path(table.field("cert"), defaults.cert);
    let key = path(table.field("key"), defaults.key);
    Some(TlsConfig { ca: ca?, cert: cert?, key: key? })
}

fn read_access(table: &Table<'_>) -> Option<AccessConfig> {
    let tokens = path_of(table.field("tokens")).optional();
    let revoked = path_of(table.field("revoked")).optional();
    Some(AccessConfig { tokens: tokens?, revoked: revoked? })
}

fn read_limits(table: &Table<'_>, defaults: Limits) -> Option<Limits> {
    let connections = table.field("connections").integer(8..=1_000_000).or(defaults.connections);
    let calls_per_s = table.field("calls_per_s").integer(1..=100_000).or(defaults.calls_per_s);
    let body_kib = table.field("body_kib").integer(16..=65_536).or(defaults.body_kib);
    Some(Limits { connections: connections?, calls_per_s: calls_per_s?, body_kib: body_kib? })
}

/// Reads the file of tokens: `[[token]]` with `sha256` and either `node` or `role` and `name`.
///
/// # Errors
/// It cannot be read, or every mistake in it.
pub fn load_tokens(path: &Path) -> Result<Tokens, ConfigFailure> {
    let text = text(path)?;
    let tokens = read_toml(&text, &path.display().to_string(), LIST_BYTES_MAX, |table| {
        let read = |field: Field<'_>| field.table(read_token).required();
        table.field("token").list(TOKENS_MAX, read).or(Vec::new())
    });
    tokens.map(Tokens::new).map_err(ConfigFailure::Mistakes)
}

fn read_token(table: &Table<'_>) -> Option<(Digest, Named)> {
    let hash = table.field("sha256").name::<Digest>().required();
    let node = table.field("node").name::<NodeId>().optional();
    let role = table.field("role").word(&Role::ALL.map(|role| (role.name(), role))).optional();
    let name = table.field("name").name::<NodeId>().optional();
    let named = match (node?, role?, name?) {
        (Some(node), None, None) => Some(Named::Node(node)),
        (None, Some(role), Some(name)) => Some(Named::Person { role, name: name.to_string() }),
        _ => {
            let hint = "node = \"gpu-07\", or role = \"operator\" with name = \"alice\"";
            table.note(Fault::new("one_owner", "a token is one node's, or one person's in a role").hint(hint));
            None
        }
    };
    Some((hash?, named?))
}

/// Certificates that are refused, by fingerprint (SHA-256 of the certificate) or serial number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    fingerprints: BTreeSet<Digest>,
    serials: BTreeSet<String>,
}

impl Revoked {
    /// Is this certificate refused?
    #[must_use]
    pub fn holds(&self, certificate: &crate::tls::Presented) -> bool {
        self.fingerprints.contains(&certificate.fingerprint) || self.serials.contains(&certificate.serial)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.fingerprints.len() + self.serials.len()
    }

    /// None at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads the list: one a line, `sha256:HEX` or `serial:HEX`, colons between the digits or not; behind `#` a remark.
    ///
    /// # Errors
    /// Every line that is neither: a list that is read in part would let somebody in.
    pub fn parse(text: &str, file: &str) -> Result<Revoked, Vec<Mistake>> {
        let mut revoked = Revoked::default();
        let mut mistakes = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let said = line.split('#').next().unwrap_or_default().trim();
            let taken = match said.split_once(':') {
                _ if said.is_empty() => true,
                Some(("sha256", hex)) => plain(hex).parse().is_ok_and(|digest| {
                    revoked.fingerprints.insert(digest);
                    true
                }),
                Some(("serial", hex)) => {
                    let serial = plain(hex);
                    let good = !serial.is_empty() && serial.bytes().all(|byte| byte.is_ascii_hexdigit());
                    if good {
                        revoked.serials.insert(serial.trim_start_matches('0').to_owned());
                    }
                    good
                }
                _ => false,
            };
            if !taken {
                let place = Place::File { file: file.to_owned(), line: index + 1, column: 1 };
                let message = format!("{} names no certificate", quoted(said));
                let hint = "sha256: and 64 hexadecimal digits, or serial: and its digits; openssl x509 -noout -serial -fingerprint -sha256";
                mistakes.push(Mistake { code: "not_a_certificate", place, message, hint: Some(hint.to_owned()) });
            }
        }
        if mistakes.is_empty() { Ok(revoked) } else { Err(mistakes) }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or every mistake in it.
    pub fn load(path: &Path) -> Result<Revoked, ConfigFailure> {
        Revoked::parse(&text(path)?, &path.display().to_string()).map_err(ConfigFailure::Mistakes)
    }
}

fn plain(hex: &str) -> String {
    hex.chars().filter(|c| *c != ':' && !c.is_whitespace()).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_file_reads_as_the_defaults() {
        assert_eq!(Config::parse(Config::default_text(), "authority.toml"), Ok(Config::default()));
        assert_eq!(Config::parse("", "authority.toml"), Ok(Config::default()));
    }

    #[test]
    fn every_mistake_is_named_at_once_with_its_line_and_a_hint() {
        let text = "listen = \"here\"\nclose_after_s = 666\n[tls]\ncertt = \"/a\"\nkey = \"key.pem\"\n[limits]\nbody_kib = 8\n";
        let mistakes = Config::parse(text, "a.toml").unwrap_err();
        let shown: Vec<String> = mistakes.iter().map(|mistake| format!("[{}] {mistake}", mistake.code)).collect();
        insta::assert_snapshot!(shown.join("\n"), @r#"
        [malformed] a.toml:1:10: listen: "here" is not an address with a port (hint: such as "0.0.0.0:8443" or "[::]:8443")
        [out_of_range] a.toml:2:17: close_after_s: 666 is out of range 667..=604800 (hint: an integer from 667 to 604800, without quotes)
        [unknown_key] a.toml:4:1: unknown key "certt" (hint: did you mean cert?)
        [not_absolute] a.toml:5:7: key: "key.pem" is not an absolute path (hint: begin with /)
        [out_of_range] a.toml:7:12: body_kib: 8 is out of range 16..=65536 (hint: an integer from 16 to 65536, without quotes)
        "#);
    }

    #[test]
    fn a_list_of_revoked_certificates_is_taken_whole_or_not_at_all() {
        let digits = "AB:".repeat(31) + "AB";
        let good = format!("# lost laptops\nsha256:{digits}  # gpu-07\n\nserial:00:0A:ff\n");
        let revoked = Revoked::parse(&good, "revoked").unwrap();
        let shown = |fingerprint: u8, serial: &str| crate::tls::Presented {
            fingerprint: Digest([fingerprint; 32]),
            serial: serial.to_owned(),
            uris: Vec::new(),
        };
        assert!(revoked.holds(&shown(0xab, "1")) && revoked.holds(&shown(0, "aff")));
        assert!(!revoked.holds(&shown(0xac, "aff0")));
        let mistakes = Revoked::parse(&format!("{good}sha256:ab\nab\nserial:\n"), "revoked").unwrap_err();
        let lines: Vec<String> = mistakes.iter().map(|mistake| mistake.place.to_string()).collect();
        assert_eq!(lines, ["revoked:5:1", "revoked:6:1", "revoked:7:1"]);
    }

    #[test]
    fn nodes_are_registered_with_what_they_have_and_every_mistake_is_named() {
        let text = "registered_nodes_only = true\n[[node]]\nname = \"gpu-07\"\ncpus = 64\nmemory_gib = 512\ngpus = 8\n\
            gpu_model = \"NVIDIA H100\"\naccounts = [\"lab\"]\n[[node]]\nname = \"cpu-1\"\ncpus = 8\nmemory_gib = 32\nheld_max = \"5\"\n";
        let config = Config::parse(text, "a.toml").unwrap();
        assert_eq!((config.grants, config.nodes.len()), (Grants::RegisteredNodes, 2));
        let limits = config.nodes[0].limits(None);
        assert_eq!((limits.admitted, limits.held_max), (Some(["lab".parse().unwrap()].into()), None), "without a card nobody can reckon");
        assert_eq!(config.nodes[1].limits(None), wire::Limits { admitted: None, held_max: Some("5".parse().unwrap()) });
        let wrong =
            "[[node]]\nname = \"a\"\ncpus = 0\nmemory_gib = 1\ngpu = 8\n[[node]]\nname = \"a\"\ncpus = 1\naccounts = [\"b\", \"b\"]\n";
        let mistakes = Config::parse(wrong, "a.toml").unwrap_err();
        let shown: Vec<String> = mistakes.iter().map(|mistake| format!("{} {}", mistake.code, mistake.place)).collect();
        assert_eq!(
            shown,
            [
                "out_of_range a.toml:3:8",
                "unknown_key a.toml:5:1",
                "missing_key a.toml:6:1",
                "duplicate a.toml:7:8",
                "duplicate a.toml:9:18"
            ]
        );
    }

    #[test]
    fn a_token_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.toml");
        let hash = "0".repeat(64);
        let write = |text: String| std::fs::write(&path, text).unwrap();
        write(format!("[[token]]\nsha256 = \"{hash}\"\nnode = \"a\"\n[[token]]\nsha256 = \"{hash}\"\nrole = \"admin\"\nname = \"b\"\n"));
        assert!(load_tokens(&path).is_ok());
        write(format!(
            "[[token]]\nsha256 = \"{hash}\"\nnode = \"a\"\nrole = \"admin\"\nname = \"b\"\n[[token]]\nsha256 = \"00\"\nrole = \"x\"\n"
        ));
        let ConfigFailure::Mistakes(mistakes) = load_tokens(&path).unwrap_err() else { panic!("it can be read") };
        let codes: Vec<&str> = mistakes.iter().map(|mistake| mistake.code).collect();
        assert_eq!(codes, ["one_owner", "not_a_name", "unknown_word"]);
    }
}
