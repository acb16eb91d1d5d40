//! A proof: the authority's mark on what it granted an epoch. Only it can make one, so when it is shown one that goes beyond what its store
//! knows, the store has forgotten: it was put back from a copy. A claim without a proof is worth nothing.
//!
//! The mark is an HMAC-SHA256 (RFC 2104) under a key that is kept beside the store and never in a copy of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::id::{AccountId, Digest, Epoch, NodeId};
use super::money::Credits;

const TAG: &[u8] = b"meterd grant v1\0";
/// Bytes that SHA-256 takes at a time.
const BLOCK_BYTES: usize = 64;

/// What the authority had granted an epoch in total when it answered, and its mark on that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Proof {
    /// The store's generation then.
    pub generation: u64,
    /// The last question of the epoch about this account that had been taken.
    pub request: u64,
    /// Moved from the balance into the epoch, in total.
    pub granted: Credits,
    /// The mark.
    pub code: Digest,
}

/// Whose grant it is.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// Who speaks for the epoch.
    pub node: &'a NodeId,
    /// Whose credit.
    pub account: &'a AccountId,
    /// In which escrow.
    pub epoch: Epoch,
}

/// The authority's key.
#[derive(Clone, PartialEq, Eq)]
pub struct ProofKey([u8; 32]);

impl std::fmt::Debug for ProofKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProofKey")
    }
}

impl ProofKey {
    /// A key of these random bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> ProofKey {
        ProofKey(bytes)
    }

    /// A proof for this holder.
    #[must_use]
    pub fn prove(&self, holder: Holder<'_>, generation: u64, request: u64, granted: Credits) -> Proof {
        Proof { generation, request, granted, code: self.code(holder, generation, request, granted) }
    }

    /// Was this proof made with this key, for this holder?
    #[must_use]
    pub fn made(&self, holder: Holder<'_>, proof: &Proof) -> bool {
        let own = self.code(holder, proof.generation, proof.request, proof.granted);
        // All bytes are compared, so that how long it takes tells nothing.
        own.0.iter().zip(proof.code.0).fold(0, |differs, (one, other)| differs | (one ^ other)) == 0
    }

    fn code(&self, holder: Holder<'_>, generation: u64, request: u64, granted: Credits) -> Digest {
        let (node, account) = (holder.node.as_str().as_bytes(), holder.account.as_str().as_bytes());
        let length = |name: &[u8]| u64::try_from(name.len()).unwrap_or(u64::MAX).to_be_bytes();
        let parts: [&[u8]; 9] = [
            TAG,
            &length(node),
            node,
            &length(account),
            account,
            &holder.epoch.0,
            &generation.to_be_bytes(),
            &request.to_be_bytes(),
            &granted.nano().to_be_bytes(),
        ];
        Digest(hmac_sha256(&self.0, &parts))
    }
}

/// RFC 2104, for keys that are no longer than a block.
fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let padded = |pad: u8| {
        let mut block = [pad; BLOCK_BYTES];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let mut inner = Sha256::new_with_prefix(padded(0x36));
    for part in parts {
        inner.update(part);
    }
    Sha256::new_with_prefix(padded(0x5c)).chain_update(inner.finalize()).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_mark_is_hmac_sha256_as_rfc_4231_has_it() {
        let cases: [(&[u8], &[u8], &str); 2] = [
            (&[0x0b; 20], b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (b"Jefe", b"what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
        ];
        for (key, text, expected) in cases {
            assert_eq!(Digest(hmac_sha256(key, &[text])).to_string(), expected);
            let (one, other) = text.split_at(3);
            assert_eq!(Digest(hmac_sha256(key, &[one, other])).to_string(), expected, "in parts");
        }
    }

    #[test]
    fn a_proof_is_good_for_its_holder_its_figures_and_its_key_alone() {
        let (node, other): (NodeId, NodeId) = ("n".parse().unwrap(), "m".parse().unwrap());
        let (account, another): (AccountId, AccountId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let key = ProofKey::new([7; 32]);
        let holder = Holder { node: &node, account: &account, epoch: Epoch([1; 16]) };
        let proof = key.prove(holder, 3, 5, Credits::from_nano(100));
        assert!(key.made(holder, &proof));
        assert!(!ProofKey::new([8; 32]).made(holder, &proof));
        for foreign in
            [Holder { node: &other, ..holder }, Holder { account: &another, ..holder }, Holder { epoch: Epoch([2; 16]), ..holder }]
        {
            assert!(!key.made(foreign, &proof), "{foreign:?}");
        }
        for bent in [
            Proof { generation: 4, ..proof },
            Proof { request: 6, ..proof },
            Proof { granted: Credits::from_nano(101), ..proof },
            Proof { code: Digest([0; 32]), ..proof },
        ] {
            assert!(!key.made(holder, &bent), "{bent:?}");
        }
    }

    proptest! {
        #[test]
        fn names_do_not_run_into_one_another(one in "[a-z]{1,9}", other in "[a-z]{1,9}", at in 0_usize..9) {
            let key = ProofKey::new([7; 32]);
            let joined = format!("{one}{other}");
            let at = 1 + at % (joined.len() - 1);
            let (node, account): (NodeId, AccountId) = (one.parse().unwrap(), other.parse().unwrap());
            let (node2, account2): (NodeId, AccountId) = (joined[..at].parse().unwrap(), joined[at..].parse().unwrap());
            let proof = key.prove(Holder { node: &node, account: &account, epoch: Epoch([1; 16]) }, 1, 1, Credits::ZERO);
            let made = key.made(Holder { node: &node2, account: &account2, epoch: Epoch([1; 16]) }, &proof);
            prop_assert_eq!(made, at == one.len());
        }
    }
}
