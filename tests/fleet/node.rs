//! A node by hand: questions to the authority, written out.

use serde_json::{Value, json};

use crate::https::{Client, Kept};

/// One epoch of a node on one account.
#[derive(Clone)]
pub(crate) struct Epoch {
    pub(crate) client: Client,
    pub(crate) node: String,
    pub(crate) id: String,
    pub(crate) account: String,
}

/// Totals and needs, in credits.
#[derive(Clone, Copy, Default)]
pub(crate) struct Told<'a> {
    pub(crate) granted: &'a str,
    pub(crate) returned: &'a str,
    pub(crate) spent: &'a str,
    pub(crate) owed: &'a str,
    pub(crate) at_least: &'a str,
}

impl Epoch {
    pub(crate) fn new(client: &Client, node: &str, number: usize, account: &str) -> Epoch {
        Epoch { client: client.clone(), node: node.to_owned(), id: format!("{number:032x}"), account: account.to_owned() }
    }

    pub(crate) fn body(&self, number: u64, told: Told<'_>) -> Value {
        let or_zero = |text: &str| if text.is_empty() { "0".to_owned() } else { text.to_owned() };
        json!({
            "protocol": 1, "node": self.node, "epoch": self.id, "boot": "0".repeat(32), "request": number, "previous": [],
            "entries": [{
                "account": self.account, "unit": "nano-credit", "granted_seen": or_zero(told.granted), "returned": or_zero(told.returned),
                "spent": or_zero(told.spent), "unfunded": "0", "owed": or_zero(told.owed), "burn_per_s": "0", "at_least": or_zero(told.at_least),
            }],
        })
    }

    /// The entry that was answered.
    pub(crate) fn ask(&self, number: u64, told: Told<'_>) -> Value {
        self.client.done("POST", "/v1/grants", &self.body(number, told))["entries"][0].clone()
    }

    /// The same, with more in its entry.
    pub(crate) fn ask_showing(&self, number: u64, told: Told<'_>, shown: &Value) -> Value {
        let mut body = self.body(number, told);
        for (key, value) in shown.as_object().unwrap() {
            body["entries"][0][key] = value.clone();
        }
        self.client.done("POST", "/v1/grants", &body)["entries"][0].clone()
    }

    /// The same, until there is an answer: the authority may be killed meanwhile.
    pub(crate) fn insist(&self, number: u64, told: Told<'_>) -> Value {
        self.insist_over(&mut self.client.kept(), number, told)
    }

    /// The same over a connection that is there already.
    pub(crate) fn insist_over(&self, kept: &mut Kept, number: u64, told: Told<'_>) -> Value {
        let body = self.body(number, told).to_string();
        let deadline = std::time::Instant::now() + crate::agent::PATIENCE;
        loop {
            if let Ok(answer) = kept.try_call("POST", "/v1/grants", &body)
                && answer.status == 200
            {
                return answer.json()["entries"][0].clone();
            }
            assert!(std::time::Instant::now() < deadline, "no answer within a minute");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
