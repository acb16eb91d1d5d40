//! Who calls, and what they may do.
//!
//! A node speaks for itself alone: the node that a request names must be the one that the certificate or token names. People and
//! programs have a role; each role may do what those before it may.
//!
//! | | node | reader | operator | admin |
//! |---|---|---|---|---|
//! | ask for credit, hear events | as itself | | | |
//! | rate card | yes | yes | yes | yes |
//! | accounts, ledger | | yes | yes | yes |
//! | top up, withdraw | | | yes | yes |
//! | open accounts, change policies, audit log | | | | yes |

use sha2::{Digest as _, Sha256};

use crate::domain::id::{Digest, NodeId};
use crate::tls::{NODE_URI, Presented, ROLE_URI};

/// Shortest token, in bytes: 128 bits at four each.
pub const TOKEN_BYTES_MIN: usize = 32;
/// Longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 512;

/// What a person or a program may do. The least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look.
    Reader,
    /// Put credit in and take it out.
    Operator,
    /// Open accounts and change what they are for.
    Admin,
}

impl Role {
    /// Every one.
    pub const ALL: [Role; 3] = [Role::Reader, Role::Operator, Role::Admin];

    /// Its name in files, certificates and the audit log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Role::Reader => "reader",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

/// Who somebody is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Named {
    /// A node.
    Node(NodeId),
    /// A person or a program.
    Person {
        /// What it may do.
        role: Role,
        /// Its name, for the audit log.
        name: String,
    },
}

impl Named {
    /// Whom a certificate names: exactly one node or role, or nobody.
    #[must_use]
    pub fn of(certificate: &Presented) -> Option<Named> {
        let [uri] = certificate.uris.as_slice() else { return None };
        if let Some(node) = uri.strip_prefix(NODE_URI) {
            return node.parse().ok().map(Named::Node);
        }
        let (role, name) = uri.strip_prefix(ROLE_URI)?.split_once(':')?;
        let role = Role::ALL.into_iter().find(|known| known.name() == role)?;
        // Names of people stand in the same characters as those of nodes.
        let name: NodeId = name.parse().ok()?;
        Some(Named::Person { role, name: name.to_string() })
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Named::Node(node) => write!(f, "node {node}"),
            Named::Person { role, name } => write!(f, "{} {name}", role.name()),
        }
    }
}

/// Hashes of tokens, and whose they are. The tokens themselves are nowhere here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens(Vec<(Digest, Named)>);

impl Tokens {
    /// From the hashes.
    #[must_use]
    pub fn new(tokens: Vec<(Digest, Named)>) -> Tokens {
        Tokens(tokens)
    }

    /// Whose token is this? Every hash is compared to its end, whichever fits: the time tells nothing.
    #[must_use]
    pub fn owner(&self, token: &str) -> Option<Named> {
        if !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len()) {
            return None;
        }
        let shown: [u8; 32] = Sha256::digest(token).into();
        let mut owner = None;
        for (hash, named) in &self.0 {
            if std::hint::black_box(differing_bits(&hash.0, &shown)) == 0 {
                owner = Some(named);
            }
        }
        owner.cloned()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn differing_bits(one: &[u8; 32], other: &[u8; 32]) -> u8 {
    one.iter().zip(other).fold(0, |bits, (one, other)| bits | (one ^ other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(uris: &[&str]) -> Presented {
        Presented { fingerprint: Digest([0; 32]), serial: "1".to_owned(), uris: uris.iter().map(|uri| (*uri).to_owned()).collect() }
    }

    #[test]
    fn a_certificate_names_exactly_one_node_or_role() {
        let node = Named::Node("gpu-07".parse().unwrap());
        assert_eq!(Named::of(&certificate(&["urn:meterd:node:gpu-07"])), Some(node));
        let admin = Named::Person { role: Role::Admin, name: "alice".to_owned() };
        assert_eq!(Named::of(&certificate(&["urn:meterd:role:admin:alice"])), Some(admin));
        for nobody in [
            &["urn:meterd:node:a", "urn:meterd:node:b"][..],
            &["urn:meterd:node:a", "urn:meterd:role:admin:a"],
            &["urn:meterd:node:"],
            &["urn:meterd:role:root:alice"],
            &["urn:meterd:role:admin"],
            &["urn:meterd:role:admin:"],
            &[],
        ] {
            assert_eq!(Named::of(&certificate(nobody)), None, "{nobody:?}");
        }
    }

    #[test]
    fn a_token_is_known_by_its_hash_alone() {
        let (good, other) = ("a".repeat(32), "b".repeat(32));
        let hash = |token: &str| Digest(Sha256::digest(token).into());
        let node = Named::Node("n".parse().unwrap());
        let short = "a".repeat(31);
        let tokens = Tokens::new(vec![(hash(&good), node.clone()), (hash(&short), node.clone())]);
        assert_eq!(tokens.owner(&good), Some(node));
        for bad in [other, good.to_uppercase(), format!("{good} "), short, String::new()] {
            assert_eq!(tokens.owner(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn each_role_may_do_what_those_before_it_may() {
        assert!(Role::ALL.is_sorted());
    }
}
