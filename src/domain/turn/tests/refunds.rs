//! What an outcome gives back of what was charged as the job ran: who gets what, when it is told, and that it is told until it was heard.

use super::*;
use crate::domain::receipt::{Receipt, verify};
use crate::domain::wire::RefundTotal;

fn priced_by(line: &str, nano: i128) -> Bench {
    let mut bench = Bench::new();
    let text = format!("card = \"refunds\"\nversion = 2\neffective_from = \"2026-01-01T00:00:00Z\"\n[[line]]\nid = \"l\"\n{line}\n");
    let card = Card::parse(&text, "card.toml").unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    bench.step(Event::CardArrived(Box::new(card), Vec::new()));
    bench.durable();
    bench.free = nano;
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    bench
}

fn ended(bench: &mut Bench, outcome: Outcome) {
    let gone = |bench: &Bench| JobSample { populated: Reading::Seen(Populated::No), ..bench.sample(Attempt(1)) };
    let (sample, ending) = (gone(bench), Ending { outcome, exit_code: None });
    bench.step(Event::StopAsked { caller: 2, name: "job".parse().unwrap(), ending, sample: Some(sample) });
    bench.pass(100);
    let sample = gone(bench);
    bench.step(Event::Looked(vec![sample]));
    bench.durable();
}

fn credits(text: &str) -> Credits {
    text.parse().unwrap()
}

fn total(epoch: u8, refunded: &str) -> RefundTotal {
    RefundTotal { epoch: Epoch([epoch; 16]), account: "a".parse().unwrap(), refunded: credits(refunded) }
}

/// The receipt that was stored, checked against its card.
fn receipt(bench: &Bench) -> Receipt {
    let batches = bench.out.iter().filter_map(|effect| if let Effect::Commit(batch) = effect { Some(batch) } else { None });
    let json = batches.flat_map(|batch| &batch.receipts).next().expect("it was closed").json.clone();
    let receipt: Receipt = serde_json::from_str(&json).unwrap();
    assert_eq!(verify(&receipt, &bench.turn.agent().cards), Ok(receipt.charge));
    receipt
}

const ACCRUED: &str =
    "meter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-second\"\noutcome = { infrastructure = \"0\", preempted = \"0.25\" }";
const ADVANCE: &str = "meter = \"wall_time\"\nprice = \"0.60\"\nunit = \"hour\"\nincrement = \"1\"\ntiming = \"advance\"\noutcome = { infrastructure = \"0\" }";

#[test]
fn v8_a_job_that_the_machine_failed_is_charged_and_gets_all_of_it_back() {
    for (line, charge, outcome, refund) in [
        (ACCRUED, "2", Outcome::Infrastructure, "2"),
        (ACCRUED, "2", Outcome::Preempted, "1.5"),
        (ACCRUED, "2", Outcome::Completed, "0"),
        (ADVANCE, "0.6", Outcome::Infrastructure, "0.6"),
        (ADVANCE, "0.6", Outcome::Failed, "0"),
    ] {
        let mut bench = priced_by(line, 30_000_000_000);
        bench.work(2_000);
        bench.durable();
        assert_eq!((bench.job().charge, bench.job().drawn), (credits(charge), credits(charge)));
        ended(&mut bench, outcome);
        let job = bench.job();
        assert_eq!(
            (job.charge, job.drawn, job.owed()),
            (credits(charge), credits(charge), Credits::ZERO),
            "what was charged stays charged"
        );
        assert_eq!((job.reduced(), job.refunded()), (credits(refund), credits(refund)), "{outcome}");
        let grant = &bench.turn.agent().accounts.values().next().unwrap().grant;
        assert_eq!(grant.spent, credits(charge), "no total falls");
        let receipt = receipt(&bench);
        assert_eq!(receipt.net(), credits(charge).minus(credits(refund)));
        assert_eq!(receipt.refund.is_some(), refund != "0");
    }
}

