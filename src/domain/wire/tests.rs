use serde_json::{Value, json};

use super::*;
use crate::domain::id::BootId;

/// As an agent wrote a question before anything but its core was said: the journal's form, and its digest.
fn core() -> Request {
    let entry = |account: &str| RequestEntry {
        account: account.parse().unwrap(),
        unit: UNIT.to_owned(),
        granted_seen: Credits::from_nano(10),
        returned: Credits::ZERO,
        spent: Credits::from_nano(3),
        unfunded: Credits::ZERO,
        owed: Credits::ZERO,
        burn_per_s: Credits::from_nano(1),
        at_least: Credits::ZERO,
        validity: None,
        proof: None,
    };
    Request {
        protocol: PROTOCOL,
        node: "n".parse().unwrap(),
        epoch: Epoch([1; 16]),
        boot: BootId([2; 16]),
        request: 7,
        previous: vec![PreviousEpoch { epoch: Epoch([9; 16]), entries: vec![entry("c")] }],
        entries: vec![entry("a"), entry("b")],
        generation_seen: 0,
        history: None,
        gangs: Vec::new(),
        refunds: Vec::new(),
    }
}

fn proof(granted: i128) -> Proof {
    Proof { generation: 1, request: 6, granted: Credits::from_nano(granted), code: Digest([5; 32]) }
}

fn whole() -> Request {
    let mut request = core();
    request.generation_seen = 4;
    let said = |request: u64| Said { request, digest: Digest([8; 32]) };
    request.history = Some(History { acked: Some(said(5)), unanswered: vec![said(6)] });
    request.entries[0].validity = Some(Validity::Live);
    request.entries[1].proof = Some(proof(10));
    request.previous[0].entries[0].proof = Some(proof(9));
    request
}

/// The bytes are put together by hand from the format, and the digest is another program's of them.
#[test]
fn what_only_has_a_core_is_in_the_journal_and_in_its_digest_as_it_was_before() {
    let bytes = postcard::to_stdvec(&core()).unwrap();
    let digits = CORE_BEFORE.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
    assert_eq!(bytes, digits.collect::<Vec<u8>>());
    assert_eq!(core().digest().to_string(), DIGEST_BEFORE);
    assert_eq!(postcard::from_bytes::<Request>(&bytes).unwrap(), core());
}

const CORE_BEFORE: &str = "01016e01010101010101010101010101010101020202020202020202020202020202020701090909090909090909090909090909090101630b6e616e6f2d637265646974140006000002000201610b6e616e6f2d6372656469741400060000020001620b6e616e6f2d63726564697414000600000200";
const DIGEST_BEFORE: &str = "e1155ad2b16c44a5e13c8b4668d2d57ec00ea34bb22818c3d265d595942a43d3";

#[test]
fn the_journal_keeps_the_core_and_what_else_is_said_comes_back_from_a_part_of_its_own() {
    let bytes = postcard::to_stdvec(&whole()).unwrap();
    assert_eq!(bytes, postcard::to_stdvec(&core()).unwrap());
    let rest = postcard::to_stdvec(&whole().rest()).unwrap();
    let mut read = postcard::from_bytes::<Request>(&bytes).unwrap();
    read.put_rest(postcard::from_bytes(&rest).unwrap());
    assert_eq!(read, whole());
    assert!(core().is_plain() && !whole().is_plain());
}

#[test]
fn each_word_beside_the_core_makes_a_request_more_than_plain() {
    let leave_only: [fn(&mut Request, &Request); 5] = [
        |request, whole| request.generation_seen = whole.generation_seen,
        |request, whole| request.history.clone_from(&whole.history),
        |request, whole| request.entries[0].validity = whole.entries[0].validity,
        |request, whole| request.entries[1].proof = whole.entries[1].proof,
        |request, whole| request.previous[0].entries[0].proof = whole.previous[0].entries[0].proof,
    ];
    for leave in leave_only {
        let mut request = core();
        leave(&mut request, &whole());
        assert!(request != core() && !request.is_plain(), "{request:?}");
    }
}

#[test]
fn every_word_is_in_the_digest() {
    let change: [fn(&mut Request); 6] = [
        |request| request.generation_seen += 1,
        |request| request.history = None,
        |request| request.history.as_mut().unwrap().unanswered.clear(),
        |request| request.entries[0].validity = Some(Validity::Lapsed),
        |request| request.entries[1].proof = Some(proof(11)),
        |request| request.previous[0].entries[0].proof = None,
    ];
    for change in change {
        let mut changed = whole();
        change(&mut changed);
        assert_ne!(changed.digest(), whole().digest(), "{changed:?}");
    }
    assert_ne!(whole().digest(), core().digest());
}

#[test]
fn a_message_of_a_side_that_knows_of_nothing_else_reads_as_if_it_said_nothing() {
    let text = serde_json::to_value(core()).unwrap();
    for absent in ["generation_seen", "history"] {
        assert_eq!(text.get(absent), None, "{absent}");
    }
    assert_eq!(serde_json::from_value::<Request>(text).unwrap(), core());
    let text = serde_json::to_value(Question { request: whole(), journal: Some(Head::START) }).unwrap();
    assert_eq!((&text["request"], &text["journal"]["seq"], &text["entries"][0]["validity"]), (&json!(7), &json!(0), &json!("live")));
    let question: Question = serde_json::from_value(text.clone()).unwrap();
    assert_eq!((question.request, question.journal), (whole(), Some(Head::START)));
    assert_eq!(serde_json::from_value::<Request>(text).unwrap(), whole(), "beside what else stands there");
}

#[test]
fn an_answer_of_an_older_authority_has_no_generation_and_no_proof() {
    let entry = json!({ "account": "a", "unit": UNIT, "granted": "1", "valid_for_ns": 1, "verdict": "granted", "settled": "0", "free": "0",
        "version": 1, "policy": AccountPolicy::default() });
    let answer =
        json!({ "protocol": 1, "epoch": "0".repeat(32), "request": 1, "digest": "0".repeat(64), "acknowledged": [], "entries": [entry] });
    let answer: Answer = serde_json::from_value::<Answer>(answer).unwrap();
    assert_eq!((answer.generation, answer.entries[0].proof), (0, None));
    let text: Value = serde_json::to_value(&answer).unwrap();
    assert_eq!((text.get("generation"), text["entries"][0].get("proof")), (None, None));
}

#[test]
fn each_word_has_one_that_older_agents_know_and_that_is_no_harsher() {
    let plain = [
        (Verdict::Recovering, Verdict::Hold),
        (Verdict::NotAdmitted, Verdict::Hold),
        (Verdict::Stale, Verdict::Hold),
        (Verdict::Forked, Verdict::Closed),
        (Verdict::Unproven, Verdict::Closed),
        (Verdict::Exhausted, Verdict::Exhausted),
        (Verdict::Recall, Verdict::Recall),
    ];
    for (word, known) in plain {
        assert_eq!(word.plain(), known);
        assert_eq!(word.voids_epoch(), known.voids_epoch(), "{word:?}");
    }
    assert!(Verdict::Recovering.prolongs() && Verdict::Stale.prolongs() && !Verdict::Hold.prolongs() && !Verdict::Forked.prolongs());
}
