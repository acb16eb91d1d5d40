//! The engine: takes events once by their name, shows them some time later, and says balances as they are then.

use std::collections::BTreeMap;

use meterd::authority::store::mirror::UsageEvent;

/// What it keeps of one customer, in nano-credits.
#[derive(Default)]
pub(crate) struct Customer {
    pub(crate) paid: i128,
    /// Drawn by others: when, and how much.
    pub(crate) outside: Vec<(u64, i128)>,
}

impl Customer {
    pub(crate) fn outside_by(&self, at_ms: u64) -> i128 {
        self.outside.iter().filter(|(drawn_ms, _)| *drawn_ms <= at_ms).map(|(_, amount)| amount).sum()
    }
}

/// One event, once.
struct Taken {
    account: String,
    amount: i128,
    body: String,
    shown_ms: u64,
}

#[derive(Default)]
pub(crate) struct Bill {
    pub(crate) customers: BTreeMap<String, Customer>,
    events: BTreeMap<String, Taken>,
    pub(crate) repeated: u64,
}

impl Bill {
    /// Takes an event, and shows it after `lag_ms`. The auditor: one name has one body.
    pub(crate) fn take(&mut self, event: &UsageEvent, now_ms: u64, lag_ms: u64) {
        let draft = &event.draft;
        if let Some(known) = self.events.get(&draft.id) {
            assert_eq!(known.body, event.body, "an event is repeated word for word");
            self.repeated += 1;
            return;
        }
        let taken =
            Taken { account: draft.account.to_string(), amount: draft.amount.nano(), body: event.body.clone(), shown_ms: now_ms + lag_ms };
        self.events.insert(draft.id.clone(), taken);
    }

    /// The balance as it is shown at this instant.
    pub(crate) fn balance(&self, account: &str, at_ms: u64) -> i128 {
        let customer = &self.customers[account];
        let shown = self.events.values().filter(|event| event.account == account && event.shown_ms <= at_ms);
        customer.paid - customer.outside_by(at_ms) - shown.map(|event| event.amount).sum::<i128>()
    }

    pub(crate) fn taken(&self, account: &str) -> i128 {
        self.events.values().filter(|event| event.account == account).map(|event| event.amount).sum()
    }

    pub(crate) fn events(&self) -> u64 {
        self.events.len() as u64
    }
}