#[test]
fn v8_a_refund_is_told_at_once_and_until_an_answer_has_come() {
    let mut bench = priced_by(ACCRUED, 30_000_000_000);
    bench.work(2_000);
    bench.durable();
    ended(&mut bench, Outcome::Infrastructure);
    bench.pass(200);
    bench.step(Event::Looked(Vec::new()));
    bench.durable();
    let first = bench.question().unwrap();
    assert_eq!((first.refunds.clone(), first.entries[0].spent), (vec![total(7, "2")], credits("2")));
    bench.pass(1_000);
    bench.step(Event::Looked(Vec::new()));
    assert_eq!(bench.question(), Some(first.clone()), "repeated word for word");
    // A crash before the answer: it is told again.
    let agent = bench.turn.agent().clone();
    let stored = Agent::decode(&agent.encode()).unwrap();
    assert_eq!(stored, agent, "a checkpoint holds it");
    bench.wake(stored, &[]);
    bench.pass(1_000);
    bench.step(Event::Looked(Vec::new()));
    let again = bench.question().unwrap();
    assert_eq!((again.refunds.clone(), again.digest()), (first.refunds.clone(), first.digest()));
    bench.out.clear();
    bench.step(Event::Looked(Vec::new()));
    let request = again;
    bench.out.push(Effect::Send(request));
    bench.answer();
    bench.durable();
    assert!(bench.turn.agent().refunds.values().all(|back| back.told == credits("2")));
}

#[test]
fn v8_what_was_owed_need_not_be_paid_and_nothing_is_given_back_for_it() {
    let mut bench = priced_by(ACCRUED, 1_000_000_000);
    bench.work(3_000);
    assert_eq!((bench.job().drawn, bench.job().owed()), (credits("1"), credits("2")));
    ended(&mut bench, Outcome::Infrastructure);
    let job = bench.job();
    let refund = job.refund.as_deref().unwrap();
    assert_eq!((job.charge, job.drawn, job.unfunded, refund.waived), (credits("3"), credits("1"), Credits::ZERO, credits("2")));
    assert_eq!((job.reduced(), job.refunded()), (credits("3"), credits("1")));
    assert_eq!(receipt(&bench).net(), Credits::ZERO, "closed without a word of the authority: nothing is owed");
}

#[test]
fn v8_a_job_that_a_reboot_ended_gives_back_what_was_drawn_in_the_epoch_before() {
    let line = "meter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-second\"\noutcome = { node_rebooted = \"0\" }";
    let mut bench = priced_by(line, 30_000_000_000);
    bench.work(2_000);
    bench.durable();
    let agent = bench.turn.agent().clone();
    let settings = Settings { boot: BootId([2; 16]), ..bench.turn.settings().clone() };
    let (turn, out) = Turn::wake(agent, settings, bench.now, Epoch([9; 16]), &BTreeSet::new());
    (bench.turn, bench.out) = (turn, out);
    assert_eq!(bench.job().ending.unwrap().outcome, Outcome::NodeRebooted);
    assert_eq!(bench.job().refund.as_deref().unwrap().given, [(Epoch([7; 16]), credits("2"))]);
    bench.durable();
    bench.pass(200);
    bench.step(Event::Looked(Vec::new()));
    bench.durable();
    let question = bench.question().unwrap();
    assert_eq!(question.refunds, [total(7, "2")]);
    assert_eq!(question.previous[0].entries[0].spent, credits("2"), "beside the last word on that epoch");
    assert_eq!(receipt(&bench).net(), Credits::ZERO);
}

#[test]
fn a_question_in_the_journal_has_its_old_form_and_its_digest_is_of_that() {
    let mut bench = Bench::new();
    bench.start(1, "a");
    bench.durable();
    let plain = bench.question().unwrap();
    let more = Request { refunds: vec![total(7, "2")], ..plain.clone() };
    assert_eq!(postcard::to_stdvec(&more), postcard::to_stdvec(&plain));
    assert_eq!(more.digest(), plain.digest());
    let bytes = postcard::to_stdvec(&more).unwrap();
    let without = postcard::to_stdvec(&plain).unwrap();
    assert_eq!(postcard::from_bytes::<Request>(&bytes), postcard::from_bytes(&without));
    let text = serde_json::to_string(&more).unwrap();
    assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), more);
    assert!(!serde_json::to_string(&plain).unwrap().contains("refunds"), "older authorities are told nothing new");
}
