//! Who may do what at the authority, by which certificate or token, and that files of them change without a restart.

use serde_json::{Value, json};

use crate::certs::{Ca, write};
use crate::https::Client;
use crate::node::{Epoch, Told};
use crate::process::{Authority, certificate, link, secret_file};

fn client(authority: &Authority, files: &crate::certs::Files) -> Client {
    Client::new(authority.port, &authority.ca.pem(), Some(files))
}

#[test]
fn only_a_certificate_of_the_authoritys_ca_that_names_one_node_speaks_for_it() {
    let authority = Authority::start("", "");
    authority.account("lab", "100");
    let stranger = Ca::new(&authority.path("strangers"), "another CA").node("n1", "n1");
    let refused = Client::new(authority.port, &authority.ca.pem(), Some(&stranger)).try_call("GET", "/v1/card", "");
    assert!(refused.is_err(), "a certificate of another CA is refused in the handshake: {refused:?}");
    let body = |node: &str| Epoch::new(&authority.admin, node, 1, "lab").body(1, Told { owed: "1", ..Told::default() });
    let n1 = client(&authority, &authority.ca.node("n1", "n1"));
    assert_eq!(n1.call("POST", "/v1/grants", &body("n2")).code(), "wrong_node");
    assert_eq!(n1.call("POST", "/v1/grants", &body("n1")).status, 200);
    for (nth, uris) in [&["urn:meterd:node:n1", "urn:meterd:node:n2"][..], &["https://example.org/n1"], &[]].into_iter().enumerate() {
        let nobody = client(&authority, &authority.ca.uris(&format!("nobody-{nth}"), 9, uris));
        let answer = nobody.call("POST", "/v1/grants", &body("n1"));
        assert_eq!((answer.status, answer.code().as_str()), (403, "certificate_names_nobody"), "{uris:?}");
    }
    let none = Client::new(authority.port, &authority.ca.pem(), None);
    assert_eq!(none.call("POST", "/v1/grants", &body("n1")).code(), "no_identity");
    assert_eq!(none.call("GET", "/healthz", &Value::Null).json()["alive"], "yes");
    let kept = authority.kept("lab");
    assert_eq!(kept["held"], "1", "one of them was answered: {kept}");
}

