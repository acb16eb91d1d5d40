//! `[authority]`: who keeps the balances.

use std::path::PathBuf;

use crate::domain::form::{Fault, Presence, Table, quoted};

const URL_BYTES_MAX: usize = 1_024;

/// Who keeps the balances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthorityConfig {
    /// The agent itself, for this machine alone.
    Embedded,
    /// An authority for a fleet.
    Network(NetworkConfig),
}

/// How to come to an authority over the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// `https://` and where it listens, without a path.
    pub url: String,
    /// Whose certificates are believed to be the authority's: a PEM file.
    pub ca: PathBuf,
    /// By what the authority knows this node.
    pub identity: OwnIdentity,
    /// Whose rate card is followed.
    pub card: CardSource,
}

/// By what the authority knows this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnIdentity {
    /// A certificate that names it, and its key: PEM files.
    Certificate {
        /// The certificate.
        cert: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// A token in a file.
    Token(PathBuf),
}

/// Whose rate card is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CardSource {
    /// The file's, here.
    Local,
    /// The authority's too: of both the one that is in force.
    Authority,
}

pub(super) fn read_authority(table: &Table<'_>) -> Option<AuthorityConfig> {
    let url = table.field("url").text(URL_BYTES_MAX).check(|url| plain_url(&url)).required();
    let ca = table.field("ca").absolute_path().check(|path| Ok(PathBuf::from(path))).required();
    let by_certificate = [table.holds("cert"), table.holds("key")].contains(&Presence::Given);
    let by_token = table.holds("token_file") == Presence::Given;
    let cert = table.field("cert").absolute_path().optional();
    let key = table.field("key").absolute_path().optional();
    let token = table.field("token_file").absolute_path().optional();
    let card = table.field("card").word(&[("local", CardSource::Local), ("authority", CardSource::Authority)]).or(CardSource::Local);
    let identity = match (by_certificate, by_token, cert?, key?, token?) {
        (true, false, Some(cert), Some(key), None) => Some(OwnIdentity::Certificate { cert: PathBuf::from(cert), key: PathBuf::from(key) }),
        (false, true, None, None, Some(token)) => Some(OwnIdentity::Token(PathBuf::from(token))),
        _ => {
            let fault = Fault::new("one_identity", "the authority knows this node by a certificate with its key, or by a token");
            table.note(fault.hint("give cert and key, or token_file"));
            None
        }
    };
    Some(AuthorityConfig::Network(NetworkConfig { url: url?, ca: ca?, identity: identity?, card: card? }))
}

/// `[engine]` is for the authority that this agent has within it.
pub(super) fn engine_fits(table: &Table<'_>, authority: Option<&AuthorityConfig>) -> Option<()> {
    if matches!(authority, Some(AuthorityConfig::Network(_))) && table.holds("engine") == Presence::Given {
        let fault = Fault::new("authority_elsewhere", "engine: the balances are kept by the authority in [authority]");
        table.note(fault.hint("write [engine] in its authority.toml"));
        return None;
    }
    Some(())
}

fn plain_url(text: &str) -> Result<String, Fault> {
    let plain = reqwest::Url::parse(text).ok().filter(|url| {
        url.scheme() == "https"
            && url.host().is_some()
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
    });
    let fault = || Fault::new("malformed", format!("{} is not the address of an authority", quoted(text)));
    plain
        .map(|url| url.as_str().trim_end_matches('/').to_owned())
        .ok_or_else(|| fault().hint("such as \"https://authority.example.org:8443\""))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn read(lines: &str) -> Result<AuthorityConfig, String> {
        let read = Config::parse(&format!("[authority]\n{lines}"), "m.toml").map(|config| config.authority);
        read.map_err(|mistakes| mistakes.iter().map(|mistake| format!("[{}] {mistake}", mistake.code)).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn a_node_is_known_by_a_certificate_or_by_a_token() {
        let base = "url = \"https://a.example:8443/\"\nca = \"/e/ca.pem\"\n";
        let network = |identity, card| {
            AuthorityConfig::Network(NetworkConfig {
                url: "https://a.example:8443".to_owned(),
                ca: PathBuf::from("/e/ca.pem"),
                identity,
                card,
            })
        };
        let certificate = OwnIdentity::Certificate { cert: PathBuf::from("/e/c"), key: PathBuf::from("/e/k") };
        assert_eq!(read(&format!("{base}cert = \"/e/c\"\nkey = \"/e/k\"\n")), Ok(network(certificate, CardSource::Local)));
        let token = OwnIdentity::Token(PathBuf::from("/e/t"));
        assert_eq!(read(&format!("{base}token_file = \"/e/t\"\ncard = \"authority\"")), Ok(network(token, CardSource::Authority)));
        for wrong in ["", "cert = \"/e/c\"\n", "key = \"/e/k\"\n", "cert = \"/e/c\"\nkey = \"/e/k\"\ntoken_file = \"/e/t\"\n"] {
            assert!(read(&format!("{base}{wrong}")).unwrap_err().starts_with("[one_identity] m.toml:1:1"), "{wrong}");
        }
    }

    #[test]
    fn every_mistake_of_the_table_is_named() {
        insta::assert_snapshot!(read("url = \"http://a\"\ntoken_file = \"t\"\ncrad = 1\n").unwrap_err(), @r#"
        [missing_key] m.toml:1:1: ca is missing (hint: it has no default)
        [malformed] m.toml:2:7: url: "http://a" is not the address of an authority (hint: such as "https://authority.example.org:8443")
        [not_absolute] m.toml:3:14: token_file: "t" is not an absolute path (hint: begin with /)
        [unknown_key] m.toml:4:1: unknown key "crad" (hint: did you mean card?)
        "#);
        for bad in ["https://", "https://u@a", "https://u:p@a", "https://a/path", "https://a/?q", "https://a/#f", "a:8443", "ftp://a"] {
            assert!(
                read(&format!("url = \"{bad}\"\nca = \"/c\"\ntoken_file = \"/t\"\n")).unwrap_err().contains("not the address"),
                "{bad}"
            );
        }
    }
}
