//! What is kept of accounts in memory is what the file holds.

use proptest::prelude::*;

use super::*;
use crate::domain::id::NodeId;

#[derive(Clone, Copy, Debug)]
enum Act {
    Ask { node: u8, epoch: u8, spent: i128, owed: i128, returned: i128 },
    Previous { node: u8, spent: i128 },
    Pay,
    Revoke,
    Refused,
    Policy,
    Sweep,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (1..4_u8, 0..2_u8, 0..9_i128, 0..9_i128, 0..3_i128)
            .prop_map(|(node, epoch, spent, owed, returned)| Act::Ask { node, epoch, spent, owed, returned }),
        2 => (1..4_u8, 0..9_i128).prop_map(|(node, spent)| Act::Previous { node, spent }),
        1 => Just(Act::Pay),
        1 => Just(Act::Revoke),
        1 => Just(Act::Refused),
        1 => Just(Act::Policy),
        1 => Just(Act::Sweep),
    ]
}

fn done(store: &mut Store, nth: u64, act: Act) {
    let at = Now { mono: now().mono.plus(Nanos::from_secs(nth * 200)), ..now() };
    let from = |node: u8, epoch: u8, entries| Request {
        node: name::<NodeId>(&format!("n{node}")),
        ..request(16 * node + epoch, nth + 1, entries)
    };
    match act {
        Act::Ask { node, epoch, spent, owed, returned } => {
            let needs = RequestEntry { owed: credits(owed), returned: credits(returned), ..entry("acme", spent) };
            let answer = store.answer(&from(node, epoch, vec![needs]), at).unwrap();
            store.recall(&answer, at).unwrap();
        }
        Act::Previous { node, spent } => {
            let mut asked = from(node, 1, Vec::new());
            asked.previous = vec![PreviousEpoch { epoch: Epoch([16 * node; 16]), entries: vec![entry("acme", spent)] }];
            store.answer(&asked, at).unwrap();
        }
        Act::Pay => drop(top_up(store, "acme", Bucket::Free, 3, &format!("p{nth}")).unwrap()),
        Act::Revoke => drop(store.revoke(&name("acme"), Some(credits(2)), &name(&format!("r{nth}")), at)), // there may be too little
        Act::Refused => drop(top_up(store, "acme", Bucket::Paid, 0, "nothing").unwrap_err()),
        Act::Policy => {
            let policy = AccountPolicy { grace: Nanos(nth), ..AccountPolicy::default() };
            store.set_policy(&name("acme"), policy, Terms::default(), at).unwrap();
        }
        Act::Sweep => store.sweep(at).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_is_done_what_is_kept_is_what_the_file_holds(acts in proptest::collection::vec(act(), 1..24)) {
        let dir = tempfile::tempdir().unwrap();
        let close = ClosePolicy::AfterSilence(Nanos::from_secs(667));
        let mut store = Store::open(&dir.path().join("authority.db"), close, now().mono).unwrap();
        store.connection.execute_batch("PRAGMA synchronous = OFF").unwrap(); // nothing here is about the disk
        store.create_account(name("acme"), AccountPolicy::default(), Terms::default(), now()).unwrap();
        top_up(&mut store, "acme", Bucket::Paid, 30, "first").unwrap();
        for (nth, act) in acts.into_iter().enumerate() {
            done(&mut store, nth as u64, act);
            let mut nothing = crate::authority::store::kept::Kept::default();
            let stored = Books::over(&store.connection, &mut store.heard, &mut nothing, &mut store.standing).read(&name("acme")).ok().flatten();
            if let Some(kept) = store.kept.get(&name("acme")) {
                prop_assert_eq!(Some(kept), stored.as_ref(), "after {:?}", act);
            }
        }
    }
}