#[test]
fn each_role_may_do_what_it_may_and_every_change_stands_in_the_audit_log() {
    let authority = Authority::start("", "");
    authority.account("lab", "100");
    let person = |role: &str| client(&authority, &authority.ca.person(role, &format!("{role}-1")));
    let node = client(&authority, &authority.ca.node("n1", "n1"));
    let reader = person("reader");
    let operator = person("operator");
    let payment = json!({ "amount": "5", "bucket": "free", "payment": "gift" });
    let calls = [
        ("GET", "/v1/accounts", Value::Null, [403, 200, 200]),
        ("GET", "/v1/accounts/lab/ledger?limit=1", Value::Null, [403, 200, 200]),
        ("GET", "/metrics", Value::Null, [403, 200, 200]),
        ("POST", "/v1/accounts/lab/topup", payment.clone(), [403, 403, 201]),
        ("POST", "/v1/accounts/lab/topup", payment, [403, 403, 200]),
        ("POST", "/v1/accounts/lab/revoke", json!({ "amount": "2", "revocation": "back" }), [403, 403, 201]),
        ("POST", "/v1/accounts/lab/policy", json!({ "grace_s": 7 }), [403, 403, 403]),
        ("POST", "/v1/accounts", json!({ "account": "new" }), [403, 403, 403]),
        ("GET", "/v1/audit", Value::Null, [403, 403, 403]),
    ];
    for (method, path, body, wanted) in calls {
        let found = [&node, &reader, &operator].map(|who| who.call(method, path, &body).status);
        assert_eq!(found, wanted, "{method} {path}");
    }
    assert_eq!(reader.call("POST", "/v1/grants", &json!({})).code(), "not_permitted");
    let kept = authority.kept("lab");
    assert_eq!((&kept["available"], &kept["revoked"]), (&json!("103"), &json!("2")), "{kept}");
    authority.admin.done("POST", "/v1/accounts/lab/policy", &json!({ "grace_s": 7 }));
    assert_eq!(
        authority.admin.call("POST", "/v1/accounts/lab/policy", &json!({ "grace": 7, "then": "x" })).json()["errors"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let lines = authority.admin.done("GET", "/v1/audit?limit=1000", &Value::Null)["lines"].clone();
    let wishes: Vec<(String, String)> = lines
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .filter_map(|line| Some((line["by"].as_str()?.to_owned(), line["what"].as_str()?.to_owned())))
        .collect();
    let wanted = [
        ("admin alice", "create_account"),
        ("admin alice", "topup"),
        ("operator operator-1", "topup"),
        ("operator operator-1", "topup"),
        ("operator operator-1", "revoke"),
        ("admin alice", "policy"),
    ];
    assert_eq!(wishes, wanted.map(|(by, what)| (by.to_owned(), what.to_owned())));
    let outcomes: Vec<&str> = lines.as_array().unwrap().iter().rev().filter_map(|line| line["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["done", "done", "done", "before", "done", "done"]);
}

#[test]
fn a_token_stands_for_a_certificate_is_known_by_its_hash_alone_and_can_be_withdrawn_without_a_restart() {
    let mut authority = Authority::start("", "");
    let tokens = authority.path("tokens.toml");
    let mut made = Vec::new();
    for (file, words) in [("node-token", &["--node", "n1"][..]), ("reader-token", &["--role", "reader", "--name", "bob"])] {
        let path = authority.path(file).display().to_string();
        let output = authority.command(&[&["new-token"], words, &[&path]].concat());
        assert!(output.status.success(), "{output:?}");
        let token = std::fs::read_to_string(&path).unwrap().trim().to_owned();
        let entry = String::from_utf8(output.stdout).unwrap();
        assert!(!entry.contains(&token), "the token itself is not printed");
        made.push((token, entry));
    }
    let config = authority.path("authority.toml");
    let text = std::fs::read_to_string(&config).unwrap() + &format!("[access]\ntokens = \"{}\"\n", tokens.display());
    std::fs::write(&config, text).unwrap();
    std::fs::write(&tokens, format!("{}{}", made[0].1, made[1].1)).unwrap();
    assert_eq!(authority.end(), Some(0));
    authority.launch();
    authority.account("lab", "100");
    let anybody = Client::new(authority.port, &authority.ca.pem(), None);
    let with = |token: &str| anybody.with(&format!("authorization: Bearer {token}\r\n"));
    let (node, reader) = (with(&made[0].0), with(&made[1].0));
    assert_eq!(Epoch::new(&node, "n1", 1, "lab").ask(1, Told { owed: "1", ..Told::default() })["granted"], "1");
    assert_eq!(reader.call("GET", "/v1/accounts", &Value::Null).status, 200);
    assert_eq!(reader.call("POST", "/v1/accounts", &json!({ "account": "x" })).code(), "not_permitted");
    assert_eq!(with(&"0".repeat(64)).call("GET", "/v1/accounts", &Value::Null).code(), "unknown_token");
    let mut agent = authority.agent_with("n1", &format!("token_file = \"{}\"", authority.path("node-token").display()));
    agent.launch();
    agent.wait_for("the stream of events is open", |agent| link(agent)["stream"] == "open");
    std::fs::write(&tokens, &made[1].1).unwrap();
    authority.signal("HUP");
    authority.wait_for("the token is nobody's", |_| node.call("GET", "/v1/card", &Value::Null).code() == "unknown_token");
    assert_eq!(reader.call("GET", "/v1/accounts", &Value::Null).status, 200);
    agent.wait_for("the stream of events is cut", |agent| link(agent)["stream"] == "closed");
    let (log, agents) = (std::fs::read_to_string(authority.path("log")).unwrap(), std::fs::read_to_string(agent.path("log")).unwrap());
    assert!(!made.iter().any(|(token, _)| log.contains(token) || agents.contains(token)), "no token stands in a log");
}

#[test]
fn certificates_change_and_are_revoked_without_a_restart_of_either_side() {
    let Some(mut cgroups) = crate::cgroup::cgroups("rotate", 1) else { return };
    let revoked_dir = tempfile::tempdir().unwrap();
    let revoked = revoked_dir.path().join("revoked");
    std::fs::write(&revoked, "# none yet\n").unwrap();
    let authority = Authority::start("", &format!("[access]\nrevoked = \"{}\"", revoked.display()));
    authority.account("lab", "1000");
    let old = authority.ca.uris("old", 0x0abc, &["urn:meterd:node:n1"]);
    let (cert, key) = (authority.path("node.pem"), authority.path("node.key"));
    let install = |from: &crate::certs::Files| {
        write(&key, &std::fs::read_to_string(&from.key).unwrap());
        write(&cert, &std::fs::read_to_string(&from.cert).unwrap());
    };
    install(&old);
    let installed = crate::certs::Files { cert: cert.clone(), key: key.clone() };
    let mut agent = authority.agent_with("n1", &certificate(&installed));
    agent.launch();
    crate::jobs::start(&agent, &mut cgroups[0], "job", "lab");
    std::fs::write(&revoked, "serial:0ABC # lost\n").unwrap();
    authority.signal("HUP");
    let of_old = client(&authority, &old);
    authority.wait_for("the certificate is refused", |_| of_old.call("GET", "/v1/card", &Value::Null).code() == "certificate_revoked");
    agent.wait_for("the agent names it", |agent| link(agent)["fault"]["code"] == "refused_403");
    assert!(!cgroups[0].is_frozen(), "it holds a grant");
    let said = link(&agent)["fault"]["message"].as_str().unwrap().to_owned();
    assert!(said.contains("revoked"), "{said}");
    install(&authority.ca.uris("new", 0x0abd, &["urn:meterd:node:n1"]));
    agent.wait_for("the new certificate is used", |agent| link(agent)["fault"].is_null() && link(agent)["stream"] == "open");
    // The server's own: the CA gives it another one, and new connections see it.
    let before = client(&authority, &old).server_certificate();
    let renewed = authority.ca.server("server");
    authority.signal("HUP");
    authority.wait_for("the new one is shown", |authority| client(authority, &old).server_certificate() != before);
    assert_eq!(client(&authority, &old).server_certificate(), crate::https::der(&renewed.cert));
    agent.wait_for("the agent goes on", |agent| link(agent)["fault"].is_null() && link(agent)["stream"] == "open");
    // A mistake in a file leaves what was there before.
    std::fs::write(&revoked, "serial:0ABC\nnonsense\n").unwrap();
    authority.signal("HUP");
    authority.wait_for("the mistake is named with its line", |authority| authority.log().contains("revoked:2:1"));
    assert_eq!(of_old.call("GET", "/v1/card", &Value::Null).code(), "certificate_revoked");
    assert!(!cgroups[0].is_frozen());
}

#[test]
fn bodies_calls_and_cards_are_bounded_tagged_and_refused_with_reasons() {
    let card = tempfile::tempdir().unwrap();
    let path = card.path().join("card.toml");
    std::fs::write(&path, crate::process::CARD).unwrap();
    let authority = Authority::start(&format!("rate_card = \"{}\"", path.display()), "[limits]\nbody_kib = 16\ncalls_per_s = 20");
    let node = client(&authority, &authority.ca.node("n1", "n1"));
    let first = node.call("GET", "/v1/card", &Value::Null);
    assert_eq!((first.status, first.body.as_str()), (200, crate::process::CARD));
    let tag = first.header("etag").unwrap().to_owned();
    let same = node.with(&format!("if-none-match: {tag}\r\n")).call("GET", "/v1/card", &Value::Null);
    assert_eq!((same.status, same.body.as_str(), same.header("etag")), (304, "", Some(tag.as_str())));
    std::fs::write(&path, crate::process::CARD.replace("version = 1", "version = 2")).unwrap();
    authority.signal("HUP");
    let asked = node.with(&format!("if-none-match: {tag}\r\n"));
    authority.wait_for("the new card is served", |_| asked.call("GET", "/v1/card", &Value::Null).status == 200);
    let answer = |body: &str| {
        let answer = node.try_call("POST", "/v1/grants", body).unwrap();
        (answer.status, answer.code())
    };
    assert_eq!(answer(&" ".repeat(17 << 10)), (413, "body_too_large".to_owned()));
    assert_eq!(answer("{"), (400, "malformed_body".to_owned()));
    assert_eq!(answer("{\"protocol\": 2}"), (400, "unknown_protocol".to_owned()));
    assert_eq!(node.call("GET", "/v1/nothing", &Value::Null).code(), "unknown_path");
    assert_eq!(node.call("DELETE", "/v1/grants", &Value::Null).code(), "wrong_method");
    let refused = (0..200).filter(|_| node.call("GET", "/v1/card", &Value::Null).code() == "too_many_calls").count();
    assert_ne!(refused, 0, "200 calls at once are more than 20 a second");
    assert_eq!(authority.admin.call("GET", "/v1/accounts", &Value::Null).status, 200, "others are not held up");
    let metrics = authority.admin.call("GET", "/metrics", &Value::Null).body;
    assert!(metrics.contains("meter_authority_calls_total{path=\"/v1/grants\",status=\"413\"} 1\n"), "{metrics}");
}

#[test]
fn a_key_or_token_that_others_can_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let authority = Authority::start("", "");
    let token = authority.path("token");
    secret_file(&token, &"a".repeat(40));
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut agent = authority.agent_with("n1", &format!("token_file = \"{}\"", token.display()));
    agent.launch();
    agent.wait_for("the agent names it", |agent| link(agent)["stream_fault"]["code"] == "unusable_files");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    agent.wait_for("it is tried", |agent| link(agent)["stream_fault"]["code"] == "refused_401");
}
