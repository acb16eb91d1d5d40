//! The real authority as a process of its own, and agents that speak to it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::agent::{Agent, PATIENCE};
use crate::certs::{Ca, Files};
use crate::https::Client;

pub(crate) const CARD: &str = "card = \"test\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"417.0417\"\nunit = \"core-hour\"\n";

pub(crate) struct Authority {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) ca: Ca,
    pub(crate) port: u16,
    before: Vec<String>,
    child: Option<Child>,
    pub(crate) admin: Client,
}

/// Where an authority is.
pub(crate) struct Place {
    pub(crate) listen: String,
    pub(crate) port: u16,
    /// What its certificate is for.
    pub(crate) addresses: Vec<IpAddr>,
    /// Words before the program, such as those of `nsenter`.
    pub(crate) before: Vec<String>,
    /// The namespace from which people speak to it, at its loopback address.
    pub(crate) space: Option<PathBuf>,
}

impl Place {
    pub(crate) fn loopback(port: u16) -> Place {
        let addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        Place { listen: format!("127.0.0.1:{port}"), port, addresses, before: Vec::new(), space: None }
    }
}

/// A port that nobody listens on now.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Authority {
    /// Started, with an admin's certificate.
    pub(crate) fn start(top: &str, tables: &str) -> Authority {
        Authority::start_at(Place::loopback(free_port()), top, tables)
    }

    pub(crate) fn start_at(place: Place, top: &str, tables: &str) -> Authority {
        let Place { listen, port, addresses, before, space } = place;
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::new(&folder.path().join("pki"), "test CA");
        let server = ca.server_at("server", &addresses);
        let admin = ca.person("admin", "alice");
        let (at, pki) = (folder.path().display(), ca.folder.display());
        let config = format!(
            "listen = \"{listen}\"\nstate_dir = \"{at}/state\"\n{top}\n[tls]\nca = \"{pki}/ca.pem\"\ncert = \"{}\"\nkey = \"{}\"\n\
             [log]\nlevel = \"debug\"\n{tables}\n",
            server.cert.display(),
            server.key.display()
        );
        std::fs::write(folder.path().join("authority.toml"), config).unwrap();
        let admin = Client::new(port, &ca.pem(), Some(&admin)).within(space);
        let mut authority = Authority { folder, ca, port, before, child: None, admin };
        authority.launch();
        authority
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The process (again), once it answers.
    pub(crate) fn launch(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let program = env!("CARGO_BIN_EXE_meter-authority").to_owned();
        let words: Vec<&String> = self.before.iter().chain([&program]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("serve").arg("--config").arg(self.path("authority.toml"));
        self.child = Some(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        self.wait_for("the authority answers", |authority| {
            authority.admin.try_call("GET", "/healthz", "").is_ok_and(|answer| answer.status == 200)
        });
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// SIGTERM, and its exit code.
    pub(crate) fn end(&mut self) -> Option<i32> {
        self.signal("TERM");
        let mut child = self.child.take().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the authority does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Another command of the program, over the same configuration.
    pub(crate) fn command(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meter-authority"));
        command.args(words).arg("--config").arg(self.path("authority.toml")).output().unwrap()
    }

    pub(crate) fn wait_for(&self, what: &str, holds: impl Fn(&Authority) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "not within a minute: {what}; the authority's log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn log(&self) -> String {
        let text = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    pub(crate) fn account(&self, account: &str, credit: &str) {
        self.admin.done("POST", "/v1/accounts", &json!({ "account": account }));
        self.top_up(account, credit, "first");
    }

    pub(crate) fn top_up(&self, account: &str, credit: &str, payment: &str) {
        let body = json!({ "amount": credit, "bucket": "paid", "payment": format!("{payment}-{account}") });
        self.admin.done("POST", &format!("/v1/accounts/{account}/topup"), &body);
    }

    /// The account as the authority keeps it.
    pub(crate) fn kept(&self, account: &str) -> Value {
        self.admin.done("GET", &format!("/v1/accounts/{account}"), &Value::Null)["authority"].clone()
    }

    /// An agent that speaks to this authority by a certificate of its own; not started yet.
    pub(crate) fn agent(&self, node: &str) -> Agent {
        let files = self.ca.node(node, node);
        self.agent_with(node, &certificate(&files))
    }

    pub(crate) fn agent_with(&self, node: &str, identity: &str) -> Agent {
        self.agent_over(&self.url(), node, identity)
    }

    /// The same, where the authority is found at another address than its own.
    pub(crate) fn agent_over(&self, url: &str, node: &str, identity: &str) -> Agent {
        agent(node, &format!("url = \"{url}\"\nca = \"{}\"\n{identity}", self.ca.pem().display()))
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn certificate(files: &Files) -> String {
    format!("cert = \"{}\"\nkey = \"{}\"", files.cert.display(), files.key.display())
}

/// An agent of that name with these lines of `[authority]`; not started yet.
pub(crate) fn agent(node: &str, authority: &str) -> Agent {
    let agent = Agent::new(CARD, "enforcement = \"enforce\"\ninterval_ms = 100", &format!("[authority]\n{authority}"));
    let config = agent.path("meterd.toml");
    let text = std::fs::read_to_string(&config).unwrap().replace("node = \"test\"", &format!("node = \"{node}\""));
    std::fs::write(config, text).unwrap();
    agent
}

/// nano-credits of an amount.
pub(crate) fn nano(value: &Value) -> i128 {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no amount"));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}{fraction:0<9}").parse().unwrap()
}

/// The link, as `status` shows it.
pub(crate) fn link(agent: &Agent) -> Value {
    agent.done("GET", "/v1/status", None)["authority"]["link"].clone()
}

pub(crate) fn meterctl(agent: &Agent, words: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterctl"));
    let output = command.arg("--socket").arg(agent.path("run/meterd.sock")).args(words).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

pub(crate) fn secret_file(path: &Path, text: &str) {
    crate::certs::write(path, text);
}
