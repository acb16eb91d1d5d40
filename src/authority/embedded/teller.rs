//! Who waits is told beside the store's thread: to wake sixty-four who wait costs it a sixth of what answering them does.

use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};

use super::Reply;
use crate::domain::meter::Reading;
use crate::domain::wire::{Answer, Digested};
use crate::node::priority::raise_priority;

/// Groups that may wait to be told; with more the store's own thread tells them, so that it cannot run ahead.
const GROUPS_MAX: usize = 4;

/// An answer that is durable, with who waits for it. The question is dropped with it.
pub(super) struct Told {
    pub(super) question: Box<Digested>,
    pub(super) reply: Reply,
    pub(super) answer: Answer,
}

/// Tells them. The thread is made once several wait together, which those of one machine never do.
#[derive(Default)]
pub(super) struct Teller {
    beside: Option<(Sender<Vec<Told>>, JoinHandle<()>)>,
}

impl Teller {
    /// One is told at once, several beside the caller, in their order.
    pub(super) fn tell(&mut self, group: Vec<Told>) {
        if group.len() < 2 {
            return tell_all(group);
        }
        if self.beside.is_none() {
            self.beside = start().inspect_err(|error| tracing::debug!(event = "no_teller", %error)).ok();
        }
        match &self.beside {
            Some((groups, _)) => groups.try_send(group).unwrap_or_else(|refused| tell_all(refused.into_inner())),
            None => tell_all(group),
        }
    }
}

impl Drop for Teller {
    /// Whoever waits is told before the store's thread has ended.
    fn drop(&mut self) {
        if let Some((groups, thread)) = self.beside.take() {
            drop(groups);
            let _ = thread.join(); // one that panicked has told what it could
        }
    }
}

fn start() -> std::io::Result<(Sender<Vec<Told>>, JoinHandle<()>)> {
    let (groups, waiting) = bounded(GROUPS_MAX);
    let thread = std::thread::Builder::new().name("answers".to_owned()).spawn(move || {
        if let Reading::Missing(why) = raise_priority() {
            tracing::debug!(event = "answers_priority", %why);
        }
        waiting.into_iter().for_each(tell_all);
    })?;
    Ok((groups, thread))
}

fn tell_all(group: Vec<Told>) {
    for Told { question, reply, answer } in group {
        reply(answer);
        drop(question);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::domain::chain::Head;
    use crate::domain::id::{BootId, Digest, Epoch};
    use crate::domain::wire::{Limits, PROTOCOL, Request, Settlement};

    fn told(number: u64, to: mpsc::Sender<(u64, Option<String>)>) -> Told {
        let (node, epoch) = ("n".parse().unwrap(), Epoch([1; 16]));
        let request = Request {
            protocol: PROTOCOL,
            node,
            epoch,
            boot: BootId([2; 16]),
            request: number,
            previous: Vec::new(),
            entries: Vec::new(),
            generation_seen: 0,
            history: None,
            gangs: Vec::new(),
            refunds: Vec::new(),
        };
        let answer = Answer {
            protocol: PROTOCOL,
            epoch,
            request: number,
            digest: Digest([0; 32]),
            acknowledged: Vec::new(),
            entries: Vec::new(),
            balances: Vec::new(),
            generation: 1,
            gangs: Vec::new(),
        };
        let reply = move |answer: Answer| {
            let thread = std::thread::current().name().map(str::to_owned);
            to.send((answer.request, thread)).unwrap();
        };
        let settlement = Settlement { request, journal: Head::START, limits: Limits::default() };
        Told { question: Box::new(Digested::new(settlement)), reply: Box::new(reply), answer }
    }

    #[test]
    fn one_is_told_at_once_and_several_beside_and_all_of_them_before_the_end() {
        let (to, heard) = mpsc::channel();
        let mut teller = Teller::default();
        teller.tell(vec![told(1, to.clone())]);
        assert_eq!(heard.try_recv().unwrap().0, 1, "the caller told it");
        assert!(teller.beside.is_none());
        for group in 0..50 {
            teller.tell((0..64).map(|nth| told(group * 64 + nth, to.clone())).collect());
        }
        drop((teller, to));
        let all: Vec<(u64, Option<String>)> = heard.iter().collect();
        let mut numbers: Vec<u64> = all.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..50 * 64).collect::<Vec<_>>());
        assert!(all.iter().any(|(_, thread)| thread.as_deref() == Some("answers")), "some were told beside");
    }
}
